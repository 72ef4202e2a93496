package control

import (
	"context"
	"fmt"
	"sync"
	"time"

	"vacate/internal/translog"
)

// reopenLog is how soon a log that could not be opened is tried again.
const reopenLog = time.Second

// A lateLog is the log that the daemon keeps itself, opened when it is needed
// first: neither the start nor any erasure waits for it, and a folder that is full or
// damaged is tried again and again. It is a notary.Log.
type lateLog struct {
	open func(ctx context.Context) (*translog.Log, error)

	mu    sync.Mutex // held while it is opened
	log   *translog.Log
	why   error // the last try
	tried time.Time
	ended bool
}

func (l *lateLog) get(ctx context.Context) (*translog.Log, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.ended:
		return nil, translog.ErrClosed
	case l.log != nil:
		return l.log, nil
	case l.why != nil && time.Since(l.tried) < reopenLog:
		return nil, l.why
	}
	log, err := l.open(ctx)
	l.tried = time.Now()
	if err != nil {
		l.why = fmt.Errorf("opening the log: %w", err)
		return nil, l.why
	}
	l.log, l.why = log, nil
	return log, nil
}

// Add implements notary.Log, as do the methods below.
func (l *lateLog) Add(ctx context.Context, leaves []translog.Leaf) ([]uint64, error) {
	log, err := l.get(ctx)
	if err != nil {
		return nil, err
	}
	return log.Add(ctx, leaves)
}

func (l *lateLog) Checkpoint(ctx context.Context) ([]byte, error) {
	log, err := l.get(ctx)
	if err != nil {
		return nil, err
	}
	return log.Checkpoint(ctx)
}

func (l *lateLog) Proof(ctx context.Context, index, size uint64) ([][32]byte, error) {
	log, err := l.get(ctx)
	if err != nil {
		return nil, err
	}
	return log.Proof(ctx, index, size)
}

func (l *lateLog) Consistency(ctx context.Context, from, to uint64) ([][32]byte, error) {
	log, err := l.get(ctx)
	if err != nil {
		return nil, err
	}
	return log.Consistency(ctx, from, to)
}

func (l *lateLog) Leaf(ctx context.Context, index uint64) ([]byte, error) {
	log, err := l.get(ctx)
	if err != nil {
		return nil, err
	}
	return log.Leaf(ctx, index)
}

func (l *lateLog) Leaves(ctx context.Context, from, to uint64, each func(uint64, []byte) error) error {
	log, err := l.get(ctx)
	if err != nil {
		return err
	}
	return log.Leaves(ctx, from, to, each)
}

// Close closes the log, if it was opened. Nothing opens it any more.
func (l *lateLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	if l.log == nil {
		return nil
	}
	return l.log.Close()
}
