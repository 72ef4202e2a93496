package cli

import (
	"crypto/rand"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"vacate/internal/keyshare"
	"vacate/internal/xts"
	"vacate/proof"
	"vacate/proof/prooftest"
)

// TestAuditCiphertext: what lies on the drive encrypted under the committed key
// passes, and its report goes into verification; another key, plaintext and another
// lease's receipt do not.
func TestAuditCiphertext(t *testing.T) {
	const blocks = 8
	f, sock := startFake(t)
	c := prooftest.Tell(prooftest.Story{Released: true})
	volume := make([]byte, blocks*4096)
	rand.Read(volume[4096:]) // the first block was never written
	drive := make([]byte, len(volume))
	var s xts.Schedule
	if err := s.Expand((*[64]byte)(c.Key)); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(blocks) {
		s.Encrypt(drive[i*4096:][:4096], volume[i*4096:][:4096], 4096, i)
	}
	f.raw = func(numbers []uint64) (out [][]byte) {
		for _, n := range numbers {
			if n == 0 {
				out = append(out, nil)
				continue
			}
			out = append(out, drive[n*4096:][:4096])
		}
		return out
	}
	key := [64]byte(c.Key)
	released := 0
	f.seal = func(recipient []byte) []byte {
		released++
		b, err := keyshare.SealRelease(recipient, prooftest.Lease1, &key, nil)
		if err != nil {
			t.Error(err)
		}
		return b
	}
	other := prooftest.Tell(prooftest.Story{Mode: proof.ModeSplit})
	proofFiles(t, map[string][]byte{"policy": prooftest.Policy(), "receipt": receiptOf(t, c), "split": receiptOf(t, other), "volume": volume, "bundle": c.Bytes(),
		"nobody": []byte("quorum none\n")})
	audit := func(args ...string) (result, cipherAuditView) {
		t.Helper()
		r := run(t, sock, Hooks{}, append([]string{"certificate", "audit-ciphertext", prooftest.Lease1, "--volume", "volume", "-o", "json"}, args...)...)
		var v cipherAuditView
		if r.out != "" {
			if err := json.Unmarshal([]byte(r.out), &v); err != nil {
				t.Fatal(err)
			}
		}
		return r, v
	}
	r, v := audit("--policy", "policy", "--receipt", "receipt")
	if r.code != 0 || !v.OK || v.Sampled != blocks-1 || v.Matched != blocks-1 || v.Unwritten != 1 || v.Of != blocks {
		t.Fatalf("exit code %d, %+v: %s", r.code, v, r.err)
	}
	r = run(t, "", Hooks{}, "certificate", "verify", "bundle", "--policy", "policy", "--ciphertext-audit", prooftest.Lease1+".audit.json")
	if r.code != 0 || !strings.Contains(r.out, proof.ClaimAudited) {
		t.Errorf("its report: exit code %d: %s%s", r.code, r.out, r.err)
	}
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--policy", "policy"}, ExitUsage, "--receipt is missing"},
		{[]string{"--policy", "nobody", "--receipt", "receipt"}, ExitVerify, "names no node"},
		{[]string{"--policy", "policy", "--receipt", "policy"}, ExitVerify, "receipt"},
		{[]string{"--policy", "policy", "--receipt", "split"}, ExitUsage, "add --share"},
	} {
		if r, _ := audit(append(tt.args, "--force")...); r.code != tt.code || !strings.Contains(r.err, tt.want) {
			t.Errorf("%q: exit code %d, %s", tt.args, r.code, r.err)
		}
	}
	asked := released
	if r, _ := audit("--policy", "policy", "--receipt", "receipt"); r.code != ExitRefused || released != asked {
		t.Errorf("over a report: exit code %d, %s; the key was asked for %d times", r.code, r.err, released-asked)
	}
	drive[3*4096]++
	if r, v := audit("--policy", "policy", "--receipt", "receipt", "--force"); r.code != ExitVerify || v.OK || len(v.Differ) != 1 || v.Differ[0] != 3 {
		t.Errorf("plaintext on the drive: exit code %d, %+v: %s", r.code, v, r.err)
	}
	key[5]++
	if r, _ := audit("--policy", "policy", "--receipt", "receipt", "--force"); r.code != ExitVerify || !strings.Contains(r.err, "what the node committed to") {
		t.Errorf("another key: exit code %d: %s", r.code, r.err)
	}
	if err := os.Remove(prooftest.Lease1 + ".audit.json"); err != nil {
		t.Error(err)
	}
}
