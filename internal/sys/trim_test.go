package sys

import (
	"os"
	"strings"
	"testing"
)

func rssFile(t *testing.T) (kib int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "RssFile:"); ok {
			for _, c := range strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")) {
				kib = kib*10 + int(c-'0')
			}
		}
	}
	return kib
}

// What is given back is less than was there, and the program goes on.
func TestTrimProgram(t *testing.T) {
	before := rssFile(t)
	if err := TrimProgram(); err != nil {
		t.Fatal(err)
	}
	if after := rssFile(t); before == 0 || after >= before {
		t.Errorf("%d KiB of files' pages before, %d after", before, after)
	}
}
