package cli

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vacate/proof"
	"vacate/proof/prooftest"
)

// proofFiles are files of the tests of verification, in the working folder.
func proofFiles(t *testing.T, files map[string][]byte) {
	t.Helper()
	t.Chdir(t.TempDir())
	for name, b := range files {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func receiptOf(t *testing.T, c *prooftest.Certificate) []byte {
	t.Helper()
	b, err := c.Receipt.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestVerifyCommand: a good certificate is valid offline; each bad one ends with exit
// code 5 and the name of the step.
func TestVerifyCommand(t *testing.T) {
	good := prooftest.Tell(prooftest.Story{})
	other := prooftest.Story{}.In(good.World)
	tampered := []byte(strings.Replace(string(good.Bytes()), "index 5", "index 4", 1))
	split := prooftest.Tell(prooftest.Story{Mode: proof.ModeSplit})
	proofFiles(t, map[string][]byte{
		"good": good.Bytes(), "tampered": tampered, "policy": prooftest.Policy(), "receipt": receiptOf(t, good), "split-receipt": receiptOf(t, split),
		"two": append(good.Bytes(), other.Bytes()...), "mixed": append(good.Bytes(), tampered...), "key": good.Key, "short": good.Key[:63],
		"cut": good.Bytes()[:2000], "nobody": []byte("quorum none\n"), "empty": nil,
	})
	for _, tt := range []struct {
		args string
		code int
		want []string // on either stream
	}{
		{"good --policy policy", 0, []string{"valid", prooftest.Lease1, "does not prove"}},
		{"good --policy policy --opened receipt", 0, []string{"valid"}},
		{"good --policy policy --opened split-receipt", ExitVerify, []string{"NOT valid", "step 7 of 11, binding"}},
		{"good --policy policy --revealed-key key", 0, []string{"provably violated"}},
		{"good --policy policy --revealed-key short", ExitUsage, []string{"64 bytes"}},
		{"good --policy policy --opened good", ExitVerify, []string{"receipt"}},
		{"tampered --policy policy", ExitVerify, []string{"NOT valid: it fails at step", "do not rely on it"}},
		{"cut --policy policy", ExitVerify, []string{"step 1 of 11, parse"}},
		{"empty --policy policy", ExitVerify, []string{"step 1 of 11, parse"}},
		{"good --policy nobody", ExitVerify, []string{"step 2 of 11, signatures"}},
		{"mixed --policy policy", ExitVerify, []string{"valid  mixed", "mixed, certificate 2 is NOT valid"}},
		{"good", ExitUsage, []string{"whom to trust is missing", "vacate policy export"}},
		{"good --policy good", ExitUsage, []string{"line 1 of the policy"}},
		{"none --policy policy", ExitNotFound, []string{"there is no file none"}},
		{"--policy policy", ExitUsage, []string{"at least one file"}},
	} {
		t.Run(tt.args, func(t *testing.T) {
			r := run(t, "/nonexistent", Hooks{}, append([]string{"certificate", "verify"}, strings.Fields(tt.args)...)...)
			if r.code != tt.code {
				t.Errorf("exit code %d, want %d", r.code, tt.code)
			}
			for _, want := range tt.want {
				if !strings.Contains(r.out+r.err, want) {
					t.Errorf("it leaves out %q:\n%s%s", want, r.out, r.err)
				}
			}
			if tt.code == ExitVerify && strings.Contains(r.out, "valid  good") {
				t.Errorf("a rejected certificate is called valid:\n%s", r.out)
			}
		})
	}
}

// TestVerifyJSON: what scripts read of each certificate, the rejected ones too.
func TestVerifyJSON(t *testing.T) {
	good := prooftest.Tell(prooftest.Story{})
	proofFiles(t, map[string][]byte{"good": good.Bytes(), "cut": good.Bytes()[:2000], "policy": prooftest.Policy()})
	r := run(t, "", Hooks{}, "certificate", "verify", "cut", "good", "--policy", "policy", "-o", "json")
	var v []verifyView
	if err := json.Unmarshal([]byte(r.out), &v); err != nil || r.code != ExitVerify || len(v) != 2 {
		t.Fatalf("exit code %d, %v:\n%s", r.code, err, r.out)
	}
	if v[0].OK || v[0].Step != 1 || v[0].Name != "parse" || v[0].Error == "" || v[0].Result != nil {
		t.Errorf("of the one that is cut: %+v", v[0])
	}
	if !v[1].OK || v[1].Result.LeaseID != prooftest.Lease1 || len(v[1].Result.Steps) != 11 || len(v[1].Result.NotProven) == 0 {
		t.Errorf("of the good one: %+v", v[1])
	}
	t.Setenv("VACATE_POLICY", "policy") // which run does not pass on
	if r := run(t, "", Hooks{}, "certificate", "verify", "good"); r.code != ExitUsage {
		t.Errorf("exit code %d", r.code)
	}
}

// TestShowCertificate says what there is, and that nobody verified it.
func TestShowCertificate(t *testing.T) {
	good := prooftest.Tell(prooftest.Story{})
	proofFiles(t, map[string][]byte{"good": good.Bytes(), "cut": good.Bytes()[:2000]})
	r := run(t, "", Hooks{}, "certificate", "show", "good")
	for _, want := range []string{"not verified", "OPEN", "CLOSE", prooftest.Lease1, "requires human entry"} {
		if r.code != 0 || !strings.Contains(r.out, want) {
			t.Errorf("exit code %d, without %q:\n%s", r.code, want, r.out)
		}
	}
	var v bundleView
	if r := run(t, "", Hooks{}, "certificate", "show", "good", "-o", "json"); json.Unmarshal([]byte(r.out), &v) != nil || len(v.Records) != 2 || v.Annex == nil || v.Verified {
		t.Errorf("%s", r.out)
	}
	if r := run(t, "", Hooks{}, "certificate", "show", "cut"); r.code != ExitVerify {
		t.Errorf("exit code %d", r.code)
	}
}

// TestCompleteCommand: a person fills what is missing, and the certificate stays
// valid for who pins that person; nobody fills anything twice.
func TestCompleteCommand(t *testing.T) {
	good := prooftest.Tell(prooftest.Story{})
	proofFiles(t, map[string][]byte{"good": good.Bytes()})
	r := run(t, "", Hooks{}, "keys", "make", "jane.pem", "--name", "jane")
	if err := os.WriteFile("policy", append(prooftest.Policy(), r.out...), 0o600); err != nil {
		t.Fatal(err)
	}
	r = run(t, "", Hooks{}, "certificate", "complete", "good")
	if r.code != 0 || !strings.Contains(r.out, "sanitization.validation") {
		t.Fatalf("exit code %d:\n%s%s", r.code, r.out, r.err)
	}
	args := []string{"certificate", "complete", "good", "--key", "jane.pem", "--as", "validated", "--name", "Jane Doe", "--result", "accepted",
		"--method", "certificate verified", "--set", "media.0.propertyNumber=A-1", "--out", "done"}
	if r := run(t, "", Hooks{}, args...); r.code != 0 {
		t.Fatalf("exit code %d: %s", r.code, r.err)
	}
	if r := run(t, "", Hooks{}, "certificate", "verify", "done", "--policy", "policy"); r.code != 0 {
		t.Errorf("exit code %d: %s", r.code, r.err)
	}
	if r := run(t, "", Hooks{}, "certificate", "complete", "done"); strings.Contains(r.out, "propertyNumber") || strings.Contains(r.out, "sanitization.validation") {
		t.Errorf("still missing:\n%s", r.out)
	}
	args[2] = "done"
	if r := run(t, "", Hooks{}, args...); r.code != ExitRefused {
		t.Errorf("the same again: exit code %d: %s", r.code, r.err)
	}
	if r := run(t, "", Hooks{}, "certificate", "complete", "good", "--key", "jane.pem", "--as", "validated", "--name", "J"); r.code != ExitUsage {
		t.Errorf("a validation without a result: exit code %d: %s", r.code, r.err)
	}
	if err := os.WriteFile("policy", prooftest.Policy(), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := run(t, "", Hooks{}, "certificate", "verify", "done", "--policy", "policy"); r.code != ExitVerify {
		t.Errorf("signed by somebody whom nobody knows: exit code %d", r.code)
	}
}

// auditWorld is a log with two drives and a lease.
func auditWorld(t *testing.T, s prooftest.Story) *prooftest.World {
	t.Helper()
	w := &prooftest.World{}
	for _, drive := range []string{prooftest.Drive1, strings.Repeat("b2", 16)} {
		w.Log(w.Next(proof.Record{V: proof.RecordVersion, Type: proof.ENROL, NodeID: prooftest.Node1, Bytes: 1 << 40,
			Space: []proof.Space{{Drive: drive, Extents: []proof.Range{{First: 0, Count: 1 << 14}}}}}), prooftest.Key("node1"))
	}
	s.In(w)
	return w
}

// TestAuditCommand reads a log from the daemon, a few records at a time, and names
// what is wrong with it.
func TestAuditCommand(t *testing.T) {
	f, sock := startFake(t)
	proofFiles(t, map[string][]byte{"policy": prooftest.Policy()})
	audit := func(w *prooftest.World, args ...string) (result, auditView) {
		t.Helper()
		f.mu.Lock()
		f.leaves, f.checkpoint = w.Leaves, []byte(w.Checkpoint(len(w.Leaves), prooftest.Witnesses...))
		f.mu.Unlock()
		r := run(t, sock, Hooks{}, append([]string{"log", "audit", "--policy", "policy", "-o", "json"}, args...)...)
		var v auditView
		if r.code == 0 || r.code == ExitVerify {
			if err := json.Unmarshal([]byte(r.out), &v); err != nil {
				t.Fatalf("exit code %d, %v: %s%s", r.code, err, r.out, r.err)
			}
		}
		return r, v
	}
	w := auditWorld(t, prooftest.Story{Resized: true})
	r, v := audit(w, "--keep", "kept")
	if r.code != 0 || !v.OK || v.Summary.Opened != 1 || v.Summary.Closed != 1 || v.Size != uint64(len(w.Leaves)) {
		t.Fatalf("exit code %d, %+v: %s", r.code, v, r.err)
	}
	if b, err := os.ReadFile("kept"); err != nil || string(b) != string(f.checkpoint) {
		t.Errorf("kept %q, %v", b, err)
	}
	if r, _ := audit(w, "--kept", "kept"); r.code != 0 {
		t.Errorf("with the checkpoint that was kept: exit code %d: %s", r.code, r.err)
	}
	// A rewritten log, which is in order by itself.
	if r, v := audit(auditWorld(t, prooftest.Story{Resized: true, Mode: proof.ModeSplit}), "--kept", "kept"); r.code != ExitVerify || !found(v, proof.FindSplitView) {
		t.Errorf("a rewritten log: exit code %d, %+v", r.code, v.Findings)
	}
	// A leaf that is not the tree's.
	bad := auditWorld(t, prooftest.Story{})
	bad.Leaves[1] = bad.Leaves[2]
	if r, v := audit(bad); r.code != ExitVerify || !found(v, proof.FindRoot) || !strings.Contains(r.err, "is not in order") {
		t.Errorf("a changed leaf: exit code %d, %+v", r.code, v.Findings)
	}
	r = run(t, sock, Hooks{}, "log", "audit", "--policy", "policy")
	if r.code != ExitVerify || !strings.Contains(r.out, "root  record") || !strings.Contains(r.out, "findings   ") {
		t.Errorf("for people: %s%s", r.out, r.err)
	}
	f.mu.Lock()
	f.leaves, f.checkpoint = nil, nil
	f.mu.Unlock()
	if r := run(t, sock, Hooks{}, "log", "audit", "--policy", "policy"); r.code != ExitNotFound || !strings.Contains(r.err, "it is empty") {
		t.Errorf("an empty log: exit code %d: %s", r.code, r.err)
	}
	if r := run(t, sock, Hooks{}, "log", "audit", "--policy", "policy", "--log", filepath.Join(t.TempDir(), "none")); r.code != ExitNotFound {
		t.Errorf("no folder: exit code %d: %s", r.code, r.err)
	}
}

func found(v auditView, code string) bool {
	for _, f := range v.Findings {
		if f.Code == code {
			return true
		}
	}
	return false
}

// TestLogShow browses.
func TestLogShow(t *testing.T) {
	f, sock := startFake(t)
	w := auditWorld(t, prooftest.Story{})
	f.leaves, f.checkpoint = append(w.Leaves[:len(w.Leaves):len(w.Leaves)], []byte("noise")), []byte(w.Checkpoint(len(w.Leaves), prooftest.Witnesses...))
	lines := func(args ...string) []string {
		t.Helper()
		r := run(t, sock, Hooks{}, append([]string{"log", "show"}, args...)...)
		if r.code != 0 {
			t.Fatalf("exit code %d: %s", r.code, r.err)
		}
		return strings.Split(strings.TrimSpace(r.out), "\n")[1:]
	}
	if got := lines(); len(got) != len(w.Leaves) || !strings.Contains(got[2], "OPEN") || !strings.Contains(got[2], prooftest.Lease1) {
		t.Errorf("all: %q", got)
	}
	if got := lines("--limit", "1"); len(got) != 1 || !strings.Contains(got[0], "CLOSE") {
		t.Errorf("the newest: %q", got)
	}
	if got := lines("--from", "2", "--limit", "1"); len(got) != 1 || !strings.Contains(got[0], "OPEN") {
		t.Errorf("from the third: %q", got)
	}
	if got := lines("--lease", prooftest.Lease1); len(got) != 2 {
		t.Errorf("of a lease: %q", got)
	}
	r := run(t, sock, Hooks{}, "log", "show", "2", "-o", "json")
	var v leafView
	if err := json.Unmarshal([]byte(r.out), &v); err != nil || v.Record == nil || v.Record.Type != proof.OPEN || len(v.KeyIDs) != 1 {
		t.Errorf("one: %v, %s", err, r.out)
	}
	if r := run(t, sock, Hooks{}, "log", "show", "99"); r.code != ExitNotFound {
		t.Errorf("beyond the end: exit code %d", r.code)
	}
	if v := leafViewOf(3, []byte("noise")); v.Error == "" || v.Record != nil {
		t.Errorf("noise: %+v", v)
	}
}

// TestDaemonLogBelievesNothing: a daemon that answers out of order, or with
// nothing, is found out.
func TestDaemonLogBelievesNothing(t *testing.T) {
	f, sock := startFake(t)
	f.leaves = [][]byte{[]byte("a"), []byte("b"), []byte("c")}
	a := newApp(Hooks{}, Streams{Getenv: func(string) string { return "" }})
	a.addr = sock
	var got []string
	read := func(to uint64) error {
		got = nil
		return (&logFlag{}).read(a, func(ctx context.Context, src logSource) error {
			return src.Leaves(ctx, 0, to, func(_ uint64, leaf []byte) error { got = append(got, string(leaf)); return nil })
		})
	}
	if err := read(3); err != nil || strings.Join(got, "") != "abc" {
		t.Errorf("read %q, %v", got, err)
	}
	if err := read(4); err == nil || !strings.Contains(err.Error(), "leaf 3") {
		t.Errorf("beyond the end: %v", err)
	}
}
