package vhostuser

import (
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"

	"vacate/internal/sys"
	"vacate/internal/volatile"
)

// TestPlannedHandOver leaves and goes on, in turns; the frontend notices nothing.
func TestPlannedHandOver(t *testing.T) {
	w := newWorld(t, nil)
	f := w.connect()
	f.negotiate()
	g := newGuest(t, 1<<20)
	f.must(reqSetMemTable, g.table(), g.fd)
	f.start(g, 0, newEvent(t), newEvent(t))
	for i := range 3 {
		g.setUsed(0, uint16(10*i))
		if err := w.server.Leave(context.Background()); err != nil {
			t.Fatal(err)
		}
		w.server.Wait()
		if st := w.server.Stats(); st.Passed != 1 || st.Rings != 0 {
			t.Errorf("%+v", st)
		}
		f.tell(reqGetQueueNum, nil) // nobody is there
		w.serve()
		if st := w.server.Stats(); st.Adopted != 1 || st.Rings != 1 {
			t.Errorf("%+v", st)
		}
		if got := w.worker.takeLog(); len(got) != 1 || !w.worker.running(0) {
			t.Errorf("the worker was told %v", got)
		}
		if r := f.receive(); r.request != reqGetQueueNum {
			t.Errorf("%+v", r)
		}
		f.must(reqSetVringErr, u64(1), newEvent(t))
	}
	if got := f.ask(reqGetVringBase, state(0, 0)); !bytes.Equal(got, state(0, 20)) {
		t.Errorf("base % x", got)
	}
}

// TestLeaveInTime gives up when the drive does not answer; what is in flight is a
// successor's.
func TestLeaveInTime(t *testing.T) {
	w := newWorld(t, nil)
	f := w.connect()
	f.negotiate()
	g := newGuest(t, 1<<20)
	f.must(reqSetMemTable, g.table(), g.fd)
	f.start(g, 0, newEvent(t), newEvent(t))
	block := w.worker.hold()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := w.server.Leave(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("leaving: %v", err)
	}
	close(block)
	w.server.Wait()
	w.serve()
	if !w.worker.running(0) {
		t.Error("the ring does not run")
	}
}

// TestInflightIsResubmitted: a ring that ran is taken over with what its table says.
func TestInflightIsResubmitted(t *testing.T) {
	w := newWorld(t, nil)
	f := w.connect()
	f.negotiate()
	g := newGuest(t, 1<<20)
	f.must(reqSetMemTable, g.table(), g.fd)
	g.setUsed(0, 5)
	f.start(g, 0, newEvent(t), newEvent(t))
	// Two requests are in flight, of which a real worker would have made this.
	file := w.file()
	defer file.Close()
	table := file.Inflight()
	le.PutUint16(table[14:], 5)
	for head, counter := range map[int]byte{3: 8, 9: 7} {
		e := table[16+16*head:]
		e[0], e[8] = 1, counter
	}
	w.crash()
	w.serve()
	if got := w.worker.takeLog(); !slices.Equal(got, []string{"start 0 at 7"}) {
		t.Errorf("the worker was told %v", got)
	}
	w.worker.mu.Lock()
	n := w.worker.rings[0].Resubmit()
	w.worker.mu.Unlock()
	if n != 2 {
		t.Errorf("%d requests are resubmitted", n)
	}
}

// TestResize tells the frontend of another size, once, also if it was told before
// a crash.
func TestResize(t *testing.T) {
	w := newWorld(t, nil)
	f := w.connect()
	f.negotiate()
	ours, theirs, err := sys.StreamPair()
	if err != nil {
		t.Fatal(err)
	}
	channel, err := net.FileConn(ours)
	if err = errors.Join(err, ours.Close()); err != nil {
		t.Fatal(err)
	}
	defer channel.Close()
	fd, err := sys.Descriptor(theirs)
	if err != nil {
		t.Fatal(err)
	}
	f.must(reqSetBackendReqFD, nil, fd)
	f.ask(reqGetConfig, append(le.AppendUint32(state(0, 8), 0), make([]byte, 8)...))
	if err := theirs.Close(); err != nil {
		t.Fatal(err)
	}
	w.cfg.Export = disk{2 << 30}
	for range 2 { // the second time nothing is new
		if err := w.server.Leave(context.Background()); err != nil {
			t.Fatal(err)
		}
		w.serve()
		f.ask(reqGetFeatures, nil)
	}
	b := make([]byte, 64)
	if err := channel.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	n, err := channel.Read(b)
	if err != nil || !bytes.Equal(b[:n], raw(backendConfigChange, flagsVersion, nil)) {
		t.Errorf("the channel has % x, %v", b[:n], err)
	}
	got := f.ask(reqGetConfig, append(le.AppendUint32(state(0, 8), 0), make([]byte, 8)...))
	if le.Uint64(got[12:]) != 2<<30/512 {
		t.Errorf("capacity % x", got)
	}
}

