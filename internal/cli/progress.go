package cli

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"vacate/internal/bench"
)

// A progress shows how far a long command is: on a terminal a bar with the time
// left, in one line that is written over; elsewhere a line for each step.
type progress struct {
	w        io.Writer
	terminal bool
	now      func() time.Time

	mu    sync.Mutex
	event bench.Event
	since time.Time     // of event
	shown time.Duration // of the planned time; a guess that went too far waits
	wide  int           // characters of the last line, to be written over
	done  chan struct{}
	gone  chan struct{}
}

// progress writes to standard error, so that a result can be put elsewhere.
func (a *app) progress() *progress {
	p := &progress{w: a.err, terminal: a.terminal(a.err) && a.getenv("TERM") != "dumb", now: time.Now,
		done: make(chan struct{}), gone: make(chan struct{})}
	go p.run()
	return p
}

// run draws the line anew until end: steps are longer than an eye waits.
func (p *progress) run() {
	defer close(p.gone)
	if !p.terminal {
		<-p.done
		return
	}
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-p.done:
			p.mu.Lock()
			fmt.Fprintf(p.w, "\r%s\r", strings.Repeat(" ", p.wide))
			p.mu.Unlock()
			return
		case <-t.C:
			p.draw()
		}
	}
}

// step takes note of what is done next.
func (p *progress) step(e bench.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.terminal && e.What != p.event.What {
		fmt.Fprintf(p.w, "%3d %%  %s, about %s left\n", percent(e.Begin, e.Total), e.What, bench.FormatLeft(e.Total-e.Begin))
	}
	p.event, p.since = e, p.now()
}

func percent(d, total time.Duration) int64 {
	if total <= 0 {
		return 0
	}
	return int64(d) * 100 / int64(total)
}

func (p *progress) draw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.event
	if e.What == "" {
		return
	}
	at := max(p.shown, min(e.Begin+p.now().Sub(p.since), e.End))
	p.shown = at
	const wide = 24
	full := int(percent(at, e.Total)) * wide / 100
	line := fmt.Sprintf("%s%s %3d %%  %s left  %s", strings.Repeat("█", full), strings.Repeat("░", wide-full),
		percent(at, e.Total), bench.FormatLeft(e.Total-at), e.What)
	n := utf8.RuneCountInString(line)
	fmt.Fprintf(p.w, "\r%s%s", line, strings.Repeat(" ", max(0, p.wide-n)))
	p.wide = n
}

// end takes the line away.
func (p *progress) end() {
	close(p.done)
	<-p.gone
}
