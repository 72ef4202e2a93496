package translog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
)

// Config says how a log is kept. Zero means the default, where there is one.
type Config struct {
	Dir    string      // the log's folder, made with mode 0700 where it is missing
	Origin string      // what the log calls itself in its checkpoints
	Signer note.Signer // signs checkpoints (Ed25519); its name is Origin

	// Witnesses are asked to cosign each checkpoint: lines of C2SP tlog-policy
	// (witness NAME KEY URL, group, quorum; others are skipped). Empty: none are
	// asked. Where they do not answer in time, the checkpoint is published without them.
	Witnesses        []byte
	WitnessTimeout   time.Duration     // 2 s
	WitnessTransport http.RoundTripper // http.DefaultTransport

	Interval  time.Duration // from a record to the checkpoint that commits to it, witnesses apart; 250 ms, at least 100 ms
	Republish time.Duration // the same tree is signed, and cosigned, again; 10 s with witnesses, never without

	// Admit refuses leaves beyond what the log itself refuses. nil admits all. It
	// may be called from many goroutines.
	Admit func(Leaf) error

	Log *slog.Logger // slog.Default()
}

// Spec-independent tuning.
const (
	defaultInterval       = 250 * time.Millisecond
	minInterval           = 100 * time.Millisecond // tessera's
	defaultRepublish      = 10 * time.Second
	defaultWitnessTimeout = 2 * time.Second
	flushEvery            = time.Second // the index is behind the tree at most so long …
	flushAt               = 8192        // … and so many records
	sweepEvery            = time.Minute // and what is older is swept
	closeTimeout          = 6 * time.Second
)

// Validate reports all faults of a configuration at once.
func (c Config) Validate() error {
	var faults []error
	fault := func(bad bool, text string) {
		if bad {
			faults = append(faults, errors.New(text))
		}
	}
	fault(c.Dir == "", "log: Dir is empty: name the log's folder")
	fault(c.Origin == "", "log: Origin is empty: name the log, such as \"log.example/vacate\"")
	fault(c.Signer == nil, "log: there is no Signer")
	fault(c.Signer != nil && c.Signer.Name() != c.Origin, "log: the signing key's name is not the log's origin: make a key for this origin, or keep the old origin")
	fault(c.Interval != 0 && c.Interval < minInterval, "log: Interval is under 100 ms")
	fault(c.WitnessTimeout < 0 || c.Republish < 0, "log: a time is negative")
	fault(c.Republish != 0 && c.Republish < c.Interval, "log: Republish is under Interval")
	if _, err := witnesses(c.Witnesses); err != nil {
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

func (c Config) withDefaults() Config {
	c.Interval = orElse(c.Interval, defaultInterval)
	c.WitnessTimeout = orElse(c.WitnessTimeout, defaultWitnessTimeout)
	if len(c.Witnesses) > 0 {
		c.Republish = max(orElse(c.Republish, defaultRepublish), c.Interval)
	}
	if c.WitnessTransport == nil {
		c.WitnessTransport = http.DefaultTransport
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c
}

func orElse(d, other time.Duration) time.Duration {
	if d == 0 {
		return other
	}
	return d
}

// A Log is a transparency log in a folder, open in this process.
// Its methods may be called from any goroutine.
//
// Adding goes so:
//
//  1. Add parses the leaves, in the caller's goroutine.
//  2. The committer takes every call that waits, and decides for each leaf: in
//     the log already, next of its node, or refused. A refused leaf refuses its call.
//  3. What is left goes to tessera as one batch, which writes entries and tiles,
//     and then, in one step, the tree's state: from there on they are in the log.
//  4. The index is brought up to date, and the calls return.
//
// There is never more than one batch on its way, and it is in the tree as a whole or
// not at all, so the records of a node cannot overtake each other. Where a batch fails
// nobody knows which: the committer reads what the tree has before it takes the next.
type Log struct {
	tiles
	cfg         Config
	driver      driver
	publisher   *tessera.Appender // its appender that publishes checkpoints
	reader      tessera.LogReader
	signer      *signer
	stopTessera func(context.Context) error

	calls   chan *call
	closing chan struct{} // closed by Close
	done    chan struct{} // closed when the committer has ended
	once    sync.Once
	ended   error // of Close

	lock *os.File

	mu     sync.Mutex // guards index between the committer and Next
	index  *index
	behind bool // the tree may hold more than the index; the committer's
}

// Open opens the log in cfg.Dir, or makes it. ctx bounds the opening, which
// reads the whole log where the index is missing; the log is open until Close.
func Open(ctx context.Context, cfg Config) (*Log, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the log's folder: %w", err)
	}
	lock, err := lockFolder(cfg.Dir)
	if err != nil {
		return nil, err
	}
	l := &Log{cfg: cfg, lock: lock,
		tiles:   tiles{fetch: files(filepath.Join(cfg.Dir, treeDir))},
		calls:   make(chan *call),
		closing: make(chan struct{}), done: make(chan struct{})}
	if err := l.open(ctx); err != nil {
		lock.Close()
		return nil, fmt.Errorf("opening the log in %s: %w", cfg.Dir, err)
	}
	go l.commit()
	return l, nil
}

// lockFolder takes the folder for this process; the lock ends with the file.
func lockFolder(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the log's folder: %w", err)
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EWOULDBLOCK):
			err = errors.New("another process has it open: stop that one, or name another folder")
		}
		f.Close()
		return nil, fmt.Errorf("locking the log's folder %s: %w", dir, err)
	}
}

