package node

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"vacate/internal/lease"
	"vacate/internal/node/nodesim"
)

// TestMissingDrive: the others live on; its leases' keys are gone all the same,
// and their space is kept.
func TestMissingDrive(t *testing.T) {
	t.Run("missing", func(t *testing.T) {
		unreachable(t, DriveMissing, func(d *nodesim.Disk, yes bool) { d.Missing = yes })
	})
	t.Run("failed", func(t *testing.T) { unreachable(t, DriveFailed, func(d *nodesim.Disk, yes bool) { d.Fails = yes }) })
}

func unreachable(t *testing.T, want DriveState, set func(*nodesim.Disk, bool)) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		l := w.open(3, "/a")
		w.e.With("/a", func(d *nodesim.Disk) { set(d, true) })
		w.e.GiveUp()
		w.restart()
		synctest.Wait()
		w.expect(l.ID, lease.Lost, lease.LostEngine, lease.Cleaning)
		d, err := w.n.Drive(w.ctx, "/a")
		w.must(d, err)
		if d.State != want || d.QuarantinedBytes != 3*mib || d.FreeBytes != 0 || d.StateWhy == "" {
			t.Errorf("drive %+v", d)
		}
		w.open(4) // on the other
		_, err = w.n.Open(w.ctx, OpenRequest{SizeBytes: mib, Drive: "/a"})
		if e := kind(t, err, Refused); !strings.Contains(e.Text, string(want)) {
			t.Error(e)
		}
		time.Sleep(time.Hour)
		w.expect(l.ID, lease.Lost, lease.LostEngine, lease.Cleaning)
		w.e.With("/a", func(d *nodesim.Disk) { set(d, false) })
		time.Sleep(10 * time.Second)
		w.expect(l.ID, lease.Lost, lease.LostEngine, lease.Free)
		w.expectFree(8)
	})
}

// TestLostKeeperNeedsProof: lost_keeper is recorded only when no process of the
// predecessor is alive, whether its drives' fences are held or out of reach.
func TestLostKeeperNeedsProof(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.edit = func(c *Config) { c.PredecessorGone = nil }
		w.up()
		missing, fenced := w.open(3, "/a"), w.open(3, "/b")
		waits := func(why string) {
			t.Helper()
			time.Sleep(time.Hour)
			for _, l := range []lease.Lease{missing, fenced} {
				if got := w.expect(l.ID, lease.Closing, "", lease.Held); !strings.Contains(got.Text, why) {
					t.Errorf("text %q", got.Text)
				}
			}
		}
		w.e.With("/a", func(d *nodesim.Disk) { d.Missing = true })
		w.e.CrashKeeper()
		w.restart()
		waits("nobody can tell")
		alive := atomic.Bool{}
		alive.Store(true)
		w.edit = func(c *Config) {
			c.PredecessorGone = func() error {
				if alive.Load() {
					return errors.New("process 17 runs")
				}
				return nil
			}
		}
		w.restart()
		waits("process 17 runs")
		alive.Store(false)
		time.Sleep(10 * time.Second)
		w.expect(missing.ID, lease.Lost, lease.LostKeeper, lease.Cleaning)
		w.expect(fenced.ID, lease.Lost, lease.LostKeeper, lease.Free)
	})
}

// TestLostBootNeedsNoProof: no process outlives a boot.
func TestLostBootNeedsNoProof(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.edit = func(c *Config) { c.PredecessorGone = func() error { return errors.New("asked for nothing") } }
		w.up()
		l := w.open(3, "/a")
		w.e.Reboot()
		w.restart()
		synctest.Wait()
		w.expect(l.ID, lease.Lost, lease.LostBoot, lease.Free)
	})
}

// TestHeldDrive has a drive whose fence an earlier engine holds.
func TestHeldDrive(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up() // no predecessor is alive, but the fence says otherwise
		l := w.open(3, "/a")
		w.e.With("/a", func(d *nodesim.Disk) { d.Held = true })
		w.e.CrashKeeper()
		w.restart()
		time.Sleep(time.Hour)
		w.expect(l.ID, lease.Closing, "", lease.Held)
		w.e.With("/a", func(d *nodesim.Disk) { d.Held = false })
		time.Sleep(10 * time.Second)
		w.expect(l.ID, lease.Lost, lease.LostKeeper, lease.Free)
	})
}

// TestEpochs: a journal that was put back from a copy is refused by the drives,
// as is a drive that was put back from an image.
func TestEpochs(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		w.restart()
		w.stop()
		path := filepath.Join(w.dir, "journal.db")
		copied, err := os.ReadFile(path)
		w.must(nil, err)
		w.mustStart()
		w.e.With("/b", func(d *nodesim.Disk) { d.Epoch -= 2 }) // an old image
		w.e.CrashEngine()
		w.restart()
		if d, _ := w.n.Drive(w.ctx, "/b"); d.State != DriveRefused || !strings.Contains(d.StateWhy, "epoch") {
			t.Errorf("an old image: %+v", d)
		}
		l := w.open(8) // the other lives on
		w.close(l.ID)
		w.stop()
		w.must(nil, os.WriteFile(path, copied, 0o600))
		w.mustStart()
		if d, _ := w.n.Drive(w.ctx, "/a"); d.State != DriveRefused || !strings.Contains(d.StateWhy, "epoch") {
			t.Errorf("an old journal: %+v", d)
		}
		_, err = w.n.Open(w.ctx, OpenRequest{SizeBytes: mib, Drive: "/a"})
		if e := kind(t, err, Refused); !strings.Contains(e.Text, "epoch") {
			t.Error(e)
		}
	})
}

