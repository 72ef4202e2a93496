package translog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"vacate/proof"
)

// ErrClosed says that the log was closed.
var ErrClosed = errors.New("the log is closed")

// A call is one call of Add, on its way to the committer and back.
type call struct {
	leaves []Leaf
	out    []uint64 // an index for each leaf
	err    error
	done   chan struct{}
}

// Add implements [Adder].
func (l *Log) Add(ctx context.Context, leaves []Leaf) ([]uint64, error) {
	if len(leaves) > MaxAdd {
		return nil, fmt.Errorf("adding %d records to the log: more than %d at once", len(leaves), MaxAdd)
	}
	for _, leaf := range leaves {
		if err := l.admit(leaf); err != nil {
			return nil, err
		}
	}
	if len(leaves) == 0 {
		return nil, ctx.Err()
	}
	c := &call{leaves: leaves, done: make(chan struct{})}
	select {
	case l.calls <- c:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-l.closing:
		return nil, ErrClosed
	}
	select {
	case <-c.done:
		return c.out, c.err
	case <-ctx.Done():
		return nil, fmt.Errorf("adding records to the log, which may have them: %w", ctx.Err())
	}
}

// admit checks what can be said of a leaf without the log.
func (l *Log) admit(leaf Leaf) error {
	refuse := func(err error) error {
		return &RefusedError{leaf.NodeID, leaf.NodeSeq, err.Error()}
	}
	r, err := record(leaf.Envelope)
	switch {
	case err != nil:
		return refuse(err)
	case r.NodeID != leaf.NodeID || r.NodeSeq != leaf.NodeSeq:
		return refuse(fmt.Errorf("it is record %d of node %s", r.NodeSeq, r.NodeID))
	case l.cfg.Admit == nil:
		return nil
	}
	if err := l.cfg.Admit(leaf); err != nil {
		return refuse(err)
	}
	return nil
}

// record opens an envelope. It verifies no signature.
func record(envelope []byte) (proof.Record, error) {
	e, err := proof.ParseEnvelope(envelope)
	if err != nil {
		return proof.Record{}, err
	}
	return proof.ParsePayload(e.Payload)
}

// identity says whose record an envelope holds, and which.
func identity(envelope []byte) (node string, seq uint64, err error) {
	r, err := record(envelope)
	return r.NodeID, r.NodeSeq, err
}

// commit is the committer: it alone adds to the tree and to the index. It ends
// when the log is closed.
func (l *Log) commit() {
	defer close(l.done)
	flush := time.NewTicker(flushEvery)
	defer flush.Stop()
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	var first *call // taken, but not in the batch before
	for {
		if first == nil {
			select {
			case <-l.closing:
				return
			case <-flush.C:
				l.flush(1)
				continue
			case <-sweep.C:
				l.sweepHeads(sweepEvery)
				continue
			case first = <-l.calls:
			}
		}
		var calls []*call
		calls, first = l.gather(first)
		l.commitCalls(calls)
		l.flush(flushAt)
	}
}

// gather takes the calls that wait, up to a batch; next does not fit any more.
func (l *Log) gather(first *call) (calls []*call, next *call) {
	calls = append(calls, first)
	n := len(first.leaves)
	for {
		select {
		case c := <-l.calls:
			if n += len(c.leaves); n > MaxAdd {
				return calls, c
			}
			calls = append(calls, c)
		default:
			return calls, nil
		}
	}
}

// flush writes the index where it is least or more records behind.
func (l *Log) flush(least int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.index.fresh) < least {
		return
	}
	if err := l.index.flush(); err != nil { // the tree has it all: it is read again at the next start
		l.cfg.Log.Error("the log's index cannot be written", "error", err.Error())
	}
}

// commitCalls adds what calls bring, and answers them.
func (l *Log) commitCalls(calls []*call) {
	defer func() {
		for _, c := range calls {
			close(c.done)
		}
	}()
	fail := func(err error) {
		for _, c := range calls {
			if c.err == nil {
				c.out, c.err = nil, err
			}
		}
	}
	ctx := context.Background()
	if l.behind {
		if err := l.catchUp(ctx); err != nil {
			fail(fmt.Errorf("reading the log's tree after an error: %w", err))
			return
		}
	}
	b := &batch{log: l, next: map[string]uint64{}, places: map[string]int{}}
	for _, c := range calls {
		b.take(ctx, c)
	}
	if len(b.leaves) == 0 {
		return
	}
	if err := l.write(b); err != nil {
		l.behind = true
		fail(fmt.Errorf("adding records to the log, which may have them: %w", err))
	}
}

