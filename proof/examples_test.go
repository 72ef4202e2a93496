package proof_test

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vacate/proof"
	"vacate/proof/prooftest"
)

// exampleFacts are what a node would have seen, for a certificate to look at.
var exampleFacts = map[string]proof.Fact{
	"media.0.manufacturer":                         proof.Human(),
	"media.0.model":                                {Value: "EXAMPLE SSD 3840", Source: proof.SourceDrive},
	"media.0.serial":                               {Value: "EX12345678", Source: proof.SourceDrive},
	"media.0.source":                               {Value: "/dev/nvme1n1", Source: proof.SourceObserved},
	"media.0.purgedBeforeEnrolment":                {Value: "no", Source: proof.SourceConfigured},
	"media.0.encryptedBelow":                       {Source: proof.SourceNone},
	"sanitization.method":                          {Value: "Cryptographic Erase of the lease's space", Source: proof.SourceProgram},
	"sanitization.technique":                       {Value: "the lease's key was overwritten in volatile memory and read back", Source: proof.SourceProgram},
	"sanitization.tool":                            {Value: "vacate", Source: proof.SourceObserved},
	"sanitization.version":                         {Value: "0.6.0", Source: proof.SourceObserved},
	"sanitization.verificationMethod":              {Value: "every byte of the key's pages was read back as zero", Source: proof.SourceProgram},
	"sanitization.verification":                    {Value: "completed without errors", Source: proof.SourceObserved},
	"cryptographicErase.keyGeneration":             {Value: "getrandom(2) of Linux, 512 bits for each lease", Source: proof.SourceProgram},
	"cryptographicErase.mediaEncryption":           {Value: "AES-256-XTS, blocks of 4096 bytes", Source: proof.SourceProgram},
	"cryptographicErase.keyLevelAndWrapping":       {Value: "one key a lease, never wrapped, never written", Source: proof.SourceProgram},
	"cryptographicErase.dataAreas":                 {Value: "all blocks of the lease's space", Source: proof.SourceProgram},
	"cryptographicErase.keyLifecycle":              {Value: "made when the lease is opened, in volatile memory until it is closed", Source: proof.SourceProgram},
	"cryptographicErase.keySanitization":           {Value: "overwritten with zeros and read back", Source: proof.SourceObserved},
	"cryptographicErase.escrowOrInjection":         {Value: "none", Source: proof.SourceProgram},
	"cryptographicErase.errorHandling":             {Value: "a key that cannot be overwritten ends its keeper, and its memory with it", Source: proof.SourceProgram},
	"cryptographicErase.interface":                 {Value: "vacate lease close", Source: proof.SourceObserved},
	"cryptographicErase.makeModelVersionMediaType": {Value: "vacate 0.6.0 over NVMe", Source: proof.SourceObserved},
	"host.kernel":                                  {Value: "Linux 6.12.0", Source: proof.SourceObserved},
	"host.bootId":                                  {Value: prooftest.Boot1, Source: proof.SourceObserved},
	"host.machine":                                 {Value: "amd64", Source: proof.SourceObserved},
	"host.swap":                                    {Value: "off", Source: proof.SourceObserved},
	"host.tpm":                                     {Value: "none", Source: proof.SourceObserved},
}

// exampleStory is the lease of examples/good.json.
func exampleStory() prooftest.Story {
	commit := proof.DriveCommit(prooftest.Drive1, prooftest.Bytes("drive", proof.SaltLen), "nvme", "EXAMPLE SSD 3840", "EX12345678")
	return prooftest.Story{
		Between: 2,
		Record: func(_ *prooftest.World, r *proof.Record) {
			for i := range r.Space {
				r.Space[i].Commit = commit
			}
			if r.Type == proof.CLOSE {
				r.Events[1].MonotonicNs, r.Events[2].MonotonicNs = 3_600_000_000_000, 3_600_000_214_000
			}
		},
		Annex: func(a *proof.Annex) {
			prooftest.Each(a, func(path string, f *proof.Fact) {
				if fact, ok := exampleFacts[path]; ok {
					*f = fact
				} else if f.Value == "as observed" {
					*f = proof.Fact{Source: proof.SourceNone}
				}
			})
			a.Key.CipherWait, a.Key.Erase = 31_000, 214_000
			a.Limits = []string{"root on this host could have copied the key while the lease was open"}
		},
	}
}

// TestExamples: the files of examples/ are what this makes, the good one passes
// and the one that was tampered with does not: somebody changed a serial number.
func TestExamples(t *testing.T) {
	c := prooftest.Tell(exampleStory())
	good := c.Bytes()
	receipt, err := c.Receipt.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(good, []byte("EX12345678")) {
		t.Fatal("the serial number is not in the certificate")
	}
	tampered := bytes.ReplaceAll(good, []byte("EX12345678"), []byte("EX12345679"))
	for path := range exampleFacts {
		if a, err := proof.Decode[proof.Annex](c.Bundle.Annex); err != nil || !slices.ContainsFunc(a.Fields(), func(f proof.Field) bool { return f.Path == path }) {
			t.Errorf("no field %s, %v", path, err)
		}
	}
	for name, want := range map[string][]byte{"good.json": good, "tampered.json": tampered, "policy": c.Policy, "receipt.json": receipt} {
		path := filepath.Join("..", "examples", name)
		if flag.Lookup("update").Value.String() == "true" { // the flag is package proof's
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what is made today: run go test ./proof -run TestExamples -update, and look at what has changed", path)
		}
	}
	res, err := proof.Verify(good, c.Policy, proof.Options{Opened: c.Receipt})
	if err != nil {
		t.Fatal(err)
	}
	if res.Deadline != "met" || !strings.Contains(res.Text(), "EX12345678") {
		t.Errorf("the example says\n%s", res.Text())
	}
	var ve *proof.VerifyError
	if _, err := proof.Verify(tampered, c.Policy, proof.Options{}); !errors.As(err, &ve) || ve.Step != proof.StepAnnex {
		t.Errorf("the tampered example: %v", err)
	}
}
