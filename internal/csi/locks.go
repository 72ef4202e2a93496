package csi

import (
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// locks admit one call at a time for each volume, and for each name of a volume to
// come. A second one is not kept waiting: the specification has it try again
// (ABORTED, "operation pending for volume").
type locks struct {
	mu   sync.Mutex
	held map[string]bool // guarded by mu
}

// take takes what a call is about, until release is called.
func (l *locks) take(what string) (release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held[what] {
		return nil, status.Errorf(codes.Aborted, "another call about %s has not ended yet", what)
	}
	if l.held == nil {
		l.held = make(map[string]bool)
	}
	l.held[what] = true
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.held, what)
	}, nil
}
