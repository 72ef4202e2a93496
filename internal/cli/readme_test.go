package cli

import (
	"os"
	"strings"
	"testing"
)

// TestExamples runs what the README and the guides say about examples/, and each
// has to come out as they say.
func TestExamples(t *testing.T) {
	t.Chdir("../..")
	for _, file := range []string{"README.md", "docs/guide/auditor.md"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		for line := range strings.Lines(string(b)) {
			command, said, _ := strings.Cut(strings.TrimSpace(line), "#")
			args := strings.Fields(command)
			if len(args) < 2 || args[0] != "vacate" || !strings.Contains(command, "examples/") {
				continue
			}
			seen++
			want := ExitOK
			if strings.Contains(said, "exit code 5") {
				want = ExitVerify
			}
			r := run(t, "/nonexistent", Hooks{}, args[1:]...)
			if r.code != want {
				t.Errorf("%s: %s: exit code %d, want %d\n%s%s", file, command, r.code, want, r.out, r.err)
			}
			if want == ExitVerify && !strings.Contains(r.err, "NOT valid: it fails at step ") {
				t.Errorf("%s: %s names no step: %s", file, command, r.err)
			}
		}
		if seen < 2 {
			t.Errorf("%s shows %d examples", file, seen)
		}
	}
	r := run(t, "", Hooks{}, "certificate", "verify", "examples/good.json", "--policy", "examples/policy", "--opened", "examples/receipt.json")
	if r.code != 0 {
		t.Errorf("with the receipt: %s", r.err)
	}
}
