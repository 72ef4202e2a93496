package node

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vacate/internal/lease"
)

func TestOpenAndClose(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		before := time.Now().UTC()
		l := w.open(5)
		if !lease.ValidID(l.ID) || l.State != lease.Open || l.SizeBytes != 5*mib || l.LogicalBlock != 512 || l.Tenant != "acme" ||
			!l.OpenedAt.Equal(before) || !l.ExpiresAt.IsZero() || l.Result != "" || l.Space != lease.Held {
			t.Errorf("an open lease is %+v", l)
		}
		if got := w.socks.IDs(); !slices.Equal(got, []string{l.ID}) {
			t.Errorf("sockets of %v", got)
		}
		if got := w.n.SocketPath(l.ID, lease.NBD); got != "/leases/"+l.ID+"/nbd.sock" {
			t.Errorf("socket %s", got)
		}
		d := w.n.Drives(w.ctx)
		if d[0].Path != "/a" || d[0].LeasedBytes != 5*mib || d[0].FreeBytes != 3*mib || d[0].CapacityBytes != 8*mib || d[0].State != DriveReady ||
			d[0].Errors != 3 || d[0].LastError != "EIO" {
			t.Errorf("drive %+v", d[0])
		}
		time.Sleep(time.Hour)
		c := w.close(l.ID)
		if c.State != lease.Closed || c.Result != lease.OK || c.Space != lease.Free || c.Erasure == nil || !c.Erasure.ReadBack ||
			!c.Erasure.Drained || c.Erasure.KeyGeneratedNs == 0 || c.Text != "" || c.ClosedAt.Sub(l.OpenedAt) != time.Hour {
			t.Errorf("a closed lease is %+v, erasure %+v", c, c.Erasure)
		}
		w.expectFree(12)
		_, own := w.audit(l.ID)
		if len(own) != 2 || len(own[1].Events) != 3 || own[1].Result != "ok" || !own[1].Drained || own[1].Events[0].BootID != "boot-1" {
			t.Errorf("records %+v", own)
		}
		if len(w.socks.IDs()) != 0 || len(w.e.Keys()) != 0 {
			t.Errorf("left behind: sockets %v, keys %v", w.socks.IDs(), w.e.Keys())
		}
		if len(w.n.List(false)) != 0 || len(w.n.List(true)) != 1 {
			t.Errorf("listed: %v", w.n.List(true))
		}
	})
}

func TestDoubleClose(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		l := w.open(1)
		w.f.Strike(0, 0, false)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if c, err := w.n.Close(w.ctx, l.ID); err != nil || c.State != lease.Closed || c.CloseSeq != 4 {
					t.Errorf("%+v, %v", c, err)
				}
			})
		}
		wg.Wait()
		calls := 0
		for _, c := range w.f.Calls() {
			if c == "engine CloseLease" {
				calls++
			}
		}
		if calls != 1 {
			t.Errorf("ten callers made %d closes", calls)
		}
		w.restart()
		if c := w.close(l.ID); c.State != lease.Closed || c.Erasure == nil {
			t.Errorf("closing again after a restart: %+v", c)
		}
	})
}

func TestTimeToLive(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		open := func(ttl time.Duration) string {
			l, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib, TTL: ttl})
			w.must(l, err)
			return l.ID
		}
		short, long, closed := open(time.Minute), open(time.Hour), open(time.Minute)
		w.close(closed)
		time.Sleep(time.Minute - 1)
		w.expect(short, lease.Open, "", lease.Held)
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		w.expect(short, lease.Closed, lease.OK, lease.Free)
		w.expect(long, lease.Open, "", lease.Held)
		w.restart() // the time goes on
		time.Sleep(59*time.Minute - 1)
		w.expect(long, lease.Open, "", lease.Held)
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		w.expect(long, lease.Closed, lease.OK, lease.Free)
		late := open(time.Minute)
		w.stop()
		time.Sleep(time.Hour) // it is over while control is away
		w.mustStart()
		synctest.Wait()
		w.expect(late, lease.Closed, lease.OK, lease.Free)
	})
}

