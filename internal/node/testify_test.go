package node

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/journal"
	"vacate/internal/lease"
	"vacate/internal/node/nodesim"
	"vacate/proof"
)

// TestRecordsCommit: what the records of a lease say of its key, its tenant and its
// drives, and what opens that.
func TestRecordsCommit(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		beacon := &proof.Beacon{Origin: "vacate/log", Size: 7, Root: "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", Digest: proof.ZeroHash}
		var facts []DriveFacts
		w.edit = func(c *Config) {
			c.Beacon = func() *proof.Beacon { return beacon }
			c.Annex = func(l lease.Lease, d []DriveFacts) ([]byte, error) {
				facts = d
				if !l.Erasure.Drained || l.Result != lease.OK || l.ClosedAt.IsZero() {
					t.Errorf("the annex is asked for of %+v", l)
				}
				return []byte("annex of " + l.ID), nil
			}
		}
		w.up()
		l := w.open(10)
		w.close(l.ID)
		_, own := w.audit(l.ID)
		for _, r := range own {
			key := proof.KeyCommit(l.ID, make([]byte, proof.KeySaltLen), []byte(strings.Repeat(l.ID, 4)))
			if r.KeyCommit != key || l.Proof.KeyCommit != key || r.KeyMode != proof.ModeNode || r.Beacon == nil || *r.Beacon != *beacon {
				t.Errorf("record %+v", r)
			}
			if want := proof.TenantCommit(l.ID, unhex(t, l.Proof.TenantSalt), "acme"); r.TenantCommit != want {
				t.Errorf("the tenant is committed to by %s, want %s", r.TenantCommit, want)
			}
			if !slices.Equal(r.Claims, []string{"asserted", "key_committed"}) || !slices.Contains(r.NotClaimed, "tenant_share") || !slices.Contains(r.NotClaimed, "guest_memory") {
				t.Errorf("claims %v, not claimed %v", r.Claims, r.NotClaimed)
			}
			for i, s := range r.Space {
				f := facts[i]
				if s.Drive != f.UUID || s.Commit != proof.DriveCommit(f.UUID, unhex(t, f.Salt), "file", "", f.Serial) {
					t.Errorf("drive %+v, facts %+v", s, f)
				}
			}
		}
		if annex, err := w.bolt.Annex(l.ID); err != nil || string(annex) != "annex of "+l.ID || own[1].AnnexDigest != proof.PayloadHash(annex) {
			t.Errorf("annex %q, %v, digest %s", annex, err, own[1].AnnexDigest)
		}
		for _, bad := range []func() ([]byte, error){
			func() ([]byte, error) { return []byte("half"), errors.New("no annex today") },
			func() ([]byte, error) { return make([]byte, journal.MaxAnnex+1), nil },
		} {
			w.edit = func(c *Config) { c.Annex = func(lease.Lease, []DriveFacts) ([]byte, error) { return bad() } }
			w.restart()
			l = w.open(1)
			w.close(l.ID)
			if _, own := w.audit(l.ID); own[1].AnnexDigest != "" || own[1].Result != "ok" {
				t.Errorf("without an annex: %+v", own[1])
			}
		}
	})
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b := make([]byte, 0, len(s)/2)
	for i := 0; i+1 < len(s); i += 2 {
		b = append(b, byte(strings.IndexByte("0123456789abcdef", s[i])<<4|strings.IndexByte("0123456789abcdef", s[i+1])))
	}
	return b
}

// TestShare opens a lease that was prepared, with its tenant's half.
func TestShare(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		const id = "abcdefghijklmnop"
		req := OpenRequest{SizeBytes: mib, Prepared: id, Sealed: "half", Key: "k"}
		l, err := w.n.Open(w.ctx, req)
		if err != nil || l.ID != id || l.Proof.KeyMode != "split" || l.Proof.ShareCommit == "" || l.Proof.NodeSalt == "" {
			t.Fatalf("%+v, %v", l, err)
		}
		if again, err := w.n.Open(w.ctx, req); err != nil || again.ID != id {
			t.Errorf("asked again: %+v, %v", again, err)
		}
		w.close(id)
		_, own := w.audit(id)
		for _, r := range own {
			if r.KeyMode != proof.ModeSplit || r.ShareCommit != l.Proof.ShareCommit || r.NodeCommit != l.Proof.NodeCommit || !slices.Contains(r.Claims, "tenant_share") {
				t.Errorf("record %+v", r)
			}
		}
		for _, bad := range []OpenRequest{{SizeBytes: mib, Prepared: id, Sealed: "half"}, {SizeBytes: mib, Prepared: id, Sealed: "half", Key: "other"}} {
			_, err = w.n.Open(w.ctx, bad)
			kind(t, err, Refused)
		}
		for _, bad := range []OpenRequest{{SizeBytes: mib, Prepared: "x", Sealed: "half"}, {SizeBytes: mib, Prepared: id}, {SizeBytes: mib, Sealed: "half"}} {
			_, err = w.n.Open(w.ctx, bad)
			kind(t, err, Invalid)
		}
	})
}

