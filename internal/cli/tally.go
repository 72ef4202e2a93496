package cli

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// A tally shows how far a count has come: on a terminal a bar in one line that
// is written over, elsewhere a line for each tenth. Counts that are done within
// a second show nothing. It belongs to one goroutine.
type tally struct {
	w        io.Writer
	terminal bool
	what     string
	of       uint64
	now      func() time.Time

	began, drawn time.Time
	tenth        uint64
	wide         int
}

// tally writes to standard error, so that a result can be put elsewhere.
func (a *app) tally(what string, of uint64) *tally {
	t := &tally{w: a.err, terminal: a.terminal(a.err) && a.getenv("TERM") != "dumb", what: what, of: of, now: time.Now}
	t.began = t.now()
	return t
}

// at takes note that n are done. It looks at the clock each 256.
func (t *tally) at(n uint64) {
	if n%256 != 0 && n != t.of {
		return
	}
	now := t.now()
	if now.Sub(t.began) < time.Second || t.of == 0 {
		return
	}
	left := time.Duration(float64(now.Sub(t.began)) / float64(n) * float64(t.of-n)).Round(time.Second)
	if !t.terminal {
		if tenth := n * 10 / t.of; tenth > t.tenth {
			t.tenth = tenth
			fmt.Fprintf(t.w, "%3d %%  %d of %d %s, about %s left\n", tenth*10, n, t.of, t.what, left)
		}
		return
	}
	if now.Sub(t.drawn) < 100*time.Millisecond {
		return
	}
	t.drawn = now
	const wide = 24
	full := int(n * wide / t.of)
	line := fmt.Sprintf("%s%s %3d %%  %s left  %d of %d %s", strings.Repeat("█", full), strings.Repeat("░", wide-full), n*100/t.of, left, n, t.of, t.what)
	chars := utf8.RuneCountInString(line)
	fmt.Fprintf(t.w, "\r%s%s", line, strings.Repeat(" ", max(0, t.wide-chars)))
	t.wide = chars
}

// end takes the bar away.
func (t *tally) end() {
	if t.wide > 0 {
		fmt.Fprintf(t.w, "\r%s\r", strings.Repeat(" ", t.wide))
	}
}
