package node

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"vacate/internal/extent"
	"vacate/internal/ipc"
	"vacate/internal/lease"
	"vacate/internal/node/nodesim"
	"vacate/proof"
)

// drive is one drive as it is shown.
func (w *world) drive(path string) Drive {
	w.t.Helper()
	d, err := w.n.Drive(w.ctx, path)
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

// lost checks that a lease has ended because of its drive, and that its record
// says so, and that its key was destroyed.
func (w *world) lost(id string) {
	w.t.Helper()
	l := w.expect(id, lease.Closed, lease.LostDrive, lease.Free)
	if !strings.Contains(l.Text, "drive /a may have lost completed writes: it was reset") || l.Erasure == nil || !l.Erasure.ReadBack {
		w.t.Errorf("it is shown as %q, %+v", l.Text, l.Erasure)
	}
	_, recs := w.audit(id)
	if len(recs) != 2 || recs[1].Result != string(lease.LostDrive) || !slices.ContainsFunc(recs[1].Events, func(e proof.Event) bool { return e.Type == "key_destroyed" }) {
		w.t.Errorf("records: %+v", recs)
	}
}

// TestLostDrive: a drive is reset. Leases with space on it end, and no others; then
// it is used again.
func TestLostDrive(t *testing.T) {
	for name, how := range map[string]func(w *world){
		"while control watches": func(w *world) { w.e.Lose("/a", "it was reset") },
		"while control is away": func(w *world) {
			w.stop()
			w.e.Lose("/a", "it was reset")
			w.mustStart()
		},
		"and the engine dies": func(w *world) {
			w.stop()
			w.e.Lose("/a", "it was reset")
			w.e.CrashEngine()
			w.mustStart()
		},
		"and the next engine tells": func(w *world) {
			w.e.Down(true)
			w.e.Lose("/a", "it was reset")
			w.e.CrashEngine()
			w.e.Down(false)
			w.n.EngineGone()
			w.must(nil, w.n.Recover(w.ctx))
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.up()
				a, b, both := w.open(3, "/a"), w.open(2, "/b"), w.open(6)
				onA := func(p extent.Piece) bool { return p.Drive == w.drive("/a").UUID }
				if !onA(both.Pieces[0]) && !onA(both.Pieces[len(both.Pieces)-1]) {
					t.Fatalf("a lease of 6 MiB lies at %v", both.Pieces)
				}
				how(w)
				time.Sleep(10 * time.Second)
				w.lost(a.ID)
				w.lost(both.ID)
				w.expect(b.ID, lease.Open, "", lease.Held)
				if d := w.drive("/a"); d.State != DriveReady || d.FreeBytes != 8*mib {
					t.Errorf("the drive is %s (%s), %d bytes are free", d.State, d.StateWhy, d.FreeBytes)
				}
				again := w.open(8, "/a")
				if l := w.close(again.ID); l.Result != lease.OK {
					t.Errorf("a lease after the loss ends with %s: %s", l.Result, l.Text)
				}
				if l := w.close(b.ID); l.Result != lease.OK {
					t.Errorf("a lease of another drive ends with %s: %s", l.Result, l.Text)
				}
			})
		})
	}
}

// TestLostWhileOpened: the answer to opening a drive is heeded after its loss was
// told of, and was given before.
func TestLostWhileOpened(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		a := w.open(3, "/a")
		w.n.mu.Lock()
		d := w.n.drives[a.Pieces[0].Drive]
		info, engine, told := d.info, d.fence, d.told
		w.n.mu.Unlock()
		w.e.With("/a", func(d *nodesim.Disk) { d.Hangs = true }) // so that it is not opened anew yet
		w.e.Lose("/a", "it was reset")
		time.Sleep(time.Second)
		w.n.noteDrive(d, info, engine, told, nil)
		if d := w.drive("/a"); d.State != DriveLost || d.StateWhy != "it was reset" {
			t.Errorf("the drive is %s (%s)", d.State, d.StateWhy)
		}
		w.e.With("/a", func(d *nodesim.Disk) { d.Hangs = false })
		time.Sleep(time.Minute)
		w.lost(a.ID)
		if d := w.drive("/a"); d.State != DriveReady {
			t.Errorf("the drive is %s (%s)", d.State, d.StateWhy)
		}
	})
}

