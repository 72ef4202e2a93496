package vhostuser

import (
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"vacate/internal/virtioblk"
)

// TestUnreadReplies: a frontend that asks and does not listen holds up nobody but
// itself, and finds all replies when it does.
func TestUnreadReplies(t *testing.T) {
	w := newWorld(t, nil)
	f := w.connect()
	asked := 0
	for full := false; !full; {
		if err := f.conn.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		_, err := f.conn.Write(raw(reqGetFeatures, flagsVersion, nil))
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			full = true
		case err != nil:
			t.Fatalf("after %d messages: %v", asked, err)
		default:
			asked++
		}
	}
	const span = 100 * time.Millisecond
	least := time.Hour
	for range 5 { // what else the process does is not counted in the quietest
		before := processTime(t)
		time.Sleep(span)
		least = min(least, processTime(t)-before)
	}
	if least > span/10 {
		t.Errorf("waiting for the frontend takes %v of processor in %v", least, span)
	}
	for i := range asked {
		if r := f.receive(); r.request != reqGetFeatures {
			t.Fatalf("reply %d of %d: %+v", i, asked, r)
		}
	}
	if err := f.conn.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	f.negotiate()

	// One that never listens does not keep the server from its end.
	for range asked {
		if f.trySend(raw(reqGetFeatures, flagsVersion, nil), nil) != nil {
			break
		}
	}
	w.server.Close()
	w.server.Wait()
}

func processTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestMemoryRemovedInFlight: a region stays as long as requests are in flight in it.
func TestMemoryRemovedInFlight(t *testing.T) {
	w := newWorld(t, nil)
	f := w.connect()
	f.negotiate()
	g := newGuest(t, 1<<20)
	f.must(reqSetMemTable, g.table(), g.fd)
	f.start(g, 0, newEvent(t), newEvent(t))
	places, before := w.keeper.count(), w.record()
	w.worker.mu.Lock()
	ring := w.worker.rings[0]
	w.worker.mu.Unlock()
	block := w.worker.hold()
	f.send(raw(reqRemMemReg, flagsVersion|flagsNeedReply, append(u64(0), g.region()...)))
	time.Sleep(20 * time.Millisecond)
	if now := w.record(); now != before || w.keeper.count() != places {
		t.Error("the region has gone")
	}
	ring.Pending() // faults if it is mapped no more
	close(block)
	if r := f.receive(); le.Uint64(r.payload) != 0 {
		t.Errorf("%+v", r)
	}
	f.must(reqSetOwner, nil)
	if n := w.keeper.count(); n != places-1 || w.worker.running(0) {
		t.Errorf("%d descriptors are kept, of %d before", n, places)
	}
}

// TestReadOnly offers what a read-only disk has.
func TestReadOnly(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.ReadOnly = true })
	f := w.connect()
	got := le.Uint64(f.ask(reqGetFeatures, nil))
	if got&virtioblk.FeatureReadOnly == 0 || got&(virtioblk.FeatureDiscard|virtioblk.FeatureWriteZeroes) != 0 {
		t.Errorf("features %#x", got)
	}
	f.tell(reqSetProtocolFeatures, u64(allProtocol))
	if f.ack(reqSetFeatures, u64(got|virtioblk.FeatureDiscard)) == 0 {
		t.Error("discard can be negotiated")
	}
}
