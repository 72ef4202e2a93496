package journal

import (
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"go.etcd.io/bbolt"
)

// A Bolt is the journal in a bbolt file.
//
// One goroutine, the committer, writes: it takes up all calls that are waiting
// and runs them in one transaction, so that sixty-four opens at once cost one
// fsync and not sixty-four. A call that refuses does not disturb the others: the
// transaction is rolled back and run again without it.
type Bolt struct {
	opt    Options
	db     *bbolt.DB
	nodeID string
	calls  chan *call
	quit   chan struct{} // closed by Close
	ended  chan struct{} // closed when the committer has ended

	appended chan struct{} // holds a value when a record was written

	close sync.Once

	mu       sync.Mutex
	broken   error // why nothing can be written any more
	panicked bool  // bbolt may still hold its own locks
}

// A call is one change that waits for the committer.
type call struct {
	op   string
	fn   func(*tables) error
	done chan error
}

// batchCalls bounds the calls that share a transaction.
const batchCalls = 128

var errClosed = unchanged(errors.New("journal: closed"))

// unchanged adds ErrUnchanged to err without changing its text.
func unchanged(err error) error { return &unchangedError{err} }

type unchangedError struct{ err error }

func (e *unchangedError) Error() string   { return e.err.Error() }
func (e *unchangedError) Unwrap() []error { return []error{e.err, ErrUnchanged} }

// NodeID implements [Store].
func (b *Bolt) NodeID() string { return b.nodeID }

// Close ends the committer and gives up the folder. Calls that wait are refused.
func (b *Bolt) Close() error {
	var err error
	b.close.Do(func() {
		close(b.quit)
		<-b.ended
		b.mu.Lock()
		stuck := b.panicked
		b.mu.Unlock()
		if !stuck { // otherwise it could wait for ever; the process is about to end
			err = b.db.Close()
		}
	})
	return err
}

// update runs fn in a transaction that is durable when update returns nil. fn
// may run more than once, and must set what it returns anew each time.
func (b *Bolt) update(op string, fn func(*tables) error) error {
	c := &call{op: op, fn: fn, done: make(chan error, 1)}
	select {
	case b.calls <- c:
	case <-b.quit:
		return errClosed
	}
	select {
	case err := <-c.done:
		return err
	case <-b.ended:
	}
	select {
	case err := <-c.done: // it was among the last
		return err
	default:
		return errClosed // nobody took it up
	}
}

// commit is the committer. It ends when Close asks.
func (b *Bolt) commit() {
	defer close(b.ended)
	for {
		select {
		case c := <-b.calls:
			batch := []*call{c}
			for len(batch) < batchCalls {
				select {
				case c := <-b.calls:
					batch = append(batch, c)
					continue
				default:
				}
				break
			}
			b.run(batch)
		case <-b.quit:
			return
		}
	}
}

// run answers every call of a batch.
func (b *Bolt) run(batch []*call) {
	start := time.Now()
	for len(batch) > 0 {
		if err := b.failed(); err != nil {
			finish(batch, fmt.Errorf("%s: %w: %w", batch[0].op, ErrBroken, err))
			return
		}
		refused, sync, err := b.try(batch)
		if refused >= 0 {
			finish(batch[refused:refused+1], unchanged(fmt.Errorf("%s: %w", batch[refused].op, err)))
			batch = append(batch[:refused:refused], batch[refused+1:]...)
			continue
		}
		if err == nil && b.opt.Observe != nil {
			b.opt.Observe(Timing{Calls: len(batch), Total: time.Since(start), Sync: sync})
		}
		finish(batch, err)
		return
	}
}

func finish(batch []*call, err error) {
	for _, c := range batch {
		c.done <- err
	}
}

// try runs a batch in one transaction. refused is the call that returned an
// error, or -1.
func (b *Bolt) try(batch []*call) (refused int, sync time.Duration, err error) {
	refused = -1
	defer func() {
		if r := recover(); r != nil { // bbolt panics where it finds its file damaged
			refused = -1
			err = b.breakDown(fmt.Errorf("%w: %v", ErrCorrupt, r))
			b.mu.Lock()
			b.panicked = true
			b.mu.Unlock()
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // it maps the file

	tx, err := b.db.Begin(true)
	if err != nil {
		return -1, 0, unchanged(fmt.Errorf("beginning a transaction in %s: %w", b.opt.path(), err))
	}
	defer tx.Rollback() // after a commit it does nothing
	t, err := openTables(tx)
	if err != nil {
		return -1, 0, b.breakDown(err)
	}
	t.now = b.opt.Clock
	for i, c := range batch {
		if err := c.fn(t); errors.Is(err, ErrCorrupt) {
			return -1, 0, b.breakDown(err)
		} else if err != nil {
			return i, 0, err
		}
	}
	t.saveMeta()
	if t.err != nil {
		return -1, 0, unchanged(fmt.Errorf("changing %s: %w", b.opt.path(), t.err))
	}
	id := tx.ID()
	if err := tx.Commit(); err != nil {
		return -1, 0, b.judge(id, fmt.Errorf("writing %s: %w", b.opt.path(), err))
	}
	if t.wrote {
		select {
		case b.appended <- struct{}{}:
		default: // whoever signs has not looked since the last one
		}
	}
	stats := tx.Stats()
	return -1, stats.GetWriteTime(), nil
}

// judge decides what a failed commit leaves behind. bbolt writes and syncs all
// pages of a transaction before the meta page that makes them valid. Where the
// meta page is still the old one, nothing has changed. Where it is the new one,
// its fsync failed: memory has the change, the medium may not, and a second fsync
// would tell nothing. (PostgreSQL's fsync errors of 2018 are this case.)
func (b *Bolt) judge(id int, err error) error {
	now := -1
	if verr := b.db.View(func(tx *bbolt.Tx) error { now = tx.ID(); return nil }); verr != nil {
		return b.breakDown(errors.Join(err, verr))
	}
	if now < id {
		return unchanged(err)
	}
	return b.breakDown(err)
}

// breakDown refuses everything from now on.
func (b *Bolt) breakDown(err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.broken == nil {
		b.broken = err
	}
	return fmt.Errorf("%w: %w", ErrBroken, err)
}

func (b *Bolt) failed() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.broken
}

// view runs fn in a transaction that only reads.
func (b *Bolt) view(op string, fn func(*tables) error) (err error) {
	if err := b.failed(); err != nil {
		return fmt.Errorf("%s: %w: %w", op, ErrBroken, err)
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%s: %w: %v", op, ErrCorrupt, r)
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	return b.db.View(func(tx *bbolt.Tx) error {
		t, err := openTables(tx)
		if err == nil {
			err = fn(t)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
		return nil
	})
}
