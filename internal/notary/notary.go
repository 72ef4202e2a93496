// Package notary makes records into proofs: it signs them, brings them into the
// log, and writes a certificate for each lease that ended.
//
//	journal ──payloads──> sign ──envelopes──> spool ──> log ──checkpoints──> certificates
//	                       keys                          └──> beacons, for the next records
//
// # The way of a record
//
//  1. The journal holds its payload, durable with what it tells of. Nothing waits
//     for what follows.
//  2. It is signed, in order, by the keys that its number belongs to (package
//     keyring), quoted by the TPM where that is set up and the boot is still that of
//     the record, and the envelope stored: it is made once.
//  3. It is added to the log, in order, and its place is noted. Both may be done
//     again after a crash: the log takes each record once.
//  4. The log publishes a checkpoint that covers it, cosigned by the witnesses.
//  5. When all records of a lease that ended are covered, its certificate is
//     written, durably; then the journal is told that it may forget.
//
// # Rules
//
//	NT1: a record has one envelope, whatever crashes.
//	NT2: a checkpoint is a beacon only when the policy's quorum has cosigned it, it
//	     goes on from the one before, and it is kept, durably: a record that names it can
//	     be proven for as long as its certificate is not written.
//	NT3: without the quorum a certificate is written all the same, and replaced when
//	     the quorum came.
//	NT4: a certificate is never taken away, before its time to be kept is over.
package notary

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"vacate/internal/journal"
	"vacate/internal/keyring"
	"vacate/internal/translog"
	"vacate/proof"
)

// A Log is where records go: one that is kept here, or elsewhere.
type Log interface {
	translog.Adder
	translog.Reader
}

// A Quoter lets a TPM say which machine made a record.
type Quoter interface {
	Quote(payload []byte) (proof.Quote, error)
}

// Config is what a notary needs. Zero means the default, where there is one.
type Config struct {
	Spool  journal.Spool
	Append func(proof.Record) (seq uint64, err error) // writes a KEYS record to the journal
	Keys   *keyring.Keyring
	Log    Log
	Trust  Trust
	Quoter Quoter // nil: records are not quoted
	// BootID is this boot, as records' events have it; a quoter needs it. A record of
	// another boot is not quoted: the TPM could only say how the machine is booted now.
	BootID string

	// Dir is the folder of the certificates. [Prepare] makes it.
	Dir  string
	Keep time.Duration // how long certificates are kept; 6 years
	// SpoolMax is how many records may wait for the log before [Notary.Full].
	SpoolMax int // 16384

	// Renewed is told of a policy that is other than before, one call at a time; nil:
	// nobody is.
	Renewed func(policy []byte) error

	Clock func() time.Time
	Logs  *slog.Logger
}

// Tuning.
const (
	batch      = 256                    // records that are signed, or sent, at once
	pollBusy   = 50 * time.Millisecond  // looking for a checkpoint that is waited for
	pollIdle   = 5 * time.Second        // and for one that nobody waits for
	retryFirst = 100 * time.Millisecond // after an error …
	retryMost  = 10 * time.Second       // … and at most
	callTime   = 30 * time.Second       // of one call of the log
	tidyEvery  = time.Hour

	// Sending records takes a transaction, and what the log syncs besides. A lease that
	// opens waits for what is under way: where leases come and go, records share it.
	sendEvery = 200 * time.Millisecond
)

const defaultKeep = 6 * 366 * 24 * time.Hour

// A Notary signs, sends and certifies. Its methods may be called from any
// goroutine.
type Notary struct {
	cfg   Config
	node  string
	store *store

	// signing is held while records are signed, and while a key is rotated: no
	// record is signed between a KEYS record and its key's activation.
	signing sync.Mutex

	mu      sync.Mutex
	policy  *proof.Policy // of the keys as they are
	newest  published     // the newest checkpoint
	beacon  *proof.Beacon // nil: there is none yet
	faults  map[string]error
	waiters map[chan struct{}]bool // told of every change
	counts  Counts
	covered map[string]uint64 // lease without quorum: the size that its certificate was made at

	wakeSend, wakeLook chan struct{} // hold one value each
}

// Counts are what the notary did since it was made.
type Counts struct {
	Signed, Sent, Certified uint64
}

// published is a checkpoint of the log that was verified.
type published struct {
	note   []byte // in its canonical form; nil before the first
	point  proof.Checkpoint
	quorum bool
}

// New makes a notary. A rotation that a crash cut off is brought to its end or
// undone. REQUIRES: [Prepare] was called with cfg.Dir.
func New(cfg Config) (*Notary, error) {
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Logs == nil {
		cfg.Logs = slog.Default()
	}
	if cfg.Keep == 0 {
		cfg.Keep = defaultKeep
	}
	if cfg.SpoolMax == 0 {
		cfg.SpoolMax = 16384
	}
	n := &Notary{cfg: cfg, node: cfg.Spool.NodeID(), faults: map[string]error{}, waiters: map[chan struct{}]bool{},
		covered: map[string]uint64{}, wakeSend: make(chan struct{}, 1), wakeLook: make(chan struct{}, 1)}
	var err error
	if n.store, err = openStore(cfg.Dir); err != nil {
		return nil, err
	}
	if err := n.mendRotation(); err != nil {
		return nil, err
	}
	if n.policy, err = n.makePolicy(); err != nil {
		return nil, err
	}
	return n, n.readBeacon()
}

