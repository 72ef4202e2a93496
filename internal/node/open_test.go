package node

import (
	"context"
	"errors"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vacate/internal/extent"
	"vacate/internal/ipc"
	"vacate/internal/lease"
	"vacate/internal/node/nodesim"
)

func TestBadRequests(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		for _, tt := range []struct {
			req  OpenRequest
			kind Kind
			says string
		}{
			{OpenRequest{}, Invalid, "0 bytes"},
			{OpenRequest{SizeBytes: -4096}, Invalid, "negative"},
			{OpenRequest{SizeBytes: math.MinInt64}, Invalid, "negative"},
			{OpenRequest{SizeBytes: 5000}, Invalid, "the next is 8192"},
			{OpenRequest{SizeBytes: 1<<62 + 4096}, Invalid, "2^62"},
			{OpenRequest{SizeBytes: math.MaxInt64}, Invalid, "2^62"},
			{OpenRequest{SizeBytes: 1 << 62}, Full, "8 MiB (8388608 bytes) on /a, 4 MiB (4194304 bytes) on /b"},
			{OpenRequest{SizeBytes: 12*mib + 4096}, Full, "free:"},
			{OpenRequest{SizeBytes: 5 * mib, Drive: "/b"}, Full, "4 MiB (4194304 bytes) on /b"},
			{OpenRequest{SizeBytes: mib, LogicalBlock: 1024}, Invalid, "512 or 4096"},
			{OpenRequest{SizeBytes: mib, Tenant: "a/b"}, Invalid, "tenant"},
			{OpenRequest{SizeBytes: mib, Key: "a\nb"}, Invalid, "idempotency key"},
			{OpenRequest{SizeBytes: mib, TTL: -1}, Invalid, "too short"},
			{OpenRequest{SizeBytes: mib, TTL: time.Millisecond}, Invalid, "too short"},
			{OpenRequest{SizeBytes: mib, Drive: "/c"}, NotFound, `"/c"`},
		} {
			_, err := w.n.Open(w.ctx, tt.req)
			if e := kind(t, err, tt.kind); !strings.Contains(e.Error(), tt.says) {
				t.Errorf("%+v: %q does not say %q", tt.req, e.Error(), tt.says)
			}
			if tt.kind == Full && !errors.Is(err, extent.ErrFull) {
				t.Errorf("%+v: %v does not wrap ErrFull", tt.req, err)
			}
		}
		_, err := w.n.Close(w.ctx, "zzzzzzzzzzzzzzzz")
		kind(t, err, NotFound)
		_, err = w.n.Get("zzzzzzzzzzzzzzzz")
		kind(t, err, NotFound)
		w.expectFree(12)
		if n, _ := w.audit(""); n != 2 {
			t.Errorf("%d records after nothing but refusals, want 2 of drives", n)
		}
	})
}

func TestWhereALeaseLies(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		names := map[string]string{}
		for _, d := range w.n.Drives(w.ctx) {
			names[d.UUID] = d.Path
		}
		where := func(mibs int64, drive, want string) lease.Lease {
			t.Helper()
			l := w.open(mibs, drive)
			if got := pieceString(l.Pieces, names); got != want {
				t.Errorf("%d MiB on %q lie at %s, want %s", mibs, drive, got, want)
			}
			return l
		}
		first := where(5, "", "/a:0+5 ") // most free space
		where(1, "", "/b:0+1 ")          // now there
		where(1, "Sb", "/b:1+1 ")        // by serial
		where(5, "", "/a:5+3 /b:2+2 ")   // both
		w.close(first.ID)
		whole := where(5, w.uuid("/a"), "/a:0+5 ") // what the first had
		_, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: 4096})
		kind(t, err, Full)
		for _, l := range w.n.List(false) {
			w.close(l.ID)
		}
		where(12, "", "/a:0+8 /b:0+4 ")
		w.restart()
		if got := w.get(whole.ID); got.State != lease.Closed {
			t.Errorf("after a restart: %+v", got)
		}
	})
}

