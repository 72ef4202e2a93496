package cli

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vacate/internal/keyshare"
	"vacate/proof"
)

// TestProofGolden keeps what the commands about proof print, in each format.
func TestProofGolden(t *testing.T) {
	f, sock := startFake(t)
	testdata, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	f.bundles = map[string]string{idClosed: "one\n", idLost: "two\n"}
	policy, _ := policyOf(t)
	f.policy = policy
	if err := os.WriteFile("policy", policy, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, args string
		code       int
	}{
		{"certificate-list", "certificate list", 0},
		{"certificate-list-none", "certificate list --tenant nobody", 0},
		{"certificate-get", "certificate get " + idClosed, 0},
		{"certificate-receipt", "certificate receipt " + idClosed, 0},
		{"tenant-close-plan", "tenant close acme --plan", 0},
		{"tenant-close", "tenant close acme --force", 0},
		{"tenant-close-nobody", "tenant close nobody", 0},
		{"policy-show", "policy show policy", 0},
		{"keys-show", "keys show", 0},
		{"keys-rotate", "keys rotate node", 0},
		{"keys-rotate-plan", "keys rotate operator --plan", 0},
		{"log-status", "log status", 0},
	} {
		for _, format := range []string{"table", "json", "yaml"} {
			t.Run(tt.name+"/"+format, func(t *testing.T) {
				r := run(t, sock, Hooks{}, append(strings.Fields(tt.args), "-o", format)...)
				if r.code != tt.code {
					t.Errorf("exit code %d, want %d: %s", r.code, tt.code, r.err)
				}
				if strings.ContainsRune(r.out+r.err, '\x1b') {
					t.Errorf("escape codes off a terminal: %q", r.out)
				}
				goldenIn(t, testdata, tt.name+"."+format, r.out)
			})
		}
	}
}

// policyOf is a policy with a node's key, and that key.
func policyOf(t *testing.T) (policy []byte, node ed25519.PrivateKey) {
	t.Helper()
	node = ed25519.NewKeyFromSeed(make([]byte, 32))
	pub, err := proof.NewPublicKey(node.Public())
	if err != nil {
		t.Fatal(err)
	}
	return []byte("quorum none\nnode " + testNode + " " + pub.String() + " 2026-01-01T00:00:00Z -\n"), node
}

const testNode = "00112233445566778899aabbccddeeff"