// TestStrangeGeometry: the superblock's extents are not the journal's.
func TestStrangeGeometry(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		w.e.With("/a", func(d *nodesim.Disk) { d.Info.Extents = 9 })
		w.e.CrashEngine()
		w.restart()
		if d, _ := w.n.Drive(w.ctx, "/a"); d.State != DriveRefused || !strings.Contains(d.StateWhy, "9 extents") {
			t.Errorf("%+v", d)
		}
	})
}

func TestEnroll(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.mustStart()
		_, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib})
		kind(t, err, Full)
		plan, err := w.n.Enroll(w.ctx, EnrollRequest{Path: "/a", Plan: true})
		if err != nil || plan.Enrolled || plan.Drive.Path != "/a" || plan.Drive.Serial != "Sa" || len(plan.Findings) != 1 ||
			plan.Drive.CapacityBytes != 8*mib || plan.Drive.State == DriveReady {
			t.Fatalf("plan %+v, %v", plan, err)
		}
		if len(w.n.Drives(w.ctx)) != 0 {
			t.Error("a plan enrolled a drive")
		}
		_, err = w.n.Enroll(w.ctx, EnrollRequest{Path: "a"})
		kind(t, err, Invalid)
		_, err = w.n.Enroll(w.ctx, EnrollRequest{Path: "/nowhere"})
		kind(t, err, NotFound)
		done, err := w.n.Enroll(w.ctx, EnrollRequest{Path: "/x/../a"})
		if err != nil || !done.Enrolled || done.Drive.State != DriveReady || done.Drive.FreeBytes != 8*mib || done.Drive.Path != "/a" {
			t.Fatalf("%+v, %v", done, err)
		}
		_, err = w.n.Enroll(w.ctx, EnrollRequest{Path: "/a", Force: true, Confirm: "Sa"})
		if e := kind(t, err, Refused); !strings.Contains(e.Text, done.Drive.UUID) {
			t.Error(e)
		}
		w.e.With("/b", func(d *nodesim.Disk) { d.UUID, d.Node = "another", "node" })
		_, err = w.n.Enroll(w.ctx, EnrollRequest{Path: "/b"})
		if e := kind(t, err, Refused); len(e.Findings) != 2 {
			t.Errorf("%+v", e)
		}
		if got := w.n.Drives(w.ctx); len(got) != 1 {
			t.Errorf("a refused drive is listed: %+v", got)
		}
		w.e.With("/b", func(d *nodesim.Disk) { d.Held = true })
		_, err = w.n.Enroll(w.ctx, EnrollRequest{Path: "/b", Force: true, Confirm: "Sb"})
		kind(t, err, Refused)
		if got := w.n.Drives(w.ctx); len(got) != 1 {
			t.Errorf("a drive that someone else holds is listed: %+v", got)
		}
		w.e.With("/b", func(d *nodesim.Disk) { d.Held = false })
		w.must(w.n.Enroll(w.ctx, EnrollRequest{Path: "/b", Force: true, Confirm: "Sb"}))
		w.expectFree(12)
		w.restart()
		w.expectFree(12)
		if n, _ := w.audit(""); n != 2 {
			t.Errorf("%d records, want one a drive", n)
		}
	})
}

// TestEnrolmentCutOffAndUnplugged: a drive whose enrolment was cut off, and which
// is not there any more, is missing, and its enrolment ends when it is back.
func TestEnrolmentCutOffAndUnplugged(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.mustStart()
		w.f.Strike(3, nodesim.Done, true) // Inspect, AddDrive, Enroll
		if _, err := w.n.Enroll(w.ctx, EnrollRequest{Path: "/a"}); !errors.Is(err, nodesim.ErrStruck) {
			t.Fatal(err)
		}
		w.f.Strike(0, 0, false)
		w.e.With("/a", func(d *nodesim.Disk) { d.Missing = true })
		w.restart()
		if d, _ := w.n.Drive(w.ctx, "/a"); d.State != DriveMissing || !strings.Contains(d.StateWhy, "cut off") || d.FreeBytes != 0 {
			t.Errorf("%+v", d)
		}
		_, err := w.n.Enroll(w.ctx, EnrollRequest{Path: "/a"})
		kind(t, err, Unavailable)
		w.e.With("/a", func(d *nodesim.Disk) { d.Missing = false })
		time.Sleep(10 * time.Second)
		w.expectFree(8)
	})
}

// TestEnrolmentCutOff: control ends between the intent and the record.
func TestEnrolmentCutOff(t *testing.T) {
	for _, mode := range []nodesim.Mode{nodesim.Lost, nodesim.Done} {
		t.Run(mode.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.mustStart()
				w.f.Strike(3, mode, true) // Inspect, AddDrive, Enroll
				_, err := w.n.Enroll(w.ctx, EnrollRequest{Path: "/a"})
				if !errors.Is(err, nodesim.ErrStruck) {
					t.Fatal(err)
				}
				if d, _ := w.n.Drive(w.ctx, "/a"); d.State != DriveEnrolling || d.FreeBytes != 0 {
					t.Errorf("%+v", d)
				}
				w.f.Strike(0, 0, false)
				w.restart()
				want := map[nodesim.Mode]int{nodesim.Lost: 0, nodesim.Done: 1}[mode]
				if got := w.n.Drives(w.ctx); len(got) != want || want == 1 && got[0].State != DriveReady {
					t.Errorf("%+v", got)
				}
			})
		})
	}
}