func (w *world) uuid(name string) string {
	w.t.Helper()
	d, err := w.n.Drive(w.ctx, name)
	if err != nil {
		w.t.Fatal(err)
	}
	return d.UUID
}

func TestIdempotency(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		req := OpenRequest{SizeBytes: 2 * mib, Tenant: "acme", Key: "k", UID: 7, TTL: time.Hour}
		var wg sync.WaitGroup
		ids := make([]string, 10)
		for i := range ids { // at once
			wg.Go(func() {
				l, err := w.n.Open(w.ctx, req)
				if err != nil || l.State != lease.Open {
					t.Errorf("%+v, %v", l, err)
				}
				ids[i] = l.ID
			})
		}
		wg.Wait()
		if len(slices.Compact(ids)) != 1 {
			t.Fatalf("one key, leases %v", ids)
		}
		for _, change := range []func(*OpenRequest){
			func(r *OpenRequest) { r.SizeBytes = mib }, func(r *OpenRequest) { r.Drive = "/a" }, func(r *OpenRequest) { r.UID = 8 },
			func(r *OpenRequest) { r.TTL = 0 }, func(r *OpenRequest) { r.LogicalBlock = 4096 },
		} {
			other := req
			change(&other)
			_, err := w.n.Open(w.ctx, other)
			kind(t, err, Refused)
		}
		w.restart()
		if l, err := w.n.Open(w.ctx, req); err != nil || l.ID != ids[0] || l.State != lease.Open {
			t.Errorf("after a restart: %+v, %v", l, err)
		}
		w.close(ids[0])
		if l, err := w.n.Open(w.ctx, req); err != nil || l.ID != ids[0] || l.State != lease.Closed {
			t.Errorf("after its end: %+v, %v", l, err)
		}
		req.Tenant = "other"
		if l, err := w.n.Open(w.ctx, req); err != nil || l.ID == ids[0] {
			t.Errorf("another tenant's key: %+v, %v", l, err)
		}
	})
}

// TestOpeningThatFails gives back everything, and the key may try again. Before its
// record it never was; after, its record says how it ended.
func TestOpeningThatFails(t *testing.T) {
	for _, tt := range []struct {
		name    string
		fails   func(c *Config, e *nodesim.Engine)
		records []string // results of its records
		says    string
	}{
		{"no sockets", func(c *Config, _ *nodesim.Engine) { c.Sockets = noSockets{c.Sockets} }, nil, "no sockets"},
		{"no key", func(c *Config, e *nodesim.Engine) { c.Engine = noKeys{Engine: e} }, nil, "no keys"},
		{"another key", func(c *Config, e *nodesim.Engine) { c.Engine = noKeys{Engine: e, other: true} }, nil, "committed to"},
		{"not served", func(c *Config, e *nodesim.Engine) { c.Engine = noService{e} }, []string{"", "failed"}, "no service"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.up()
				w.edit = func(c *Config) { tt.fails(c, w.e) }
				w.restart()
				req := OpenRequest{SizeBytes: 2 * mib, Key: "k"}
				_, err := w.n.Open(w.ctx, req)
				if err == nil || !strings.Contains(err.Error(), tt.says) {
					t.Fatal(err)
				}
				w.expectFree(12)
				if len(w.e.Keys()) != 0 || len(w.socks.IDs()) != 0 {
					t.Errorf("keys %v, sockets %v", w.e.Keys(), w.socks.IDs())
				}
				var got []string
				ended := w.n.List(true)
				for _, l := range ended {
					if l.State != lease.Closed || l.Result != lease.Failed || !strings.Contains(l.Text, tt.says) {
						t.Errorf("the lease that never was: %+v", l)
					}
					_, own := w.audit(l.ID)
					for _, r := range own {
						got = append(got, r.Result)
					}
				}
				if !slices.Equal(got, tt.records) {
					t.Errorf("results of its records %q, want %q", got, tt.records)
				}
				w.edit = nil
				w.restart()
				if l, err := w.n.Open(w.ctx, req); err != nil || l.State != lease.Open {
					t.Errorf("the key cannot try again: %+v, %v", l, err)
				}
			})
		})
	}
}

