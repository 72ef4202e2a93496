package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/journal"
	"vacate/internal/node"
	"vacate/internal/server"
)

// retryEngine is how soon a recovery that failed is tried again with the same
// engine.
const retryEngine = 100 * time.Millisecond

// openJournal opens the journal, or, where the engine holds leases that somebody
// may want to close, does without for the time being.
func (p *process) openJournal(ctx context.Context) (journal.Store, error) {
	opt := journal.Options{Dir: p.cfg.StateDir, Observe: func(t journal.Timing) { p.metrics.Committed(t.Sync) }}
	store, err := journal.Open(opt)
	if err == nil {
		return store, nil
	}
	if errors.Is(err, journal.ErrLocked) { // it is another daemon's, or this one's last control is just ending
		return nil, cannotStart(err)
	}
	list, lerr := p.firstList(ctx)
	if lerr != nil {
		return nil, errors.Join(cannotStart(err), lerr)
	}
	if len(list.Leases) == 0 {
		return nil, cannotStart(err)
	}
	p.waiting = &waiting{why: err, log: p.log, open: func() (journal.Store, error) { return journal.Open(opt) }}
	p.waiting.nodeID, p.waiting.state, lerr = journal.Read(opt)
	if lerr != nil {
		p.waiting.state = fromEngine(list)
	}
	p.log.Error("the journal cannot be opened: leases can be closed, and nothing else", "error", err, "leases", len(p.waiting.state.Live),
		"from_journal", lerr == nil)
	return p.waiting, nil
}

// prove makes ready what records need. Where that cannot be, control does not start,
// unless the engine holds leases: they are closed, and their records wait.
func (p *process) prove(ctx context.Context, store journal.Store) (err error) {
	if p.waiting != nil {
		return nil
	}
	if p.proof, err = p.openProof(store); err == nil {
		return nil
	}
	list, lerr := p.firstList(ctx)
	if lerr != nil || len(list.Leases) == 0 {
		return errors.Join(cannotStart(err), lerr)
	}
	p.unproven = err
	p.log.Error("records are not signed: leases can be closed, and none opened", "error", err, "leases", len(list.Leases))
	return nil
}

// serverProof is what the API asks about records, or nil.
func (p *process) serverProof() server.Proof {
	if p.proof == nil {
		return nil
	}
	return p.proof
}

// firstList is the leases of the first engine that answers.
func (p *process) firstList(ctx context.Context) (ipc.LeaseList, error) {
	for {
		_, changed := p.engine.now()
		list, err := p.engine.Leases(ctx)
		if err == nil || ctx.Err() != nil {
			return list, err
		}
		if !errors.Is(err, ipc.ErrGone) {
			return list, fmt.Errorf("asking the engine for its leases: %w", err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return list, context.Cause(ctx)
		}
	}
}

// follow starts the node with the first engine and recovers with each that takes
// its place, until ctx is done. It returns an error when control cannot start.
func (p *process) follow(ctx context.Context) error {
	for started := false; ctx.Err() == nil; {
		c, changed := p.engine.now()
		if c == nil {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		var again <-chan time.Time
		err := p.recover(ctx, &started)
		if fatal := (*startError)(nil); errors.As(err, &fatal) {
			return err
		}
		if err != nil && ctx.Err() == nil {
			p.log.Warn("recovery is not complete", "error", err)
			again = time.After(retryEngine)
		}
		select {
		case <-changed:
		case <-again:
		case <-c.Done():
			p.log.Warn("the engine is gone; the next one takes over")
			p.node.EngineGone()
			select {
			case <-changed:
			case <-ctx.Done():
			}
		case <-ctx.Done():
		}
		p.node.EngineGone()
	}
	return nil
}

// recover brings the node together with the engine that there is now. The first
// time it does all else that the start has; started says that the node runs.
func (p *process) recover(ctx context.Context, started *bool) error {
	bring := p.node.Start
	if *started {
		bring = p.node.Recover
	}
	if err := bring(ctx); err != nil {
		return mayMend(err, *started)
	}
	*started = true
	if p.up.Load() {
		p.log.Info("recovered with a new engine", "generation", p.node.Status().Engine.Generation)
		if p.attacher != nil {
			p.attacher.Recovered()
		}
		return nil
	}
	if err := p.enrollDev(ctx); err != nil {
		return mayMend(err, false)
	}
	p.up.Store(true)
	close(p.started)
	if err := p.link.Ready(); err != nil {
		return err
	}
	if err := p.on.trim(); err != nil {
		p.log.Debug("giving back pages of the program", "error", err) // it only costs memory
	}
	p.log.Info("ready", "api", p.cfg.APISocket(), "admin", p.cfg.AdminSocket())
	return nil
}

// mayMend is err as it is when another engine, or another try, may do better:
// always, once control has started.
func mayMend(err error, started bool) error {
	if started || errors.Is(err, ipc.ErrGone) {
		return err
	}
	return cannotStart(err)
}

// enrollDev enrols the file of --dev when there is no drive at all.
func (p *process) enrollDev(ctx context.Context) error {
	path := p.cfg.DevDrive()
	if path == "" || p.waiting != nil || len(p.node.Drives(ctx)) > 0 {
		return nil
	}
	if _, err := p.node.Enroll(ctx, node.EnrollRequest{Path: path}); err != nil {
		return fmt.Errorf("enrolling the drive of --dev: %w", err)
	}
	return nil
}