// TestL6Held: control ends between the record and the export. The next one has the
// lease served, or finds that its engine has ended too.
func TestL6Held(t *testing.T) {
	for name, crash := range map[string]bool{"engine lives": false, "engine ends too": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.up()
				w.f.Strike(4, nodesim.Lost, true) // ServeLease and all that follows
				_, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib, Key: "k"})
				if !errors.Is(err, nodesim.ErrStruck) || w.f.Calls()[3] != "ServeLease" {
					t.Fatal(err, w.f.Calls())
				}
				id := w.e.Held()[0]
				w.stop()
				w.f.Strike(0, 0, false)
				if crash {
					w.e.CrashEngine()
				}
				w.mustStart()
				synctest.Wait()
				if crash {
					w.expect(id, lease.Closed, lease.Failed, lease.Free)
					w.expectFree(12)
				} else {
					w.expect(id, lease.Open, "", lease.Held)
				}
				if len(w.e.Held()) != 0 || len(w.e.Keys()) != map[bool]int{false: 1}[crash] {
					t.Errorf("held %v, keys %v", w.e.Held(), w.e.Keys())
				}
			})
		})
	}
}

// TestL6KeyWithoutRecord: control ends between the key and its record: the next one
// destroys the key, and nothing was recorded.
func TestL6KeyWithoutRecord(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		w.f.Strike(2, nodesim.Done, true) // the engine's OpenLease: all that follows is lost
		_, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: 12 * mib, Key: "k"})
		if !errors.Is(err, nodesim.ErrStruck) || w.f.Calls()[1] != "engine OpenLease" || len(w.e.Keys()) != 1 {
			t.Fatal(err, w.f.Calls())
		}
		w.stop()
		w.f.Strike(0, 0, false)
		w.mustStart()
		synctest.Wait()
		if n, _ := w.audit(""); n != 2 || len(w.e.Keys()) != 0 || len(w.n.List(true)) != 0 {
			t.Errorf("%d records, keys %v, leases %v", n, w.e.Keys(), w.n.List(true))
		}
		if l, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: 12 * mib, Key: "k"}); err != nil || l.State != lease.Open {
			t.Errorf("%+v, %v", l, err)
		}
	})
}

// TestRelease: the record is durable before the key is given away, and the
// certificate claims less from then on.
func TestRelease(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		l := w.open(1)
		recipient := make([]byte, recipientLen)
		recipient[0] = 7
		for range 2 {
			if sealed, err := w.n.ReleaseKey(w.ctx, l.ID, recipient); err != nil || sealed[recipientLen-1] != 7 {
				t.Fatal(err)
			}
		}
		_, err := w.n.ReleaseKey(w.ctx, l.ID, recipient[1:])
		kind(t, err, Invalid)
		_, err = w.n.ReleaseKey(w.ctx, "zzzzzzzzzzzzzzzz", recipient)
		kind(t, err, NotFound)
		w.restart()
		if !w.get(l.ID).Proof.Released {
			t.Error("it is forgotten that the key was released")
		}
		w.close(l.ID)
		_, err = w.n.ReleaseKey(w.ctx, l.ID, recipient)
		kind(t, err, Refused)
		_, own := w.audit(l.ID)
		if len(own) != 3 || own[1].Type != proof.KeyReleased || own[1].Events[0].Type != proof.EventKeyReleased ||
			slices.Contains(own[2].Claims, proof.ClaimKeyCommitted) || !slices.Contains(own[2].NotClaimed, proof.ClaimKeyCommitted) {
			t.Errorf("records %+v", own)
		}
	})
}