// noKeys is an engine that makes none, or one that nobody asked for.
type noKeys struct {
	*nodesim.Engine
	other bool
}

func (e noKeys) OpenLease(ctx context.Context, req ipc.LeaseOpenRequest, listeners ...*os.File) (ipc.LeaseOpened, error) {
	if !e.other {
		return ipc.LeaseOpened{}, &ipc.RemoteError{Code: ipc.CodeBusy, Text: "no keys today"}
	}
	o, err := e.Engine.OpenLease(ctx, req, listeners...)
	o.KeyMode = ipc.KeyModeSplit
	return o, err
}

// noService is an engine that serves nothing.
type noService struct{ *nodesim.Engine }

func (noService) ServeLease(context.Context, string) error {
	return &ipc.RemoteError{Code: ipc.CodeInternal, Text: "no service today"}
}

// TestOpeningThatMayHaveFailed has a journal that says no: whatever it did,
// nothing is left of the lease, without a restart.
func TestOpeningThatMayHaveFailed(t *testing.T) {
	for _, mode := range []nodesim.Mode{nodesim.Lost, nodesim.Done} {
		t.Run(mode.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.up()
				w.f.Strike(3, mode, false)
				_, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: 12 * mib, Key: "k"})
				if !errors.Is(err, nodesim.ErrStruck) || w.f.Calls()[2] != "journal OpenLease" {
					t.Fatal(err, w.f.Calls())
				}
				w.expectFree(12)
				l, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: 12 * mib, Key: "k"})
				if err != nil || l.State != lease.Open {
					t.Errorf("trying again: %+v, %v", l, err)
				}
				w.close(l.ID)
				n, _ := w.audit("")
				if want := map[nodesim.Mode]int{nodesim.Lost: 4, nodesim.Done: 6}[mode]; n != want {
					t.Errorf("%d records, want %d", n, want)
				}
			})
		})
	}
}

// TestCallerLeaves has callers who do not wait.
func TestCallerLeaves(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		gone, cancel := context.WithCancel(w.ctx)
		cancel()
		for _, key := range []string{"", "k"} {
			for range 10 { // the caller may be faster, or slower
				_, err := w.n.Open(gone, OpenRequest{SizeBytes: mib, Key: key})
				if err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				time.Sleep(time.Second)
				var open []string
				for _, l := range w.n.List(false) {
					open = append(open, l.Key)
				}
				switch {
				case key == "" && err != nil && len(open) != 0:
					t.Fatalf("a lease that nobody can know is open: %q", open)
				case key == "" && err == nil:
					w.close(w.n.List(false)[0].ID)
				case key != "" && !slices.Equal(open, []string{key}):
					t.Fatalf("open are %q, want the one that its key finds", open)
				}
			}
		}
		l := w.open(1)
		w.e.Down(true)
		short, cancel := context.WithTimeout(w.ctx, time.Second)
		defer cancel()
		_, err := w.n.Close(short, l.ID)
		if e := kind(t, err, Unavailable); !strings.Contains(e.Text, "closing goes on") || !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		w.e.Down(false)
		time.Sleep(10 * time.Second)
		w.expect(l.ID, lease.Closed, lease.OK, lease.Free)
	})
}

func TestSlots(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		used := map[int]bool{}
		var last lease.Lease
		for range 8 { // what the engine has
			last = w.open(1)
			used[last.Slot] = true
		}
		if len(used) != 8 {
			t.Errorf("slots %v", used)
		}
		_, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib})
		kind(t, err, Full)
		w.close(last.ID)
		if l := w.open(1); l.Slot != last.Slot {
			t.Errorf("slot %d was freed, slot %d is given", last.Slot, l.Slot)
		}
	})
}
