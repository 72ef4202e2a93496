package attest

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"vacate/internal/tpm/tpmtest"
	"vacate/proof"
	"vacate/proof/prooftest"
)

// TestCertificate: a certificate with the quotes of a TPM is measured, and its
// result has to agree with what the TPM counted.
func TestCertificate(t *testing.T) {
	for _, tt := range []struct {
		name, result string
		reboot       bool
		step         proof.Step // 0: it is accepted
		fact         string
	}{
		{"the machine stayed on", proof.ResultOK, false, 0, "none"},
		{"it was reset, and nobody says so", proof.ResultOK, true, proof.StepMeasured, ""},
		{"it was reset, as the record says", proof.ResultLostBoot, true, 0, "it supports lost_boot"},
		{"it was reset before anybody signed", proof.ResultLostKeeper, true, 0, "the result says nothing of it"},
		{"a drive was lost, and it was reset", proof.ResultLostDrive, true, proof.StepMeasured, ""},
		{"another boot without a reset", proof.ResultLostBoot, false, 0, "does not support lost_boot"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := prooftest.Tell(prooftest.Story{Measured: true, Result: tt.result})
			m := tpmtest.Start(t)
			q := quoter(t, m)
			for i := range c.Bundle.Quotes {
				if i == 1 && tt.reboot {
					q.t.Close()
					m.Reboot()
					q = quoter(t, m)
				}
				made, err := q.Quote(payloadOf(t, c.Bundle, c.Bundle.Quotes[i].Payload))
				if err != nil {
					t.Fatal(err)
				}
				c.Bundle.Quotes[i] = made
			}
			pin, err := q.Pin(node, true)
			if err != nil {
				t.Fatal(err)
			}
			fake := prooftest.Text(prooftest.AK()) + " -"
			if !bytes.Contains(c.Policy, []byte(fake)) {
				t.Fatalf("policy without %q", fake)
			}
			policy := bytes.Replace(c.Policy, []byte(fake), []byte(pin.AK.String()+" "+pin.PCRDigest), 1)
			res, err := proof.Verify(c.Bytes(), policy, proof.Options{})
			if ve := (*proof.VerifyError)(nil); tt.step != 0 {
				if !errors.As(err, &ve) || ve.Step != tt.step {
					t.Errorf("got %v, want it rejected at step %d", err, tt.step)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(res.Claims, func(c proof.Claim) bool { return c.Name == proof.ClaimMeasured }) {
				t.Errorf("claims %+v", res.Claims)
			}
			if !slices.ContainsFunc(res.Facts, func(f proof.Named) bool {
				return strings.Contains(f.Name, "resets") && strings.Contains(f.Value, tt.fact)
			}) {
				t.Errorf("facts %+v, want resets: %s", res.Facts, tt.fact)
			}
		})
	}
}

// payloadOf is the payload of a bundle's record with this hash.
func payloadOf(t *testing.T, b *proof.Bundle, hash string) []byte {
	t.Helper()
	for _, e := range b.Records {
		env, err := proof.ParseEnvelope(e.Envelope)
		if err != nil {
			t.Fatal(err)
		}
		if proof.PayloadHash(env.Payload) == hash {
			return env.Payload
		}
	}
	t.Fatalf("no record %s", hash)
	return nil
}