// TestL6NoReleaseWithoutRecord: where the record cannot be written, the engine is not
// asked; where the engine has no shares, nothing is recorded.
func TestL6NoReleaseWithoutRecord(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.edit = func(c *Config) { c.Store = noReleases{c.Store} }
		w.up()
		l := w.open(1)
		_, err := w.n.ReleaseKey(w.ctx, l.ID, make([]byte, recipientLen))
		if kind(t, err, Unavailable); !errors.Is(err, errDiskFull) || slices.Contains(w.f.Calls(), "engine ReleaseLease") {
			t.Error(err, w.f.Calls())
		}
		w.edit = func(c *Config) { c.Engine = noShares{w.e} }
		w.restart()
		_, err = w.n.ReleaseKey(w.ctx, l.ID, make([]byte, recipientLen))
		if e := kind(t, err, Refused); !strings.Contains(e.Text, "built without") {
			t.Error(err)
		}
		if _, own := w.audit(l.ID); len(own) != 1 {
			t.Errorf("records %+v", own)
		}
	})
}

type noReleases struct{ journal.Store }

func (noReleases) ReleaseLease(string, proof.Event, journal.Testimony) (lease.Lease, error) {
	return lease.Lease{}, errDiskFull
}

// noShares is an engine that was built without what shares need.
type noShares struct{ *nodesim.Engine }

func (e noShares) Hello(ctx context.Context) (ipc.Hello, error) {
	h, err := e.Engine.Hello(ctx)
	h.Shares = "built without runtime/secret"
	return h, err
}

// TestSpentShare: who comes too late with a share is told what to do, and nothing is
// open.
func TestSpentShare(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.edit = func(c *Config) { c.Engine = spentShares{w.e} }
		w.up()
		_, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib, Prepared: "abcdefghijklmnop", Sealed: "half"})
		if e := kind(t, err, Refused); !strings.Contains(e.Next, "vacate lease prepare") || strings.Count(err.Error(), "was not prepared") != 1 {
			t.Error(err)
		}
		synctest.Wait()
		for _, l := range w.n.List(false) {
			t.Errorf("there is a lease %+v", l)
		}
	})
}

// spentShares is an engine that knows no prepared lease.
type spentShares struct{ *nodesim.Engine }

func (spentShares) OpenLease(context.Context, ipc.LeaseOpenRequest, ...*os.File) (ipc.LeaseOpened, error) {
	return ipc.LeaseOpened{}, &ipc.RemoteError{Code: ipc.CodeNotFound, Text: "lease was not prepared"}
}

// TestEraseBy: a lease that was promised to be erased by a time is, whichever way
// the wall clock goes meanwhile.
func TestEraseBy(t *testing.T) {
	for _, tt := range []struct {
		name    string
		ahead   time.Duration
		ttl     time.Duration
		jump    time.Duration // of the wall clock, after a minute
		restart bool
		want    time.Duration // after the opening
	}{
		{"an hour", time.Hour, 0, 0, false, 59 * time.Minute},
		{"a minute and a half", 90 * time.Second, 0, 0, false, 45 * time.Second},
		{"control restarts", time.Hour, 0, 0, true, 59 * time.Minute},
		{"the clock is put forward", time.Hour, 0, 30 * time.Minute, false, 29 * time.Minute},
		{"the clock is put back", time.Hour, 0, -30 * time.Minute, false, 59 * time.Minute},
		{"put back, and control restarts", time.Hour, 0, -30 * time.Minute, true, 59 * time.Minute},
		{"its time to live is over before", time.Hour, 10 * time.Minute, 0, false, 10 * time.Minute},
		{"it is over after", time.Hour, 2 * time.Hour, 0, false, 59 * time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.up()
				start := time.Now()
				by := w.clock.Now().Add(tt.ahead)
				l, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib, EraseBy: by, TTL: tt.ttl, Key: "k"})
				if err != nil || !l.Proof.EraseBy.Equal(by.Truncate(time.Second)) {
					t.Fatal(l, err)
				}
				_, own := w.audit(l.ID)
				if own[0].EraseBy != proof.FormatTime(by) {
					t.Errorf("the OPEN promises %q", own[0].EraseBy)
				}
				if tt.jump != 0 || tt.restart {
					time.Sleep(time.Minute)
					w.clock.Jump(tt.jump)
				}
				if tt.restart {
					w.restart()
				}
				for w.get(l.ID).State == lease.Open && time.Since(start) < 3*time.Hour {
					time.Sleep(time.Second)
				}
				if took := time.Since(start); took < tt.want-2*time.Second || took > tt.want+wallLook {
					t.Errorf("erased after %v, want %v", took, tt.want)
				}
			})
		})
	}
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		for _, ahead := range []time.Duration{-time.Hour, 0, 59 * time.Second} {
			_, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib, EraseBy: w.clock.Now().Add(ahead)})
			kind(t, err, Invalid)
		}
		w.expectFree(12)
	})
}
