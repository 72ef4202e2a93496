package certpage

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"vacate/proof"
)

// labels are the words of SP 800-88 for the fields of an annex, by the last part
// of their paths within a section.
var labels = map[string]string{
	"manufacturer": "Manufacturer", "model": "Model", "serial": "Serial number", "propertyNumber": "Property number",
	"mediaType": "Media type", "source": "Source", "categorizationBefore": "Categorization before",
	"purgedBeforeEnrolment": "Purged before enrolment", "encryptedBelow": "Encryption by the drive itself",

	"method": "Method", "technique": "Technique", "tool": "Tool", "version": "Version of the tool",
	"verificationMethod": "Verification method", "verification": "Verification", "validation": "Validation",
	"performedBy": "Performed by", "verifiedBy": "Verified by", "destination": "Destination of the media",

	"makeModelVersionMediaType": "1. Make, model, version, media type", "keyGeneration": "2. Key generation",
	"mediaEncryption": "3. Media encryption", "keyLevelAndWrapping": "4. Key level and wrapping",
	"dataAreas": "5. Data areas addressed", "keyLifecycle": "6. Key lifecycle", "keySanitization": "7. Key sanitization",
	"escrowOrInjection": "8. Key escrow or injection", "errorHandling": "9. Error handling", "interface": "10. Interface",

	"kernel": "Kernel", "bootId": "Boot", "machine": "Machine", "initOnFree": "Freed memory is cleared (init_on_free)",
	"initOnAlloc": "Memory is cleared when given out (init_on_alloc)", "hugepages": "Huge pages",
	"transparentHugepages": "Transparent huge pages", "swap": "Swap", "corePattern": "Core dumps go to",
	"hibernation": "Hibernation", "kexec": "Start without a reset (kexec)", "memfdSecret": "Secret memory (memfd_secret)",
	"keyMemory": "Memory of keys", "runtimeSecret": "Go's runtime/secret", "tpm": "TPM",

	"vendorStatement": "Vendor's statement, accepted by the operator",
}

// sections are the annex's tables, in the order of SP 800-88's form.
func sections(a *proof.Annex) []section {
	fields := a.Fields()
	of := func(title, note, prefix string) section {
		s := section{Title: title, Note: note}
		for _, f := range fields {
			name, ok := strings.CutPrefix(f.Path, prefix+".")
			if !ok {
				continue
			}
			s.Rows = append(s.Rows, fact(labels[name], f.Fact))
		}
		return s
	}
	out := []section{of("Sanitization", "NIST SP 800-88 Rev. 2, section 4.6. Verification is what the node observed; validation is a person's.", "sanitization")}
	for i, m := range a.Media {
		s := of("Medium "+strconv.Itoa(i+1), "", "media."+strconv.Itoa(i))
		s.Rows = append([]field{{Label: "Pseudonym in the log", Value: clean(m.Drive)}}, s.Rows...)
		out = append(out, s)
	}
	out = append(out,
		of("Cryptographic erase", "The ten items of NIST SP 800-88 Rev. 1, Appendix E.", "cryptographicErase"),
		keySection(a), moduleSection(a),
		of("Host", "What the node saw of its machine. Nothing here is measured by a TPM.", "host"))
	for i, d := range a.Device {
		s := deviceSection(i, d)
		s.Rows = append(s.Rows, of("", "", "device."+strconv.Itoa(i)).Rows...)
		out = append(out, s)
	}
	for _, s := range a.Scan {
		out = append(out, plain("Scan", "Drive", s.Drive, "Tool", s.Tool, "Blocks read", fmt.Sprintf("%d of %d", s.Blocks, s.Of),
			"Canaries found", strconv.FormatUint(s.Canaries, 10), "Blocks of zeros", strconv.FormatUint(s.Zeros, 10), "Report, SHA-256", s.Report))
	}
	return out
}

// fact is a row; where there is no value, the source says why.
func fact(label string, f proof.Fact) field {
	if f.Value == "" {
		return field{Label: label, Value: clean(f.Source), Empty: true}
	}
	return field{Label: label, Value: clean(f.Value), Source: clean(f.Source)}
}

// plain is a section of labels and values in turn.
func plain(title string, pairs ...string) section {
	s := section{Title: title}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			s.Rows = append(s.Rows, field{Label: pairs[i], Value: clean(pairs[i+1])})
		}
	}
	return s
}

func keySection(a *proof.Annex) section {
	k := a.Key
	return plain("The key's end",
		"Opened, by the node's clock", a.OpenedAt, "Closed, by the node's clock", a.ClosedAt,
		"Read back as zeros", yes(k.ReadBack), "I/O in flight at the record", yes(k.InFlight),
		"Gate shut to last cipher call", duration(k.CipherWait), "Gate shut to key destroyed", duration(k.Erase), "Note", k.Text)
}

func moduleSection(a *proof.Annex) section {
	m := a.Module
	return plain("Cryptographic module", "Name", m.Name, "Version", m.Version, "Validated (FIPS 140)", yes(m.Validated), "Certificate", m.CertNo)
}

func deviceSection(i int, d proof.DeviceRun) section {
	return plain("Command "+strconv.Itoa(i+1)+" to a drive", "Drive", d.Drive, "Serial number", d.Serial, "Command", d.Command, "Action", d.Action,
		"Purge, or fail (PREQ)", yes(d.Purge), "Level", d.Level, "SANICAP", d.SanitizeCapabilities, "FNA", d.FormatAttributes,
		"SSTAT", d.Status, "SPROG", d.Progress, "Log page", d.LogPage, "Boot", d.BootID)
}

func persons(done []proof.Completed) []section {
	var out []section
	for _, c := range done {
		s := plain(strings.ToUpper(c.Role[:1])+c.Role[1:], "Name", c.Person.Name, "Title", c.Person.Title, "Organization", c.Person.Organization,
			"Date", c.Date, "Location", c.Person.Location, "Contact", c.Person.Contact, "Remarks", c.Remarks,
			"Signed with the key of", c.By.Name+" ("+c.By.Key.KeyID()[:16]+"…)")
		if c.Outcome != nil {
			s.Rows = append(plain("", "Outcome", c.Outcome.Result, "Method", c.Outcome.Method).Rows, s.Rows...)
		}
		out = append(out, s)
	}
	return out
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// duration of nanoseconds; what was not observed is left out.
func duration(ns int64) string {
	if ns <= 0 {
		return ""
	}
	return time.Duration(ns).String()
}
