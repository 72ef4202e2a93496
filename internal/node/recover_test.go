package node

import (
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"vacate/internal/extent"
	"vacate/internal/journal"
	"vacate/internal/lease"
	"vacate/internal/node/nodesim"
)

var errNoSockets = errors.New("no sockets today")

type noSockets struct{ Sockets }

func (noSockets) Make(string, uint32, ...string) ([]*os.File, error) { return nil, errNoSockets }

// fullStore is a journal on a full disk.
type fullStore struct {
	journal.Store
	full *atomic.Bool
}

var errDiskFull = errors.Join(errors.New("no space left on device"), journal.ErrUnchanged)

func (s fullStore) OpenLease(l lease.Lease, te journal.Testimony) (lease.Lease, error) {
	if s.full.Load() {
		return l, errDiskFull
	}
	return s.Store.OpenLease(l, te)
}

func (s fullStore) CloseLease(l lease.Lease, free bool, te journal.Testimony) (lease.Lease, error) {
	if s.full.Load() {
		return l, errDiskFull
	}
	return s.Store.CloseLease(l, free, te)
}

func (s fullStore) IntendEpochs(uuids []string) error {
	if s.full.Load() {
		return errDiskFull
	}
	return s.Store.IntendEpochs(uuids)
}

// TestFullDisk is invariant N4: the key is destroyed without the journal. The
// space waits for it.
func TestFullDisk(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		full := &atomic.Bool{}
		w.edit = func(c *Config) { c.Store = fullStore{c.Store, full} }
		w.up()
		l := w.open(5)
		full.Store(true)
		_, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib, Key: "k"})
		if !errors.Is(err, errDiskFull) {
			t.Errorf("opening on a full disk: %v", err)
		}
		kind(t, err, Unavailable)
		w.expectFree(7)
		c := w.close(l.ID)
		if c.State != lease.Erased || c.Space != lease.Held || c.CloseSeq != 0 || !strings.Contains(c.Text, "no space left") ||
			!strings.Contains(c.Text, "key is destroyed") || len(w.e.Keys()) != 0 {
			t.Errorf("closing on a full disk: %+v", c)
		}
		w.expectFree(7)
		w.restart() // closing must go on
		if s := w.n.Status(); !s.Ready || !strings.Contains(strings.Join(s.Warnings, "\n"), "no space left") {
			t.Errorf("status %+v", s)
		}
		synctest.Wait()
		if c := w.get(l.ID); c.State != lease.Erased || c.Erasure == nil {
			t.Errorf("after a restart: %+v", c)
		}
		full.Store(false)
		time.Sleep(10 * time.Second)
		if c := w.expect(l.ID, lease.Closed, lease.OK, lease.Free); c.Text != "" {
			t.Errorf("text %q", c.Text)
		}
		w.expectFree(12)
		w.audit("")
	})
}

// TestHangingDrive is law L5 with a drive that never completes.
func TestHangingDrive(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		stuck, other := w.open(5, "/a"), w.open(1, "/b")
		w.e.With("/a", func(d *nodesim.Disk) { d.Hangs = true })
		start := time.Now()
		done := make(chan lease.Lease)
		go func() { done <- w.close(stuck.ID) }()
		synctest.Wait()
		if len(w.e.Keys()) != 1 || time.Since(start) != 0 {
			t.Errorf("the key outlives the gate: keys %v after %v", w.e.Keys(), time.Since(start))
		}
		w.expect(stuck.ID, lease.Erased, lease.OK, lease.Held)
		w.close(other.ID) // is not held up
		if time.Since(start) != 0 {
			t.Errorf("N5: another lease waited %v", time.Since(start))
		}
		c := <-done
		if c.State != lease.Erased || c.Space != lease.Cleaning || c.CloseSeq == 0 || c.Erasure.Drained || time.Since(start) != 2*time.Second ||
			!strings.Contains(c.Text, "withheld") {
			t.Errorf("after %v: %+v, erasure %+v", time.Since(start), c, c.Erasure)
		}
		if again := w.close(stuck.ID); again.State != lease.Erased {
			t.Errorf("closing again: %+v", again)
		}
		d, err := w.n.Drive(w.ctx, "/a")
		w.must(d, err)
		if d.QuarantinedBytes != 5*mib || d.FreeBytes != 3*mib || d.LeasedBytes != 0 {
			t.Errorf("drive %+v", d)
		}
		w.restart() // control comes back, the engine still waits
		time.Sleep(time.Hour)
		w.expect(stuck.ID, lease.Erased, lease.OK, lease.Cleaning)
		w.expectFree(7)
		w.e.With("/a", func(d *nodesim.Disk) { d.Hangs = false })
		synctest.Wait()
		if c := w.expect(stuck.ID, lease.Closed, lease.OK, lease.Free); c.Text != "" {
			t.Errorf("text %q", c.Text)
		}
		w.expectFree(12)
		if _, own := w.audit(stuck.ID); own[1].Drained {
			t.Errorf("the record says that it had drained: %+v", own[1])
		}
	})
}