func (l *Log) open(ctx context.Context) error {
	if err := l.openTree(ctx); err != nil {
		return err
	}
	if err := l.openIndex(ctx); err != nil {
		return errors.Join(err, l.stopTessera(ctx))
	}
	return nil
}

// openTree starts tessera, which goes on with the tree as its state file has it.
func (l *Log) openTree(ctx context.Context) error {
	relayLogs(l.cfg.Log)
	l.sweepHeads(0)
	l.signer = &signer{Signer: l.cfg.Signer}
	group, err := witnesses(l.cfg.Witnesses)
	if err != nil {
		return err
	}
	if err := l.writable(); err != nil {
		return err
	}
	if err := setBack(filepath.Join(l.cfg.Dir, treeDir), l.cfg.Signer); err != nil {
		return err
	}
	posixDriver, err := posix.New(ctx, posix.Config{
		Path:       filepath.Join(l.cfg.Dir, treeDir),
		HTTPClient: &http.Client{Transport: &transport{next: l.cfg.WitnessTransport}, CheckRedirect: noRedirect},
	})
	if err != nil {
		return err
	}
	opts := tessera.NewAppendOptions().
		WithCheckpointSigner(l.signer).
		WithBatching(1, never).
		WithCheckpointInterval(l.cfg.Interval).
		WithCheckpointRepublishInterval(l.cfg.Republish).
		WithShutdownTimeout(closeTimeout).
		WithWitnesses(group, &tessera.WitnessOptions{Timeout: l.cfg.WitnessTimeout, FailOpen: true})
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	publisher, shutdown, reader, err := tessera.NewAppender(own, posixDriver, opts)
	if err != nil {
		cancel()
		return err
	}
	l.driver, l.publisher, l.reader = posixDriver.(driver), publisher, reader // NewAppender has asserted the same
	l.stopTessera = func(ctx context.Context) error {
		defer cancel()
		err := shutdown(ctx)
		l.signer.stop()
		return errors.Join(err, l.awaitPublished())
	}
	return nil
}

// openIndex opens the index, and brings it up to the tree. An index that is
// damaged, or of another tree, is made again.
func (l *Log) openIndex(ctx context.Context) error {
	path := filepath.Join(l.cfg.Dir, indexFile)
	x, err := openIndex(path)
	if err == nil {
		l.index = x
		err = l.checkIndex(ctx)
		if errors.Is(err, errIndex) {
			x.db.Close() //nolint:errcheck // it is thrown away
		}
	}
	if errors.Is(err, errIndex) {
		l.cfg.Log.Warn("making the log's index again", "reason", err.Error())
		if err := removeIndex(path); err != nil {
			return err
		}
		if l.index, err = openIndex(path); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	if err := l.catchUp(ctx); err != nil {
		return errors.Join(err, l.index.db.Close())
	}
	return nil
}

// checkIndex checks that the index is of this tree.
func (l *Log) checkIndex(ctx context.Context) error {
	n, err := l.reader.IntegratedSize(ctx)
	switch {
	case err != nil:
		return err
	case l.index.size == 0:
		return nil
	case l.index.size > n:
		return fmt.Errorf("%w: it has %d records, the tree %d", errIndex, l.index.size, n)
	}
	return l.tiles.leaves(ctx, l.index.size-1, l.index.size, n, func(i uint64, leaf []byte) error {
		if !l.index.belongs(leaf) {
			return fmt.Errorf("%w: it has another record %d than the tree", errIndex, i)
		}
		return nil
	})
}

// catchUp adds to the index what the tree has and the index has not, after a
// start or a batch that failed.
func (l *Log) catchUp(ctx context.Context) error {
	n, err := l.reader.IntegratedSize(ctx)
	if err != nil {
		return err
	}
	l.sweepEdge(n)
	begin := l.index.size
	err = l.tiles.leaves(ctx, begin, n, n, func(i uint64, leaf []byte) error {
		node, seq, err := identity(leaf)
		if err != nil {
			return fmt.Errorf("leaf %d of the log is no record: %w", i, err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if err := l.index.add(node, seq, leaf); err != nil {
			return err
		}
		if len(l.index.fresh) < flushAt {
			return nil
		}
		if done := i + 1 - begin; done%(64*flushAt) == 0 {
			l.cfg.Log.Info("reading the log", "records", i+1, "of", n)
		}
		return l.index.flush()
	})
	l.behind = err != nil
	return err
}

// Next returns the number of the record of node that the log takes next, and
// whether it has any of its records (else it takes any number).
func (l *Log) Next(node string) (seq uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, ok := l.index.chains[node]
	return c.Next, ok
}

// Size returns how many records the log holds, durably.
func (l *Log) Size() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.index.size
}

// Close waits until a checkpoint commits to all records, some seconds at most,
// and closes the log. Calls of Add that wait return [ErrClosed].
func (l *Log) Close() error {
	l.once.Do(func() {
		close(l.closing)
		<-l.done
		l.mu.Lock()
		defer l.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		l.ended = errors.Join(l.awaitCovered(ctx), l.stopTessera(ctx), l.index.close(), l.lock.Close())
	})
	return l.ended
}

// awaitCovered waits until a checkpoint commits to all records.
func (l *Log) awaitCovered(ctx context.Context) error {
	if l.index.size == 0 {
		return nil
	}
	_, err := Await(ctx, l, l.index.size-1, minInterval/4)
	return err
}
