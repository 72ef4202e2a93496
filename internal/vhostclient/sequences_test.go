package vhostclient

import (
	"strings"
	"testing"
)

// TestSequences plays each order against QEMU's storage daemon, which does not look
// at where the config space is said to begin.
func TestSequences(t *testing.T) {
	socket := startQSD(t, 16<<20, 2)
	for _, s := range Sequences {
		t.Run(s.Name, func(t *testing.T) {
			queues := 2
			if s.MaxQueues != 0 {
				queues = s.MaxQueues
			}
			c := dialTest(t, socket, Options{Sequence: s, Queues: queues})
			writeRead(t, c)
			if s.Stop != nil {
				if err := c.Restart(); err != nil {
					t.Fatal(err)
				}
				writeRead(t, c)
			}
		})
	}
}

// writeRead does what every frontend can.
func writeRead(t *testing.T, c *Client) {
	t.Helper()
	p := []byte(strings.Repeat("a sequence's sector ", 512))[:8192]
	if _, err := c.WriteAt(p, 512); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(p))
	if _, err := c.ReadAt(got, 512); err != nil || string(got) != string(p) {
		t.Fatalf("what was written is not what is read (%v)", err)
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}