// TestLateWrites is invariant N2 over the death of an engine that none
// follows with its leases: its I/O may still land,
// so nothing is recorded and no space is free before the fence is held.
func TestLateWrites(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		closed, open, other := w.open(3, "/a"), w.open(3, "/a"), w.open(1, "/b")
		w.e.With("/a", func(d *nodesim.Disk) { d.Hangs = true })
		w.close(closed.ID)
		w.e.GiveUp()
		w.must(nil, w.n.Recover(w.ctx))
		time.Sleep(time.Hour)
		w.expect(closed.ID, lease.Erased, lease.OK, lease.Cleaning)
		if l := w.expect(open.ID, lease.Closing, "", lease.Held); !strings.Contains(l.Text, "/a") {
			t.Errorf("text %q", l.Text)
		}
		w.expect(other.ID, lease.Lost, lease.LostEngine, lease.Free)
		if d, _ := w.n.Drive(w.ctx, "/a"); d.State != DriveBusy || d.FreeBytes != 0 {
			t.Errorf("drive %+v", d)
		}
		w.restart()
		time.Sleep(time.Hour)
		w.expect(closed.ID, lease.Erased, lease.OK, lease.Cleaning)
		w.expect(open.ID, lease.Closing, "", lease.Held)
		w.e.With("/a", func(d *nodesim.Disk) { d.Hangs = false })
		time.Sleep(10 * time.Second)
		w.expect(closed.ID, lease.Closed, lease.OK, lease.Free)
		w.expect(open.ID, lease.Lost, lease.LostEngine, lease.Free)
		w.expectFree(12)
	})
}

// TestControlRestarts: nothing happens to leases, sockets and keys.
func TestControlRestarts(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		l := w.open(10)
		records, _ := w.audit(l.ID)
		for range 3 {
			w.restart()
			w.expect(l.ID, lease.Open, "", lease.Held)
		}
		if got, _ := w.audit(l.ID); got != records || len(w.socks.IDs()) != 1 || len(w.e.Keys()) != 1 {
			t.Errorf("%d records, sockets %v, keys %v", got, w.socks.IDs(), w.e.Keys())
		}
		c := w.close(l.ID)
		if _, own := w.audit(l.ID); len(own[1].Events) != 3 || own[1].Events[0] != own[0].Events[0] || c.Erasure.KeyGeneratedNs == 0 {
			t.Errorf("the OPEN says that the key was made %+v, the CLOSE %+v", own[0].Events, own[1].Events)
		}
	})
}

func TestLost(t *testing.T) {
	for _, tt := range []struct {
		name  string
		crash func(*nodesim.Engine)
		want  lease.Result
	}{
		{"engine", (*nodesim.Engine).GiveUp, lease.LostEngine},
		{"keeper", (*nodesim.Engine).CrashKeeper, lease.LostKeeper},
		{"boot", (*nodesim.Engine).Reboot, lease.LostBoot},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.up()
				ids := []string{w.open(5).ID, w.open(6).ID}
				tt.crash(w.e)
				w.restart()
				synctest.Wait()
				for _, id := range ids {
					w.expect(id, lease.Lost, tt.want, lease.Free)
					_, own := w.audit(id)
					if len(own) != 2 || own[1].Result != string(tt.want) || len(own[1].Events) != 0 || own[1].Drained {
						t.Errorf("records %+v", own)
					}
					if c := w.close(id); c.State != lease.Lost {
						t.Errorf("closing it: %+v", c)
					}
				}
				w.expectFree(12)
				if len(w.socks.IDs()) != 0 {
					t.Errorf("sockets %v", w.socks.IDs())
				}
				w.open(12)
			})
		})
	}
}

// TestStranger: a lease of the engine that the journal does not know is closed,
// and until it has drained nothing is leased: nobody knows where it lies.
func TestStranger(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		w.e.Stray("aaaaaaaaaaaaaaaa", 0, extent.Piece{Drive: w.uuid("/a"), Range: extent.Range{First: 0, Count: 1}})
		w.e.With("/a", func(d *nodesim.Disk) { d.Hangs = true })
		w.restart()
		synctest.Wait()
		if len(w.e.Keys()) != 0 {
			t.Errorf("keys %v", w.e.Keys())
		}
		_, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib})
		if e := kind(t, err, Unavailable); e.Object != "aaaaaaaaaaaaaaaa" {
			t.Error(e)
		}
		if s := w.n.Status(); s.Ready || s.ReadyWhy == "" {
			t.Errorf("status %+v", s)
		}
		w.e.With("/a", func(d *nodesim.Disk) { d.Hangs = false })
		synctest.Wait()
		w.open(12)
		if n, _ := w.audit("aaaaaaaaaaaaaaaa"); n != 3 {
			t.Errorf("%d records", n)
		}
	})
}

// TestBrokenJournal: only a restart helps, and the node says so; keys are
// destroyed all the same.
func TestBrokenJournal(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		broken := &atomic.Bool{}
		w.edit = func(c *Config) { c.Store = brokenStore{c.Store, broken} }
		w.up()
		l := w.open(1)
		broken.Store(true)
		if c := w.close(l.ID); c.State != lease.Erased || len(w.e.Keys()) != 0 {
			t.Errorf("%+v", c)
		}
		select {
		case err := <-w.n.Fatal():
			if !errors.Is(err, journal.ErrBroken) {
				t.Error(err)
			}
		default:
			t.Error("nobody was told")
		}
		broken.Store(false)
		w.restart()
		synctest.Wait()
		w.expect(l.ID, lease.Closed, lease.OK, lease.Free)
	})
}

type brokenStore struct {
	journal.Store
	broken *atomic.Bool
}

func (s brokenStore) CloseLease(l lease.Lease, free bool, te journal.Testimony) (lease.Lease, error) {
	if s.broken.Load() {
		return l, journal.ErrBroken
	}
	return s.Store.CloseLease(l, free, te)
}
