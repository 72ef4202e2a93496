package vhostuser

import (
	"errors"
	"fmt"

	"vacate/internal/sys"
	"vacate/internal/virtioblk"
	"vacate/internal/virtq"
	"vacate/internal/volatile"
)

// allRings is a set of all rings, as bits.
const allRings = ^uint64(0)

// A worker is what a [virtioblk.Worker] does for a session.
type worker interface {
	Start(index int, r *virtq.Ring, f virtioblk.RingFiles) error
	Stop(index int) *virtq.Ring
	Signal(index int, f virtioblk.RingFiles) error
	WriteThrough(on bool)
	Hurry()
	Quit()
	Close() error
}

// A start is a ring that is about to be processed.
type start struct {
	index int
	ring  *virtq.Ring
}

// ready reports whether all has been said that a ring needs to run.
func ready(q *volatile.SessionRing) bool {
	return q.Started && q.Enabled && q.Addressed && q.Size != 0
}

// stopRings takes the rings of c that run from their workers: nothing of them is in
// flight then, and c says where each stands.
func (s *session) stopRings(c *change) {
	for i := range c.rec.Rings {
		q := &c.rec.Rings[i]
		if !q.Running || c.stop>>i&1 == 0 {
			continue
		}
		if w := s.workerOf(i); w != nil {
			if r := w.Stop(i); r != nil {
				q.Base = r.Base()
			}
		}
		q.Running = false
		if s.live>>i&1 != 0 {
			s.live &^= 1 << i
			s.server.counters.rings.Add(-1)
		}
	}
}

// prepare makes those of a set of rings that c lets run and that do not; with
// takeover, those that ran in a predecessor. One that cannot be made does not run,
// and its driver is told: only the frontend can mend it.
func (s *session) prepare(c *change, set uint64, takeover bool) []start {
	var starts []start
	memory, missing := s.memory(c)
	for i := range c.rec.Rings[:s.server.cfg.Queues] {
		q := &c.rec.Rings[i]
		switch {
		case set>>i&1 == 0 || q.Running != takeover:
			continue
		case !takeover && (!ready(q) || memory == nil && missing == nil): // the frontend has yet to tell all
			continue
		}
		r, err := s.makeRing(c, memory, i, takeover)
		if err = errors.Join(missing, err); err != nil {
			s.server.cfg.Log.Debug("a vhost-user ring cannot run", "ring", i, "error", err)
			q.Running = false
			s.signalErr(c, q)
			continue
		}
		q.Running = true
		starts = append(starts, start{index: i, ring: r})
	}
	return starts
}

// makeRing makes ring i as c describes it.
func (s *session) makeRing(c *change, memory *virtq.Memory, i int, takeover bool) (*virtq.Ring, error) {
	q := &c.rec.Rings[i]
	if memory == nil {
		return nil, fmt.Errorf("ring %d: no guest memory", i)
	}
	table, err := s.table(c, i, takeover)
	if err != nil {
		return nil, err
	}
	cfg := virtq.Config{
		Size: q.Size, DescAddr: q.Desc, AvailAddr: q.Avail, UsedAddr: q.Use, LogAddr: q.LogAddr, Base: q.Base,
		EventIdx: c.rec.Features&virtioblk.FeatureEventIdx != 0,
		Indirect: c.rec.Features&virtioblk.FeatureIndirect != 0,
		Memory:   memory, Inflight: table,
	}
	if m := s.mapOf(c, c.rec.Log); m != nil && c.rec.Features&virtioblk.FeatureLogAll != 0 {
		cfg.Log, cfg.LogUsed = virtq.NewLog(m.host), q.LogUsed
	}
	r, err := virtq.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("ring %d: %w", i, err)
	}
	return r, nil
}

