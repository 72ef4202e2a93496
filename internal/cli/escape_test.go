package cli

import (
	"os"
	"reflect"
	"strings"
	"testing"
	"unicode"

	"vacate/proof"
	"vacate/proof/prooftest"
)

// evil is what would paint, retitle, clear or turn round a terminal.
const evil = "\x1b[31mE\x1b]0;x\x07\u202e\u009b2J\u2066\r\n\x00z"

// deface adds evil to every word that v holds, but for what commitments bind.
func deface(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			switch v.Type().Field(i).Name {
			case "Drive", "Salt", "MediaType", "Model", "Serial", "Source", "Method", "Technique", "Validation", "Performed", "Verified", "CertNo":
			default:
				deface(v.Field(i))
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			deface(v.Index(i))
		}
	case reflect.String:
		if v.String() != "" {
			v.SetString(v.String() + evil)
		}
	default:
	}
}

// TestTerminal: whoever makes a certificate or a policy writes nothing to the
// terminal of whoever looks at it but text.
func TestTerminal(t *testing.T) {
	policy := string(prooftest.Policy())
	bundle := func(change func(a *proof.Annex)) []byte {
		return prooftest.Tell(prooftest.Story{Annex: change}).Bytes()
	}
	files := map[string][]byte{
		"policy": []byte(policy), "named": []byte(strings.Replace(policy, "person ann", "person a\u202enn", 1)), "worded": []byte("no\u202ede x\n" + policy),
		"escaped": []byte("\x1b[31m\n" + policy),
		"words": bundle(func(a *proof.Annex) {
			a.Limits, a.Key.Text = append(a.Limits, evil), evil
			for _, part := range []any{&a.Media, &a.Sanitize, &a.CryptoErase, &a.Host, &a.Module} {
				deface(reflect.ValueOf(part).Elem())
			}
			a.Scan = append(a.Scan, proof.Scan{Drive: a.Media[0].Drive, Tool: evil, Blocks: 1, Of: 1, Report: evil})
		}),
		"tenant": bundle(func(a *proof.Annex) { a.Tenant = evil }),
		"lease":  bundle(func(a *proof.Annex) { a.LeaseID = evil }),
		"drive":  bundle(func(a *proof.Annex) { a.Media[0].Drive = evil }),
		"salt":   bundle(func(a *proof.Annex) { a.Salts.Key = evil }),
		"source": bundle(func(a *proof.Annex) { a.Host.Kernel.Source = evil }),
		"number": bundle(func(a *proof.Annex) { a.Module.Validated, a.Module.CertNo = true, evil }),
		"level": bundle(func(a *proof.Annex) {
			d := prooftest.Purged()
			d.Level = evil
			a.Device = append(a.Device, d)
		}),
	}
	proofFiles(t, files)
	look := func(code int, args ...string) {
		t.Helper()
		r := run(t, "", Hooks{}, args...)
		if code >= 0 && r.code != code {
			t.Errorf("%q: exit code %d, want %d: %s", args, r.code, code, r.err)
		}
		out := r.out + r.err
		if i := strings.IndexFunc(out, func(c rune) bool { return c != '\n' && !unicode.IsPrint(c) }); i >= 0 {
			t.Errorf("%q prints %q", args, out[max(0, i-60):min(len(out), i+20)])
		}
	}
	for name := range files {
		look(-1, "certificate", "show", name)
		look(-1, "certificate", "complete", name)
		look(-1, "certificate", "verify", name, "--policy", "policy")
		look(-1, "policy", "show", name)
		look(-1, "certificate", "verify", "words", "--policy", name)
	}
	look(0, "certificate", "show", "words")
	look(0, "certificate", "verify", "words", "--policy", "policy", "--html", "page")
	look(ExitVerify, "certificate", "verify", "number", "--policy", "policy")
	page, err := os.ReadFile("page")
	if err != nil {
		t.Fatal(err)
	}
	if i := strings.IndexAny(string(page), "\x00\x07\r\x1b\u009b\u202e\u2066"); i >= 0 {
		t.Errorf("the page has %q", page[max(0, i-40):i+8])
	}
}
