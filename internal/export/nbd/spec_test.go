package nbd

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// TestSpecVectors plays the conversation of docs/spec/nbd.md.
func TestSpecVectors(t *testing.T) {
	page, err := os.ReadFile("../../../docs/spec/nbd.md")
	if err != nil {
		t.Fatal(err)
	}
	_, vectors, ok := strings.Cut(string(page), "## Vectors")
	if !ok {
		t.Fatal("the page has no vectors")
	}
	c := rawClient{t, connect(t, alone(t, newMemory(1<<20).config()))}
	said := 0
	for line := range strings.Lines(vectors) {
		who, digits, _ := strings.Cut(strings.TrimSpace(line), " ")
		digits = strings.ReplaceAll(digits, "ZEROES512", strings.Repeat("00", 512))
		switch who {
		case "C":
			c.write(hexBytes(digits))
		case "S":
			want := hexBytes(digits)
			if got := c.read(len(want)); !bytes.Equal(got, want) {
				t.Errorf("the server says\n%x, want\n%x", got, want)
			}
		default:
			continue
		}
		said++
	}
	c.wantEnd()
	if said != 27 {
		t.Errorf("the page has %d vectors, want 27", said)
	}
}
