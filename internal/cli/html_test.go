package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestVerifyHTML: a page is written of one certificate that is valid, and of
// nothing else; a file that is there stays.
func TestVerifyHTML(t *testing.T) {
	_, sock := startFake(t)
	vectors, err := filepath.Abs("../../docs/spec/proof")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	bundle, policy := filepath.Join(vectors, "bundle.json"), filepath.Join(vectors, "policy")
	verify := func(args ...string) result {
		return run(t, sock, Hooks{}, append([]string{"certificate", "verify", "--policy", policy}, args...)...)
	}
	if r := verify(bundle, "--html", "page.html"); r.code != 0 || !strings.Contains(r.out, "wrote page.html") {
		t.Fatalf("exit code %d: %s%s", r.code, r.out, r.err)
	}
	page, err := os.ReadFile("page.html")
	if err != nil || !bytes.HasPrefix(page, []byte("<!doctype html>")) {
		t.Fatalf("%.40q, %v", page, err)
	}
	if r := verify(bundle, "--html", "page.html"); r.code != 0 {
		t.Errorf("the same page once more: exit code %d: %s", r.code, r.err)
	}
	if err := os.WriteFile("mine.html", []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := verify(bundle, "--html", "mine.html"); r.code != ExitRefused || !strings.Contains(r.err, "--html") {
		t.Errorf("over another file: exit code %d: %s", r.code, r.err)
	}
	good, err := os.ReadFile(bundle)
	if err != nil {
		t.Fatal(err)
	}
	good[len(good)/2] ^= 1
	if err := os.WriteFile("bad.json", good, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := verify("bad.json", "--html", "bad.html"); r.code != ExitVerify {
		t.Errorf("a damaged certificate: exit code %d", r.code)
	}
	if _, err := os.Stat("bad.html"); err == nil {
		t.Error("a page of a damaged certificate")
	}
	for _, args := range [][]string{{bundle, bundle, "--html", "two.html"}, {bundle, "--html", "-"}} {
		if r := verify(args...); r.code != ExitUsage {
			t.Errorf("%v: exit code %d", args, r.code)
		}
	}
}
