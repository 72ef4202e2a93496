package node

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"vacate/internal/ipc"
	"vacate/internal/lease"
	"vacate/internal/node/nodesim"
)

// noting is an engine that notes what leases it is to open.
type noting struct {
	*nodesim.Engine
	opened []ipc.Exports
	files  []int
}

func (e *noting) OpenLease(ctx context.Context, req ipc.LeaseOpenRequest, l ...*os.File) (ipc.LeaseOpened, error) {
	e.opened, e.files = append(e.opened, req.Exports), append(e.files, len(l))
	return e.Engine.OpenLease(ctx, req, l...)
}

// TestExports: the engine is given a socket for each export, and told which
// exports they are; a lease keeps its own.
func TestExports(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		engine := &noting{Engine: w.e}
		w.edit = func(c *Config) { c.Engine, c.Queues = engine, 3 }
		w.up()
		want := []lease.Exports{
			{},
			{VhostUser: true, Queues: 3},
			{NoNBD: true, VhostUser: true, Queues: 64, ReadOnly: true},
		}
		asked := slices.Clone(want)
		asked[1].Queues = 0 // the node's number
		for i, x := range asked {
			l, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib, Key: string(rune('a' + i)), Exports: x})
			if err != nil || l.Exports != want[i] {
				t.Fatalf("%+v: %+v, %v", x, l, err)
			}
			if engine.opened[i] != ipc.Exports(want[i]) || engine.files[i] != len(want[i].Kinds()) {
				t.Errorf("%+v: the engine got %+v, %d sockets", x, engine.opened[i], engine.files[i])
			}
		}
		w.restart()
		for i, x := range asked { // the same again is the same lease
			l, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib, Key: string(rune('a' + i)), Exports: x})
			if err != nil || l.Exports != want[i] {
				t.Errorf("%+v: %+v, %v", x, l, err)
			}
			for _, other := range want {
				if other == want[i] {
					continue
				}
				_, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib, Key: string(rune('a' + i)), Exports: other})
				kind(t, err, Refused)
			}
			if w.close(l.ID); w.get(l.ID).Exports != want[i] {
				t.Errorf("of a lease that has ended: %+v", w.get(l.ID).Exports)
			}
		}
		if left := w.socks.IDs(); len(left) != 0 || len(engine.opened) != len(want) {
			t.Errorf("%d openings, sockets of %v are left", len(engine.opened), left)
		}
	})
}

// TestLongFolder: where only the NBD socket's path is short enough, the daemon
// runs, says so, and refuses what could not be reached before anything is recorded.
func TestLongFolder(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.socks.Dir = "/" + strings.Repeat("d", socketPathMax-len("/"+idA+"/vhost-user.sock")-1)
		w.up()
		vm := OpenRequest{SizeBytes: mib, Exports: lease.Exports{VhostUser: true}}
		if l, err := w.n.Open(w.ctx, vm); err != nil || len(w.n.Status().Warnings) != 0 {
			t.Errorf("the longest folder: %+v, %v, %v", l, err, w.n.Status().Warnings)
		}
		w.socks.Dir += "d"
		before, _ := w.audit("")
		_, err := w.n.Open(w.ctx, vm)
		if e := kind(t, err, Refused); !strings.Contains(e.Text, "108 bytes") || !strings.Contains(e.Next, "1 bytes shorter") {
			t.Error(e)
		}
		if after, _ := w.audit(""); after != before {
			t.Errorf("%d records were written", after-before)
		}
		if s := w.n.Status().Warnings; len(s) != 1 || !strings.Contains(s[0], "vhost-user socket") {
			t.Errorf("warnings %q", s)
		}
		w.close(w.open(1).ID)
	})
}

func TestExportsRefused(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		for _, tt := range []struct {
			x    lease.Exports
			says string
		}{
			{lease.Exports{NoNBD: true}, "cannot be reached"},
			{lease.Exports{Queues: 2}, "queues"},
			{lease.Exports{ReadOnly: true}, "read-only"},
			{lease.Exports{VhostUser: true, Queues: 65}, "1 to 64"},
			{lease.Exports{VhostUser: true, Queues: -1}, "1 to 64"},
		} {
			_, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib, Exports: tt.x})
			if e := kind(t, err, Invalid); !strings.Contains(e.Text, tt.says) {
				t.Errorf("%+v: %v", tt.x, err)
			}
		}
		w.expectFree(12)
	})
}
