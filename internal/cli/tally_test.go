package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// TestTally: on a terminal a bar that is taken away at the end, elsewhere a line for
// each tenth, and nothing at all where it is done within a second.
func TestTally(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		for _, step := range []time.Duration{time.Millisecond / 10, 10 * time.Millisecond} {
			var out bytes.Buffer
			clock := time.Unix(0, 0)
			bar := &tally{w: &out, terminal: terminal, what: "records", of: 2560, began: clock, now: func() time.Time { return clock }}
			for n := range uint64(2560) {
				clock = clock.Add(step)
				bar.at(n + 1)
			}
			bar.end()
			got := out.String()
			switch lines := strings.Count(got, "\n"); {
			case step < time.Millisecond && got != "":
				t.Errorf("terminal %v: what takes %v shows %q", terminal, 2560*step, got)
			case step < time.Millisecond:
			case terminal && (lines != 0 || !strings.Contains(got, "█") || !strings.HasSuffix(got, " \r") || !strings.Contains(got, "13s left  1280 of 2560 records")):
				t.Errorf("a bar: %q", got)
			case !terminal && (lines != 10 || !strings.Contains(got, " 50 %  1280 of 2560 records, about 13s left\n") || strings.Contains(got, "\r")):
				t.Errorf("lines: %q", got)
			}
		}
	}
	var out bytes.Buffer
	none := &tally{w: &out, terminal: true, now: time.Now}
	none.at(0)
	none.end()
	if out.Len() != 0 {
		t.Errorf("of nothing: %q", out.String())
	}
}