// TestSplitMessages: a message may come in pieces, and a crash between does not
// matter.
func TestSplitMessages(t *testing.T) {
	w := newWorld(t, nil)
	f := w.connect()
	f.negotiate()
	g := newGuest(t, 1<<20)
	whole := raw(reqSetMemTable, flagsVersion|flagsNeedReply, g.table())
	for _, cut := range [][]int{{3}, {12}, {20}, {5, 12, 13, 30}} {
		at := 0
		for i, end := range append(cut, len(whole)) {
			if i == 0 {
				f.send(whole[at:end], g.fd)
			} else {
				f.send(whole[at:end])
			}
			at = end
			if i == 0 {
				time.Sleep(3 * time.Millisecond)
				w.crash()
				w.serve()
			}
		}
		if r := f.receive(); le.Uint64(r.payload) != 0 {
			t.Errorf("cut at %v: %+v", cut, r)
		}
		if n := len(w.record().Regions); w.record().Regions[0].Size != g.size {
			t.Errorf("cut at %v: no memory, %d", cut, n)
		}
	}
	// The frontend dies in the middle of one.
	f.send(whole[:20], g.fd)
	if err := f.conn.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the session's end", func() bool { return w.keeper.count() == 1 })
}

// TestLostSession: what cannot be taken over is ended, and the next frontend served.
func TestLostSession(t *testing.T) {
	for name, damage := range map[string]func(w *world, g *guest){
		"memory cut": func(_ *world, g *guest) {
			if err := g.f.Truncate(4096); err != nil {
				t.Fatal(err)
			}
		},
		"no connection": func(w *world, _ *guest) { w.lose(w.record().Conn) },
		"no memory":     func(w *world, _ *guest) { w.lose(w.record().Regions[0].Place) },
		"not admitted": func(w *world, _ *guest) {
			w.cfg.Readmit = func() (func(), error) { return nil, syscall.EAGAIN }
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			f := w.connect()
			f.negotiate()
			g := newGuest(t, 1<<20)
			f.must(reqSetMemTable, g.table(), g.fd)
			f.start(g, 0, newEvent(t), newEvent(t))
			damage(w, g)
			w.crash()
			if name == "no memory" { // the keeper has lost what it was given: nothing can be relied on
				if s, err := serve(w.l, w.cfg, w.instead(w.worker)); !errors.Is(err, errKeeper) {
					t.Fatalf("%v, %v", s, err)
				}
				w.server = nil
				return
			}
			w.serve()
			if st := w.server.Stats(); st.Adopted != 0 {
				t.Errorf("%+v", st)
			}
			f = w.connect()
			f.ask(reqGetFeatures, nil)
		})
	}
}

func (w *world) lose(place uint8) {
	w.keeper.mu.Lock()
	defer w.keeper.mu.Unlock()
	_ = sys.CloseFD(w.keeper.places[int(place)])
	delete(w.keeper.places, int(place))
}

// TestSessionFile refuses one for another number of queues, and one that is damaged.
func TestSessionFile(t *testing.T) {
	w := newWorld(t, nil)
	w.server.Close()
	w.server.Wait()
	cfg := w.cfg
	cfg.Queues = 3
	if _, err := Serve(w.l, cfg); err == nil {
		t.Error("a session file for 2 queues serves 3")
	}
	f, err := w.keeper.Fetch(PlaceSession)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Serve(w.l, w.cfg); !errors.Is(err, volatile.ErrFormat) {
		t.Errorf("a damaged session file: %v", err)
	}
}