// Run works until ctx is done.
func (n *Notary) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { n.loop(ctx, "signing records", n.cfg.Spool.Appended(), 0, 0, n.sign) })
	wg.Go(func() { n.loop(ctx, "sending records to the log", n.wakeSend, 0, sendEvery, n.send) })
	wg.Go(func() { n.loop(ctx, "reading the log's checkpoint", n.wakeLook, pollIdle, 0, n.look) })
	wg.Go(func() { n.loop(ctx, "tidying certificates", nil, tidyEvery, 0, n.tidy) })
	wg.Wait()
}

// loop does work again and again: at once while there is more, else when it is
// woken, but every so often at most, or after idle where that is not 0. After an error
// it waits, longer each time.
func (n *Notary) loop(ctx context.Context, what string, wake <-chan struct{}, idle, every time.Duration, work func(context.Context) (more time.Duration, err error)) {
	pause := retryFirst
	for ctx.Err() == nil {
		began := time.Now()
		again, err := work(ctx)
		if ctx.Err() != nil {
			return
		}
		n.note(what, err)
		wait := idle
		switch {
		case err != nil:
			wait, pause = pause, min(2*pause, retryMost)
		case again > 0:
			wait, pause = again, retryFirst
		default:
			pause = retryFirst
		}
		var timer <-chan time.Time
		if wait > 0 {
			timer = time.After(wait)
		}
		listen := wake
		if err != nil {
			listen = nil // who wakes does not mend anything
		}
		select {
		case <-listen:
			if early := every - time.Since(began); early > 0 {
				select {
				case <-time.After(early):
				case <-ctx.Done():
				}
			}
		case <-timer:
		case <-ctx.Done():
		}
	}
}

// soon, as an answer of a loop's work, asks for it again at once.
const soon = time.Nanosecond

// note keeps what went wrong, and logs it once.
func (n *Notary) note(what string, err error) {
	n.mu.Lock()
	before := n.faults[what]
	if err == nil {
		delete(n.faults, what)
	} else {
		n.faults[what] = err
	}
	n.mu.Unlock()
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		n.cfg.Logs.Error(what, "error", err)
	case err == nil && before != nil:
		n.cfg.Logs.Info(what+" works again", "error_before", before)
	}
}

func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// changed tells who waits that something did.
func (n *Notary) changed() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for ch := range n.waiters {
		wake(ch)
	}
}

// wait calls ready until it says so, again after each change, or ctx is done.
func (n *Notary) wait(ctx context.Context, ready func() (bool, error)) error {
	ch := make(chan struct{}, 1)
	n.mu.Lock()
	n.waiters[ch] = true
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.waiters, ch)
	}()
	for {
		if done, err := ready(); done || err != nil {
			return err
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ErrFull says that too many records wait for the log, so no lease may be opened.
var ErrFull = errors.New("the spool of records is full")

// Full is [ErrFull] while as many records wait for the log as may. Leases are
// closed all the same.
func (n *Notary) Full() error {
	st, err := n.cfg.Spool.SpoolStats()
	if err != nil {
		return err
	}
	if st.Depth() < uint64(n.cfg.SpoolMax) {
		return nil
	}
	why := ""
	if last := n.lastError(); last != "" {
		why = " (" + last + ")"
	}
	return fmt.Errorf("%w: %d records wait for the log, %d may%s: see `vacate log status`, or raise proof.spool_max", ErrFull, st.Depth(), n.cfg.SpoolMax, why)
}

// A Status is where the notary stands.
type Status struct {
	Spool      journal.Stats
	SpoolMax   int
	Checkpoint []byte // the newest, in its canonical form; nil before the first
	Point      proof.Checkpoint
	Quorum     bool // the policy's quorum cosigned it
	Witnessed  bool // the policy wants a quorum
	LastError  string

	Certificates int // that are kept
	NoQuorum     int // of these, that are to be replaced
	Deadlines    Deadlines
	Counts       Counts
}

// Deadlines count leases with a time by which they had to be erased.
type Deadlines struct {
	Met, Missed uint64
}

// Status says where the notary stands.
func (n *Notary) Status() (Status, error) {
	st, err := n.cfg.Spool.SpoolStats()
	if err != nil {
		return Status{}, err
	}
	s := Status{Spool: st, SpoolMax: n.cfg.SpoolMax, LastError: n.lastError()}
	s.Certificates, s.NoQuorum, s.Deadlines = n.store.counts()
	n.mu.Lock()
	defer n.mu.Unlock()
	s.Checkpoint, s.Point, s.Quorum, s.Witnessed = n.newest.note, n.newest.point, n.newest.quorum, n.policy.NeedsWitnesses()
	s.Counts = n.counts
	return s, nil
}

func (n *Notary) lastError() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []string
	for what, err := range n.faults {
		all = append(all, what+": "+err.Error())
	}
	if len(all) == 0 {
		return ""
	}
	slices.Sort(all)
	return all[0]
}

func (n *Notary) path(name string) string { return filepath.Join(n.cfg.Dir, workDir, name) }