// TestCertificateGet: a certificate without a quorum is taken, and said to be
// one; nothing is overwritten.
func TestCertificateGet(t *testing.T) {
	f, sock := startFake(t)
	f.bundles = map[string]string{idClosed: "one\n"}
	file := filepath.Join(t.TempDir(), "c.json")
	get := func(args ...string) result {
		return run(t, sock, Hooks{}, append([]string{"certificate", "get", idClosed, "--out", file}, args...)...)
	}
	if r := get(); r.code != 0 {
		t.Fatalf("exit code %d: %s", r.code, r.err)
	}
	st, err := os.Stat(file)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the certificate is %v, %v", st, err)
	}
	if r := get(); r.code != 0 {
		t.Errorf("the same again: exit code %d: %s", r.code, r.err)
	}
	f.mu.Lock()
	f.bundles[idClosed], f.unready = "two\n", true
	f.mu.Unlock()
	if r := get("--wait", "200ms"); r.code != ExitRefused || !strings.Contains(r.err, "holds something else") {
		t.Errorf("exit code %d: %s", r.code, r.err)
	}
	if r := get("--wait", "200ms", "--force"); r.code != 0 || !strings.Contains(r.err, "quorum is missing") {
		t.Errorf("exit code %d: %s", r.code, r.err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "two\n" {
		t.Errorf("the file has %q, %v", b, err)
	}
	if r := run(t, sock, Hooks{}, "certificate", "get", idClosed, "--out", "-", "--wait", "0"); r.code != 0 || r.out != "two\n" {
		t.Errorf("to standard output: %q, %s", r.out, r.err)
	}
	for _, id := range []string{"../../etc/passwd", "nope", "aaaaaaaaaaaaaaaa"} {
		if r := run(t, sock, Hooks{}, "certificate", "get", id, "--wait", "0"); r.code != ExitNotFound {
			t.Errorf("%s: exit code %d: %s", id, r.code, r.err)
		}
	}
}

// TestTenantClose: all certificates in one file; what fails is told, and the rest is done.
func TestTenantClose(t *testing.T) {
	f, sock := startFake(t)
	f.bundles = map[string]string{idClosed: "one\n", idLost: "two\n"}
	file := filepath.Join(t.TempDir(), "all")
	if r := run(t, sock, Hooks{}, "tenant", "close", "acme", "--out", file); r.code != 0 {
		t.Fatalf("exit code %d: %s", r.code, r.err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "one\ntwo\n" {
		t.Errorf("the file has %q, %v", b, err)
	}
	f.mu.Lock()
	f.failing = true
	delete(f.bundles, idClosed)
	f.mu.Unlock()
	r := run(t, sock, Hooks{}, "tenant", "close", "acme", "--out", file+"2", "-o", "json")
	if r.code != ExitFailed || !strings.Contains(r.err, "1 lease of tenant acme could not be closed") {
		t.Errorf("exit code %d: %s", r.code, r.err)
	}
	var v tenantCloseView
	if err := json.Unmarshal([]byte(r.out), &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Leases) != 1 || len(v.Failures) != 1 || v.Failures[0].LeaseID != idLost || len(v.Missing) != 1 || v.File != "" {
		t.Errorf("told %+v", v)
	}
	if r := run(t, sock, Hooks{}, "tenant", "close", ""); r.code != ExitUsage {
		t.Errorf("no tenant: exit code %d", r.code)
	}
	if got := fileName("a/../b c\x1b"); got != "a____b_c_" {
		t.Errorf("a file's name of a tenant's: %q", got)
	}
}

// TestTenantShare: what the tenant seals, the node that signed opens; nothing is
// sealed to anybody else.
func TestTenantShare(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	policy, node := policyOf(t)
	var seed keyshare.Seed
	seed.Fill()
	recipient, err := seed.Public()
	if err != nil {
		t.Fatal(err)
	}
	prepared := func(key ed25519.PrivateKey, until time.Time) []byte {
		t.Helper()
		payload, err := proof.EncodePrepared(testNode, idOpen2, recipient, until)
		if err != nil {
			t.Fatal(err)
		}
		b, err := proof.Sign(payload, key)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	_, stranger, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	soon := time.Now().Add(time.Minute)
	for name, b := range map[string][]byte{"policy": policy, "ok": prepared(node, soon), "stranger": prepared(stranger, soon), "late": prepared(node, time.Now().Add(-time.Minute))} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range []string{"stranger", "late", "policy"} {
		if r := run(t, "", Hooks{}, "tenant", "share", bad, "--policy", "policy"); r.code != ExitVerify || !strings.Contains(r.err, "seal nothing to it") {
			t.Errorf("%s: exit code %d: %s", bad, r.code, r.err)
		}
	}
	if r := run(t, "", Hooks{}, "tenant", "share", "ok", "--policy", "policy"); r.code != 0 {
		t.Fatalf("exit code %d: %s", r.code, r.err)
	}
	kept, err := os.ReadFile(idOpen2 + ".share")
	if err != nil || len(kept) != keyshare.ShareSize {
		t.Fatalf("kept %d bytes, %v", len(kept), err)
	}
	f, sock := startFake(t)
	if r := run(t, sock, Hooks{}, "lease", "open", "--size", "4096", "--tenant-share", idOpen2+".sealed.json"); r.code != 0 {
		t.Fatalf("exit code %d: %s", r.code, r.err)
	}
	if got := f.opened.GetShare().GetLeaseId(); got != idOpen2 {
		t.Errorf("the share is for lease %q", got)
	}
	var opened [keyshare.ShareSize]byte
	if err := seed.OpenShare(&opened, idOpen2, f.opened.GetShare().GetSealed()); err != nil || string(opened[:]) != string(kept) {
		t.Errorf("the node opens another share, %v", err)
	}
	if r := run(t, "", Hooks{}, "tenant", "share", "ok", "--policy", "policy"); r.code != ExitRefused || !strings.Contains(r.err, "a share is used once") {
		t.Errorf("a second share: exit code %d: %s", r.code, r.err)
	}
	if r := run(t, sock, Hooks{}, "lease", "open", "--size", "4096", "--tenant-share", "policy"); r.code != ExitUsage || !strings.Contains(r.err, "no sealed share") {
		t.Errorf("exit code %d: %s", r.code, r.err)
	}
}

const idOpen2 = "zzzzyyyyxxxxwwww"

// TestReceiptFile: the receipt goes to its file; a lease without one is open all
// the same.
func TestReceiptFile(t *testing.T) {
	f, sock := startFake(t)
	f.receipt = []byte("receipt\n")
	file := filepath.Join(t.TempDir(), "r")
	if r := run(t, sock, Hooks{}, "lease", "open", "--size", "4096", "--erase-by", "24h", "--receipt", file); r.code != 0 {
		t.Fatalf("exit code %d: %s", r.code, r.err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "receipt\n" {
		t.Errorf("the file has %q, %v", b, err)
	}
	if left := time.Until(f.opened.GetEraseBy().AsTime()); left < 23*time.Hour || left > 24*time.Hour {
		t.Errorf("to be erased in %v", left)
	}
	before := f.opened
	if r := run(t, sock, Hooks{}, "lease", "open", "--size", "4096", "--receipt", file); r.code != ExitRefused || !strings.Contains(r.err, "nothing was done") || f.opened != before {
		t.Errorf("over another receipt: exit code %d, %s; a lease was opened: %v", r.code, r.err, f.opened != before)
	}
	nowhere := filepath.Join(t.TempDir(), "no", "r")
	if r := run(t, sock, Hooks{}, "lease", "open", "--size", "4096", "--receipt", nowhere); r.code != ExitFailed || !strings.Contains(r.err, filepath.Dir(nowhere)) || f.opened != before {
		t.Errorf("into no folder: exit code %d, %s; a lease was opened: %v", r.code, r.err, f.opened != before)
	}
	f.receipt, f.receiptWhy = nil, "the TPM does not answer"
	file += "2"
	r := run(t, sock, Hooks{}, "lease", "open", "--size", "4096", "--receipt", file)
	if r.code != ExitFailed || !strings.Contains(r.out, idOpen) || !strings.Contains(r.err, "has no receipt yet: the TPM does not answer") ||
		!strings.Contains(r.err, "vacate certificate receipt "+idOpen) {
		t.Errorf("exit code %d, %q, %q", r.code, r.out, r.err)
	}
	if r := run(t, sock, Hooks{}, "lease", "open", "--size", "4096", "--erase-by", "tomorrow"); r.code != ExitUsage {
		t.Errorf("exit code %d: %s", r.code, r.err)
	}
}

// TestKeysMake: a key that only its owner can read, and a line that policies take.
func TestKeysMake(t *testing.T) {
	t.Chdir(t.TempDir())
	r := run(t, "", Hooks{}, "keys", "make", "jane.pem", "--name", "jane.doe")
	if r.code != 0 {
		t.Fatalf("exit code %d: %s", r.code, r.err)
	}
	policy, err := proof.ParsePolicy([]byte("quorum none\n" + r.out))
	if err != nil || len(policy.Persons()) != 1 || policy.Persons()[0].Name != "jane.doe" {
		t.Fatalf("the line %q: %v", r.out, err)
	}
	signer, err := readPersonKey("jane.pem")
	if err != nil {
		t.Fatal(err)
	}
	if pub, err := proof.NewPublicKey(signer.Public()); err != nil || pub != policy.Persons()[0].Key {
		t.Errorf("the file has another key, %v", err)
	}
	if r := run(t, "", Hooks{}, "keys", "make", "jane.pem", "--name", "jane.doe"); r.code != ExitRefused {
		t.Errorf("over a key: exit code %d", r.code)
	}
	if err := os.Chmod("jane.pem", 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readPersonKey("jane.pem"); err == nil || !strings.Contains(err.Error(), "only you can read") {
		t.Errorf("a key that others can read: %v", err)
	}
}
