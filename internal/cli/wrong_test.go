package cli

import (
	"errors"
	"os"
	"strings"
	"testing"

	"vacate/proof"
	"vacate/proof/prooftest"
)

// TestWrongFiles: a file that is another than the command wants is named, once,
// with what to do; and nothing is begun.
func TestWrongFiles(t *testing.T) {
	c := prooftest.Tell(prooftest.Story{})
	proofFiles(t, map[string][]byte{"policy": prooftest.Policy(), "bundle": c.Bytes(), "text": []byte("# A page\n\nwith\nlines\n"),
		"cut": []byte(`{"v":1,"leaseId":"` + prooftest.Lease1 + `","sealed":"AAAA"}`), "quiet": []byte("quorum none\n")})
	if r := run(t, "", Hooks{}, "keys", "make", "jane.pem", "--name", "jane"); r.code != 0 {
		t.Fatal(r.err)
	}
	const nowhere = "no/such/folder"
	for _, tt := range []struct {
		args string
		code int
		want string
	}{
		{"certificate verify text --policy policy", ExitVerify, "text is NOT valid: it fails at step 1"},
		{"certificate verify absent --policy policy", ExitNotFound, "there is no file absent"},
		{"certificate verify . --policy policy", ExitUsage, "is a folder"},
		{"certificate verify bundle --policy policy --html " + nowhere + "/page.html", ExitFailed, "no file can be made in " + nowhere},
		{"certificate complete bundle --key jane.pem --as validated --name Jane", ExitUsage, "--result"},
		{"certificate complete bundle --key jane.pem --name Jane --result accepted", ExitUsage, "--as validated"},
		{"lease open --size 4096 --tenant-share cut", ExitUsage, "no newline at its end"},
		{"lease open --size 4096 --receipt bundle", ExitRefused, "nothing was done"},
		{"tenant close acme --out bundle", ExitRefused, "nothing was done"},
		{"keys make " + nowhere + "/k.pem --name jane", ExitFailed, "no file can be made in " + nowhere},
		{"log node-lost " + prooftest.Node1 + " --policy policy --operator-key absent --log https://localhost:1", ExitNotFound, "there is no operator's key"},
		{"log audit --policy policy --log http://127.0.0.1:1 --keep " + nowhere + "/checkpoint", ExitFailed, "no file can be made in " + nowhere},
		{"log audit --policy policy --log http://127.0.0.1:1", ExitFailed, "check the log's URL"},
		{"log serve --dir d --origin o --policy policy --listen :0 --cert c --key k --client-ca a --witnesses text", ExitUsage, "is no word of a policy"},
		{"log serve --dir d --origin o --policy policy --listen :0 --cert c --key k --client-ca a --witnesses quiet", ExitUsage, "names no quorum"},
	} {
		r := run(t, "", Hooks{}, strings.Fields(tt.args)...)
		if r.code != tt.code || !strings.Contains(r.err, tt.want) || strings.Count(r.err, "error:") != 1 || strings.Contains(r.err, "%!") || strings.Contains(r.err, ".vacate-") {
			t.Errorf("%s: exit code %d, %q\nwant %d and %q, once", tt.args, r.code, r.err, tt.code, tt.want)
		}
	}
	if _, err := os.Lstat("d"); err == nil {
		t.Error("a log was begun without the witnesses that it was to ask")
	}
}

// TestNextOfRejections: what is done about a certificate depends on what it lacks.
func TestNextOfRejections(t *testing.T) {
	for want, v := range map[string]verifyView{
		"when the witnesses have signed": {Step: int(proof.StepWitnessed), Error: "record 1: none"},
		"add its line to your policy":    {Step: int(proof.StepAnnex), Error: "completion of \"Jane\": the policy pins no person's key"},
		"keep this one as evidence":      {Step: int(proof.StepAnnex), Error: "the annex is not the one that the record names"},
	} {
		var ee *ExitError
		if err := errRejected(v); !errors.As(err, &ee) || ee.Code != ExitVerify || !strings.Contains(ee.Next, want) {
			t.Errorf("%s: next %q, want %q", v.Error, ee.Next, want)
		}
	}
}

// TestPolicyShowsQuorum: who has to sign is what a policy is worth.
func TestPolicyShowsQuorum(t *testing.T) {
	proofFiles(t, map[string][]byte{"policy": prooftest.Policy()})
	r := run(t, "", Hooks{}, "policy", "show", "policy")
	for _, want := range []string{"group ", "quorum:", "has to sign"} {
		if r.code != 0 || !strings.Contains(r.out, want) {
			t.Errorf("exit code %d, without %q: %s%s", r.code, want, r.out, r.err)
		}
	}
	for line := range strings.Lines(string(prooftest.Policy())) {
		if f := strings.Fields(line); f[0] == "tpm" && !strings.Contains(r.out, f[2]) {
			t.Errorf("without the TPM's key: %s", r.out)
		}
	}
}