// table is the inflight table of ring i: in the region that the frontend has set,
// if that has one for it, else in the session file. A ring that begins anew has an
// empty one in the session file; what is in the frontend's is carried out first:
// another server's session may have ended with it.
func (s *session) table(c *change, i int, takeover bool) (*virtq.Inflight, error) {
	if m := s.mapOf(c, c.rec.Inflight); m != nil && i < int(c.rec.InflightQueues) && c.rec.InflightRing >= c.rec.Rings[i].Size {
		at, n := virtq.InflightSize(i, int(c.rec.InflightRing)), virtq.InflightSize(1, int(c.rec.InflightRing))
		t, err := virtq.NewInflight(m.host[at:at+n], c.rec.InflightRing)
		if err != nil {
			return nil, fmt.Errorf("ring %d: the frontend's inflight region: %w", i, err)
		}
		return t, nil
	}
	at, n := virtq.InflightSize(i, volatile.MaxRingSize), virtq.InflightSize(1, volatile.MaxRingSize)
	t, err := virtq.NewInflight(s.server.file.Inflight()[at:at+n], volatile.MaxRingSize)
	if err != nil {
		return nil, fmt.Errorf("ring %d: the session's inflight table: %w", i, err)
	}
	if !takeover {
		t.Reset()
	}
	return t, nil
}

// mapOf is the mapping of what lies in a place, nil without one.
func (s *session) mapOf(c *change, place uint8) *mapping {
	if m := c.maps[place]; m != nil {
		return m
	}
	return s.maps[place]
}

// launch hands rings to their workers, and tells those of other descriptors that
// run already.
func (s *session) launch(starts []start, signal uint64) error {
	for _, r := range starts {
		w, err := s.needWorker(r.index)
		if err == nil {
			err = w.Start(r.index, r.ring, s.ringFiles(r.index))
		}
		if err != nil {
			return fmt.Errorf("ring %d: %w", r.index, err)
		}
		s.live |= 1 << r.index
		s.server.counters.rings.Add(1)
	}
	for i := range s.rec.Rings {
		if signal>>i&1 == 0 || !s.rec.Rings[i].Running || started(starts, i) {
			continue
		}
		if err := s.workerOf(i).Signal(i, s.ringFiles(i)); err != nil {
			return fmt.Errorf("ring %d: %w", i, err)
		}
	}
	return nil
}

func started(starts []start, i int) bool {
	for _, r := range starts {
		if r.index == i {
			return true
		}
	}
	return false
}

func (s *session) ringFiles(i int) virtioblk.RingFiles {
	q := &s.rec.Rings[i]
	return virtioblk.RingFiles{Kick: s.in(q.Kick), Call: s.in(q.Call), Err: s.in(q.Err)}
}

// signalErr tells a driver that its ring does not run.
func (s *session) signalErr(c *change, q *volatile.SessionRing) {
	fd, ok := c.fresh[q.Err]
	if !ok {
		fd = s.in(q.Err)
	}
	if fd < 0 || q.Err == 0 {
		return
	}
	f := []sys.Ready{{FD: int32(fd), Events: sys.ReadyWrite}}
	if sys.WaitReady(f, 0, 1) == 0 && f[0].Got&sys.ReadyWrite != 0 { // else it is signalled
		_ = sys.SignalEvent(fd)
	}
}

// workerOf is the worker of ring i, nil if it has none yet.
func (s *session) workerOf(i int) worker {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.workers[i%len(s.workers)]
}

// needWorker is workerOf, and makes one.
func (s *session) needWorker(i int) (worker, error) {
	if w := s.workerOf(i); w != nil {
		return w, nil
	}
	w, err := s.server.newWorker()
	if err != nil {
		return nil, err
	}
	w.WriteThrough(through(&s.rec))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.workers[i%len(s.workers)] = w
	if s.closing.Load() {
		w.Quit() // Close did not see it
	}
	return w, nil
}

// through reports whether each write is to reach the medium before it is answered:
// the driver cleared writeback, or knows no flush (virtio 1.2, 5.2.5.2). One that knows
// flushes and not writeback uses them, whatever a driver before it has cleared.
func through(r *volatile.SessionRecord) bool {
	const flush, both = virtioblk.FeatureFlush, virtioblk.FeatureFlush | virtioblk.FeatureConfigWCE
	if !r.FeaturesSet {
		return r.WriteThrough
	}
	return r.Features&flush == 0 || r.WriteThrough && r.Features&both == both
}
