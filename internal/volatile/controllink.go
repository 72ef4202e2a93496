package volatile

import (
	"fmt"
	"os"
)

// A ControlLink is control's end of its own socket to the keeper, which speaks
// the messages of [Link]. Its methods may be called from any goroutine.
type ControlLink struct {
	*line
}

// NewControlLink uses the socket f and closes it: control's descriptor from its
// keeper. Close ends the link.
func NewControlLink(f *os.File) (*ControlLink, error) {
	l, err := newLine(f, nil)
	if err != nil {
		return nil, err
	}
	return &ControlLink{line: l}, nil
}

// Engine gives each new connection to an engine, newest only: one that nobody
// took is closed when the next comes, since its engine is gone. It is closed
// when the keeper is gone, or the link down.
func (l *ControlLink) Engine() <-chan *os.File { return l.conns }

// Ready tells the keeper that this control has recovered and serves.
func (l *ControlLink) Ready() error {
	if err := l.tell(Message{Kind: KindReady}); err != nil {
		return fmt.Errorf("telling the keeper that control is up: %w", err)
	}
	return nil
}

// Stop tells the keeper that the daemon's stop is granted: it ends everything.
func (l *ControlLink) Stop() error {
	if err := l.tell(Message{Kind: KindStop}); err != nil {
		return fmt.Errorf("telling the keeper to stop: %w", err)
	}
	return nil
}

// Upgrade asks the keeper to replace the running binary by the one that lies in
// its place, and waits until it has begun or refused. ENOEXEC: the new binary
// does not start. EBUSY: an upgrade is under way.
func (l *ControlLink) Upgrade() error {
	if a := l.call(Message{Kind: KindUpgrade}, nil); a.err != nil {
		return fmt.Errorf("asking the keeper for an upgrade: %w", a.err)
	}
	return nil
}

// Close ends the link and waits for its goroutine. It may be repeated.
func (l *ControlLink) Close() error { return l.close() }