// TestKeyIsNotReadBack is law L5: what was not read back is not erased.
func TestKeyIsNotReadBack(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		l := w.open(1)
		w.e.FailReadBack(3)
		done := make(chan lease.Lease)
		go func() { done <- w.close(l.ID) }()
		synctest.Wait()
		if got := w.get(l.ID); got.State != lease.Closing || !strings.Contains(got.Text, "not read back") {
			t.Errorf("while the key is not read back: %+v", got)
		}
		if got := <-done; got.State != lease.Closed || got.Text != "" {
			t.Errorf("in the end: %+v", got)
		}
	})
}

func TestStop(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		a, b := w.open(1), w.open(2)
		_, err := w.n.Stop(w.ctx, false)
		e := kind(t, err, Refused)
		if !strings.Contains(e.Text, a.ID) || !strings.Contains(e.Text, b.ID) || !strings.Contains(e.Next, "--erase") {
			t.Error(e)
		}
		w.open(1) // nothing has changed
		closed, err := w.n.Stop(w.ctx, true)
		if err != nil || len(closed) != 3 {
			t.Fatalf("%v, %v", closed, err)
		}
		for _, l := range closed {
			if l.State != lease.Closed {
				t.Errorf("%+v", l)
			}
		}
		_, err = w.n.Open(w.ctx, OpenRequest{SizeBytes: mib})
		kind(t, err, Unavailable)
		w.restart()
		if _, err := w.n.Stop(w.ctx, false); err != nil {
			t.Errorf("without leases: %v", err)
		}
	})
}

func TestWatch(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		watch, err := w.n.Watch()
		w.must(nil, err)
		defer watch.Close()
		l := w.open(1)
		w.close(l.ID)
		want := []lease.State{lease.Opening, lease.Open, lease.Closing, lease.Erased, lease.Closed}
		var got []lease.State
		for len(got) == 0 || got[len(got)-1] != lease.Closed {
			c, err := watch.Next(w.ctx)
			if err != nil || c.Missed != 0 || c.Lease.ID != l.ID {
				t.Fatalf("%+v, %v", c, err)
			}
			got = append(got, c.Lease.State)
		}
		if got = slices.Compact(got); !slices.Equal(got, want) {
			t.Errorf("seen %v, want %v", got, want)
		}
		short, cancel := context.WithTimeout(w.ctx, time.Second)
		defer cancel()
		if c, err := watch.Next(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%+v, %v", c, err)
		}

		w.e.Holds = nil         // reading the journal each time takes long
		for range watchBuffer { // nobody reads
			l = w.open(1)
			w.close(l.ID)
		}
		c, err := watch.Next(w.ctx)
		if err != nil || c.Missed == 0 {
			t.Errorf("a slow watcher gets %+v, %v", c, err)
		}
		last := lease.Lease{}
		for range watchBuffer {
			c, err := watch.Next(w.ctx)
			if err != nil || c.Missed != 0 {
				t.Fatalf("%+v, %v", c, err)
			}
			last = c.Lease
		}
		if last.ID != l.ID || last.State != lease.Closed {
			t.Errorf("the newest change is %+v", last)
		}

		for range 127 {
			_, err := w.n.Watch()
			w.must(nil, err)
		}
		_, err = w.n.Watch()
		kind(t, err, Full)
		go w.n.Shutdown()
		_, err = watch.Next(w.ctx)
		kind(t, err, Unavailable)
	})
}

func TestBytesText(t *testing.T) {
	for n, want := range map[int64]string{0: "0 bytes", 1023: "1023 bytes", 1024: "1 KiB", 1535: "1.4 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1023.9 KiB",
		1 << 20: "1 MiB", 7<<30 + 1<<29: "7.5 GiB", 1 << 40: "1 TiB", 1 << 62: "4 EiB", math.MaxInt64: "7.9 EiB", 1<<58 + 1: "256 PiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("bytesText(%d) = %s, want %s", n, got, want)
		}
	}
}