// write adds a batch to the tree and then to the index.
func (l *Log) write(b *batch) error {
	if err := l.writable(); err != nil {
		return err
	}
	n, err := l.reader.IntegratedSize(context.Background())
	if err != nil {
		return fmt.Errorf("reading the tree's size: %w", err)
	}
	if n != b.first {
		return fmt.Errorf("the tree has %d records, and had %d: somebody else writes to the log's folder", n, b.first)
	}
	first, err := l.append(b.leaves)
	if err != nil {
		return err
	}
	if first != b.first {
		return fmt.Errorf("records came to index %d, not %d: somebody else writes to the log's folder", first, b.first)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, leaf := range b.leaves {
		if err := l.index.add(leaf.NodeID, leaf.NodeSeq, leaf.Envelope); err != nil {
			return err
		}
	}
	return nil
}

// A batch is what several calls add together. It belongs to the committer.
type batch struct {
	log    *Log
	first  uint64 // index of the first leaf
	leaves []Leaf
	next   map[string]uint64 // node: the number that comes next, where the batch has records of it
	places map[string]int    // place: which of leaves
}

// take decides about the leaves of a call, and answers with their indices. It
// refuses all of them or none.
func (b *batch) take(ctx context.Context, c *call) {
	b.first = b.log.index.size
	trial := &batch{log: b.log, first: b.first + uint64(len(b.leaves)), next: map[string]uint64{}, places: map[string]int{}}
	out := make([]uint64, len(c.leaves))
	for i, leaf := range c.leaves {
		at, err := b.decide(ctx, trial, leaf)
		if err != nil {
			c.err = err
			return
		}
		out[i] = at
	}
	for key, i := range trial.places {
		b.places[key] = len(b.leaves) + i
	}
	for node, seq := range trial.next {
		b.next[node] = seq
	}
	b.leaves = append(b.leaves, trial.leaves...)
	c.out = out
}

// decide returns the index of a leaf: the one that it has, or the one that it
// gets with trial, which it is appended to.
func (b *batch) decide(ctx context.Context, trial *batch, leaf Leaf) (uint64, error) {
	key := place(leaf.NodeID, leaf.NodeSeq)
	for _, t := range []*batch{b, trial} {
		if i, ok := t.places[key]; ok {
			return same(leaf, t.first+uint64(i), t.leaves[i].Envelope)
		}
	}
	at, ok, err := b.log.index.find(leaf.NodeID, leaf.NodeSeq)
	if err != nil {
		return 0, err
	}
	if ok {
		var held []byte
		size := b.log.index.size
		err := b.log.tiles.leaves(ctx, at, at+1, size, func(_ uint64, l []byte) error {
			held = bytes.Clone(l)
			return nil
		})
		if err != nil {
			return 0, err
		}
		return same(leaf, at, held)
	}
	if want, known := b.want(trial, leaf.NodeID); known && leaf.NodeSeq != want {
		return 0, &GapError{leaf.NodeID, leaf.NodeSeq, want}
	}
	trial.places[key] = len(trial.leaves)
	trial.next[leaf.NodeID] = leaf.NodeSeq + 1
	trial.leaves = append(trial.leaves, leaf)
	return trial.first + uint64(len(trial.leaves)) - 1, nil
}

// want is the number of a node that comes next after what trial, b and the log
// have; the log takes any where none of them has records of it.
func (b *batch) want(trial *batch, node string) (seq uint64, known bool) {
	for _, t := range []*batch{trial, b} {
		if seq, known := t.next[node]; known {
			return seq, true
		}
	}
	c, known := b.log.index.chains[node]
	return c.Next, known
}

func same(leaf Leaf, at uint64, held []byte) (uint64, error) {
	if !bytes.Equal(leaf.Envelope, held) {
		return 0, &ForkError{leaf.NodeID, leaf.NodeSeq, at}
	}
	return at, nil
}
