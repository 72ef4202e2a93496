//go:build vm

package vm

import (
	"context"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vacate/test/vm/wire"
)

// lostDrive is what the tests ask of a drive, and of a lease.
type lostDrive struct {
	State    string `json:"state"`
	StateWhy string `json:"stateWhy"`
	Flush    string `json:"flush"`
	FlushWhy string `json:"flushWhy"`
}

type lostLease struct {
	State  string `json:"state"`
	Result string `json:"result"`
	Text   string `json:"text"`
}

// TestWatched has an NVMe drive with a volatile cache lose it, in a real kernel:
// its flushes are skipped, a reader sees EIO and nothing else, the lease ends with
// the reason, and the drive can be used again.
func TestWatched(t *testing.T) {
	dir, ctx := shortDir(t), limit(t, 4*time.Minute)
	v, data := bootWith(ctx, t, dir)
	t.Cleanup(func() {
		if t.Failed() {
			var log string
			v.Call(context.Background(), "log", nil, &log) //nolint:errcheck // it helps where it can
			t.Log(log)
		}
	})
	must := func(err error) {
		t.Helper()
		must(t, err)
	}
	must(v.Call(ctx, "mount", wire.Mount{Device: "/dev/state", Dir: "/state"}, nil))
	must(v.Call(ctx, "serve", wire.Serve{StateDir: "/state/vacate"}, nil))
	if ran, err := v.Run(ctx, "drive", "enroll", "/dev/data"); err != nil || ran.Code != 0 {
		t.Fatalf("enrolling: %v, %+v", err, ran)
	}
	drive := func() (d lostDrive) {
		t.Helper()
		must(v.JSON(ctx, &d, "drive", "show", "/dev/data"))
		return d
	}
	if d := drive(); d.Flush != "watched" || !strings.Contains(d.FlushWhy, "NVMe over PCIe") {
		t.Fatalf("the drive's flush class is %q: %s", d.Flush, d.FlushWhy)
	}
	flushes := data.Stats().Flushes
	tests := []struct {
		name  string
		b     wire.Break
		after *wire.Drive // what brings the drive back
	}{
		{"reset", wire.Break{File: "reset_controller", Text: "1"}, nil},
		{"reset while control is held", wire.Break{File: "reset_controller", Text: "1", Held: true}, nil},
		{"reset of the PCI function", wire.Break{File: "device/reset", Text: "1"}, nil},
		{"reset without an engine", wire.Break{File: "reset_controller", Text: "1", Dead: true}, nil},
		{"removal", wire.Break{File: "device/remove", Text: "1", Held: true}, &wire.Drive{Name: "data", File: "/sys/bus/pci/rescan", Text: "1"}},
	}
	for i, tt := range tests {
		tt.b.Drive, tt.b.Canary = "data", wire.Canary{Hunt: 1, Tag: uint64(i + 1)}
		var broken wire.Broken
		if err := v.Call(ctx, "break", tt.b, &broken); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		t.Logf("%s: %+v", tt.name, broken)
		// Control may have closed the lease before the answer was there.
		eio := int(syscall.EIO)
		if (broken.Reads == 0) != tt.b.Dead || broken.Errno != 0 && broken.Errno != eio || strings.Contains(broken.Text, "no read has failed") {
			t.Errorf("%s: the reader saw %+v", tt.name, broken)
		}
		if tt.b.Held && (broken.Errno != eio || !slices.Equal(broken.Later, []int{eio, eio, eio})) {
			t.Errorf("%s: while control was held the reader saw %+v", tt.name, broken)
		}
		var l lostLease
		waitFor(ctx, t, tt.name+": the lease to end", func() bool {
			must(v.JSON(ctx, &l, "lease", "show", broken.Lease))
			return l.State == "closed"
		})
		if l.Result != "lost_drive" || !strings.Contains(l.Text, "may have lost completed writes") {
			t.Errorf("%s: the lease has ended with %+v", tt.name, l)
		}
		if tt.after != nil {
			waitFor(ctx, t, tt.name+": the drive to be missing", func() bool { d := drive(); return d.State != "ready" && d.State != "lost" })
			must(v.Call(ctx, "drive", tt.after, nil))
		}
		waitFor(ctx, t, tt.name+": the drive to be ready", func() bool { return drive().State == "ready" })
		if d := drive(); d.Flush != "watched" {
			t.Errorf("%s: the drive's flush class is %q: %s", tt.name, d.Flush, d.FlushWhy)
		}
		must(v.Call(ctx, "check", wire.Check{Drive: "/dev/data", Canary: wire.Canary{Hunt: 1, Tag: uint64(i + 100)}}, nil))
	}
	n := data.Stats().Flushes - flushes
	t.Logf("%d flushes have reached the drive, of %d", n, len(tests)*wire.BreakFlushes)
	if n >= wire.BreakFlushes { // those of the superblocks' writers, not those of the leases' clients
		t.Error("flushes were not skipped")
	}
	if ran, err := v.Run(ctx, "stop"); err != nil || ran.Code != 0 {
		t.Errorf("stopping: %v, %+v", err, ran)
	}
	must(v.Off(ctx))
}

func waitFor(ctx context.Context, t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(40 * time.Second); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) || ctx.Err() != nil {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