// TestLostBefore: news of a loss that come when the drive was opened anew end no
// lease.
func TestLostBefore(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		a := w.open(3, "/a")
		uuid := a.Pieces[0].Drive
		w.n.mu.Lock()
		w.n.drives[uuid].info.Opening = 1<<32 + 7
		w.n.mu.Unlock()
		w.n.noteLosses(ipc.Losses{Seen: 2, Drives: []ipc.DriveLoss{{UUID: uuid, Opening: 1<<32 + 6, Why: "it was reset"}}})
		time.Sleep(time.Second)
		w.expect(a.ID, lease.Open, "", lease.Held)
		w.n.noteLosses(ipc.Losses{Seen: 3, Drives: []ipc.DriveLoss{{UUID: uuid, Opening: 1<<32 + 7, Why: "it was reset"}}})
		time.Sleep(time.Minute)
		w.lost(a.ID)
	})
}

// TestLostDriveHangs: the key goes at once; until the drive is quiet its space is
// kept, and it takes no lease.
func TestLostDriveHangs(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		a := w.open(3, "/a")
		w.e.With("/a", func(d *nodesim.Disk) { d.Hangs = true })
		w.e.Lose("/a", "it was reset")
		time.Sleep(time.Minute)
		w.expect(a.ID, lease.Erased, lease.LostDrive, lease.Cleaning)
		if d := w.drive("/a"); d.State != DriveLost || d.StateWhy != "it was reset" || d.FreeBytes != 0 || d.QuarantinedBytes != 3*mib {
			t.Errorf("the drive is %s (%s): %+v", d.State, d.StateWhy, d)
		}
		_, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib, Drive: "/a"})
		if e := kind(t, err, Refused); !strings.Contains(e.Text, "lost: it was reset") {
			t.Errorf("a lease on a lost drive: %v", err)
		}
		w.e.With("/a", func(d *nodesim.Disk) { d.Hangs = false })
		time.Sleep(time.Minute)
		w.lost(a.ID)
		if d := w.drive("/a"); d.State != DriveReady {
			t.Errorf("the drive is %s (%s)", d.State, d.StateWhy)
		}
	})
}

// TestLostDriveIsGone: a drive that was removed is missing when its leases have
// ended, until it is back.
func TestLostDriveIsGone(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		a := w.open(3, "/a")
		w.e.With("/a", func(d *nodesim.Disk) { d.Missing = true })
		w.e.Lose("/a", "it was reset, or removed")
		time.Sleep(time.Minute)
		w.lost(a.ID)
		if d := w.drive("/a"); d.State != DriveMissing {
			t.Errorf("the drive is %s (%s)", d.State, d.StateWhy)
		}
		w.e.With("/a", func(d *nodesim.Disk) { d.Missing = false })
		time.Sleep(time.Minute)
		w.open(8, "/a")
	})
}

// losing is an engine whose drive is lost while it opens a lease.
type losing struct{ *nodesim.Engine }

func (e losing) OpenLease(ctx context.Context, req ipc.LeaseOpenRequest, l ...*os.File) (ipc.LeaseOpened, error) {
	e.Lose("/a", "it was reset")
	time.Sleep(time.Second)
	return e.Engine.OpenLease(ctx, req, l...)
}

// TestLostWhileOpening: a lease whose opening was under way ends, too.
func TestLostWhileOpening(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.edit = func(c *Config) { c.Engine = losing{w.e} }
		w.up()
		l := w.open(1, "/a")
		time.Sleep(10 * time.Second)
		w.lost(l.ID)
		if d := w.drive("/a"); d.State != DriveReady {
			t.Errorf("the drive is %s (%s)", d.State, d.StateWhy)
		}
	})
}
