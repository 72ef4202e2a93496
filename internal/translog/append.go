package translog

import (
	"context"
	"fmt"
	"math"

	"github.com/transparency-dev/tessera"
	"golang.org/x/mod/sumdb/note"
)

// A driver makes appenders of one tree: tessera's POSIX driver.
type driver interface {
	Appender(context.Context, *tessera.AppendOptions) (*tessera.Appender, tessera.LogReader, error)
}

// never is a time of tessera's that does not come.
const never = math.MaxInt64

// append adds leaves to the tree, in order, in one step: after an error the tree has
// all of them or none. It returns the index of the first.
//
// tessera gathers what it is given, and takes a step when a batch is full or old. A
// batch that is cut by its age is two steps, of which the first may fail and the
// second not; then records would stand in the tree without those before them. So
// every batch has an appender of its own, which knows no age, and of which it is full.
// A single record goes to the one that publishes checkpoints: that is told of it at
// once, and looks for what others added every [Config.Interval].
func (l *Log) append(leaves []Leaf) (first uint64, err error) {
	to := l.publisher
	if len(leaves) > 1 {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		if to, _, err = l.driver.Appender(ctx, batchOptions(l.signer, uint(len(leaves)))); err != nil {
			return 0, err
		}
	}
	futures := make([]tessera.IndexFuture, len(leaves))
	for i, leaf := range leaves {
		futures[i] = to.Add(context.Background(), tessera.NewEntry(leaf.Envelope))
	}
	for i, future := range futures {
		at, err := future()
		switch {
		case err != nil:
			return 0, err
		case i == 0:
			first = at.Index
		case at.Index != first+uint64(i):
			return 0, fmt.Errorf("record %d of a batch came to index %d, the first to %d", i, at.Index, first)
		}
	}
	return first, nil
}

// batchOptions are those of an appender for one batch of n records, which publishes
// nothing and removes nothing.
func batchOptions(s note.Signer, n uint) *tessera.AppendOptions {
	return tessera.NewAppendOptions().
		WithCheckpointSigner(s).
		WithBatching(n, never).
		WithCheckpointInterval(never).
		WithCheckpointRepublishInterval(0).
		WithGarbageCollectionInterval(0)
}
