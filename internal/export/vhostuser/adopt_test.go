package vhostuser

import (
	"bytes"
	"context"
	"errors"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"vacate/internal/fail"
	"vacate/internal/sys"
	"vacate/internal/volatile"
)

// crash ends a world's server as SIGKILL would: its successor finds the socket, the
// places and the session file as they are now. What the old one does after that
// moment, it does to a keeper that nobody asks any more.
func (w *world) crash() {
	w.t.Helper()
	w.keeper = w.keeper.snapshot(w.t)
	w.cfg.Keeper = w.keeper
	if err := w.server.Leave(context.Background()); err != nil {
		w.t.Fatal(err)
	}
}

// file is the session file, as a successor would see it now.
func (w *world) file() *volatile.Session {
	w.t.Helper()
	f, err := w.keeper.Fetch(PlaceSession)
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := volatile.OpenSession(f)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) record() volatile.SessionRecord {
	w.t.Helper()
	s := w.file()
	defer s.Close()
	return s.Record()
}

// snapshot is what the keeper has now, with a session file of its own.
func (k *shelf) snapshot(t *testing.T) *shelf {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	now := &shelf{places: map[int]int{}}
	for p, fd := range k.places {
		f, err := sys.Share(fd, "kept")
		if err == nil && p == PlaceSession {
			f, err = copyOf(f)
		}
		if err == nil {
			now.places[p], err = sys.Detach(f)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { k.close(); now.close() })
	return now
}

func copyOf(f *os.File) (*os.File, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b := make([]byte, st.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, err
	}
	again, err := sys.Memfd("session", st.Size())
	if err != nil {
		return nil, err
	}
	_, err = again.WriteAt(b, 0)
	return again, errors.Join(err, f.Close())
}

// A trap stops a server at a step of a message.
type trap struct {
	once    sync.Once
	reached chan struct{}
	taken   chan struct{} // closed when the successor's state was taken
}

func (x *trap) fall() {
	x.once.Do(func() {
		close(x.reached)
		<-x.taken
		runtime.Goexit() // the thread is no more
	})
}

// set makes the server fall into a trap at a step.
func (w *world) set(step string) *trap {
	x := &trap{reached: make(chan struct{}), taken: make(chan struct{})}
	w.keeper.mu.Lock()
	defer w.keeper.mu.Unlock()
	switch step {
	case "keep", "give up":
		w.keeper.before = func(f *os.File) {
			if (f == nil) == (step == "give up") {
				x.fall()
			}
		}
	default:
		h := func(p fail.Point) {
			if string(p) == step {
				x.fall()
			}
		}
		w.hook.Store(&h)
	}
	return x
}

// spring is crash for a server that has fallen into x.
func (w *world) spring(x *trap) {
	w.t.Helper()
	t := w.server.current()
	old := w.keeper
	old.mu.Lock()
	old.before = nil
	old.mu.Unlock()
	w.hook.Store(nil)
	w.keeper = old.snapshot(w.t)
	w.cfg.Keeper = w.keeper
	close(x.taken)
	<-t.ended
	t.closeAll()
	if err := w.server.Leave(context.Background()); err != nil {
		w.t.Fatal(err)
	}
}

func (s *Server) current() *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.session
}

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
	defer ours.Close()
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
	n, err := ours.Read(b)
	if err != nil || !bytes.Equal(b[:n], raw(backendConfigChange, flagsVersion, nil)) {
		t.Errorf("the channel has % x, %v", b[:n], err)
	}
	got := f.ask(reqGetConfig, append(le.AppendUint32(state(0, 8), 0), make([]byte, 8)...))
	if le.Uint64(got[12:]) != 2<<30/512 {
		t.Errorf("capacity % x", got)
	}
}

// TestCrashAnywhere ends the server at every step of every message of a session.
// The successor goes on, the frontend gets exactly one reply to each, and no
// descriptor is left in a place that nobody names.
func TestCrashAnywhere(t *testing.T) {
	for _, step := range []string{"keep", "give up", string(fail.EngineVhostPeeked), string(fail.EngineVhostCommitted), string(fail.EngineVhostConsumed)} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t, nil)
			f := w.connect()
			g := newGuest(t, 1<<20)
			f.ask(reqGetFeatures, nil)
			f.tell(reqSetProtocolFeatures, u64(allProtocol))
			f.ask(reqGetProtocolFeatures, nil)
			crashes := 0
			for _, m := range script(t, g) {
				if w.crashAt(f, step, m) {
					crashes++
				}
				f.ask(reqGetQueueNum, nil) // no second reply comes before this one's
				rec := w.record()
				var named volatile.PlaceSet
				rec.Named(func(p uint8) { named.Add(p) })
				if named != rec.Held || named.Len()+1 != w.keeper.count() {
					t.Fatalf("%s: places %v are held, %v named, the keeper has %d", requestName(m.request), rec.Held, named, w.keeper.count())
				}
			}
			if !w.worker.running(1) || w.worker.running(0) {
				t.Error("the rings are not as the session says")
			}
			t.Logf("%d crashes", crashes)
			if crashes < 3 {
				t.Errorf("only %d crashes", crashes)
			}
		})
	}
}

// crashAt sends m and ends the server when it comes to step. It reports whether it
// did.
func (w *world) crashAt(f *frontend, step string, m scripted) bool {
	w.t.Helper()
	need := uint32(0)
	if !forms[m.request].reply {
		need = flagsNeedReply
	}
	x := w.set(step)
	f.send(raw(m.request, flagsVersion|need, m.payload), m.files...)
	got := make(chan reply, 1)
	errs := make(chan error, 1)
	go func() {
		r, err := f.tryReceive()
		got <- r
		errs <- err
	}()
	crashed := false
	select {
	case <-x.reached:
		crashed = true
	case <-time.After(30 * time.Millisecond): // a message that has no such step
	}
	if crashed {
		w.spring(x)
		w.serve()
	} else {
		w.keeper.mu.Lock()
		w.keeper.before = nil
		w.keeper.mu.Unlock()
	}
	r := <-got
	if err := <-errs; err != nil {
		w.t.Fatalf("%s, crash %v: %v", requestName(m.request), crashed, err)
	}
	if r.request != m.request || need != 0 && le.Uint64(r.payload) != 0 {
		w.t.Fatalf("%s, crash %v: %+v", requestName(m.request), crashed, r)
	}
	for _, fd := range r.files {
		_ = sys.CloseFD(fd)
	}
	return crashed
}

// A step of a script is a message with a reply.
type scripted struct {
	request uint32
	payload []byte
	files   []int
}

// script is a session that sends nearly all there is, and leaves ring 1 running.
func script(t *testing.T, g *guest) []scripted {
	more, log, inflight := newGuest(t, 1<<20), newGuest(t, 1<<20), newGuest(t, 1<<20)
	added := append(u64(0), u64s(1<<30, more.size, guestAt+1<<30, 0)...)
	a, b, err := sys.StreamPair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	channel, err := sys.Descriptor(b)
	if err != nil {
		t.Fatal(err)
	}
	features := u64(0x100000000 | featureProtocol)
	list := []scripted{
		{reqSetOwner, nil, nil},
		{reqSetFeatures, features, nil},
		{reqSetBackendReqFD, nil, []int{channel}},
		{reqGetConfig, append(le.AppendUint32(state(0, 8), 0), make([]byte, 8)...), nil},
		{reqSetMemTable, g.table(), []int{g.fd}},
		{reqGetInflightFD, append(u64s(0, 0), 2, 0, 128, 0), nil},
		{reqSetInflightFD, append(u64s(1<<20, 0), 2, 0, 128, 0), []int{inflight.fd}},
		{reqAddMemReg, added, []int{more.fd}},
		{reqSetLogBase, u64s(4096, 0), []int{log.fd}},
	}
	for i := range uint32(2) {
		list = append(list,
			scripted{reqSetVringNum, state(i, 128), nil},
			scripted{reqSetVringBase, state(i, 0), nil},
			scripted{reqSetVringAddr, g.addr(i, 0), nil},
			scripted{reqSetVringKick, u64(uint64(i)), []int{newEvent(t)}},
			scripted{reqSetVringCall, u64(uint64(i)), []int{newEvent(t)}},
			scripted{reqSetVringErr, u64(uint64(i)), []int{newEvent(t)}},
			scripted{reqSetVringEnable, state(i, 1), nil})
	}
	return append(list,
		scripted{reqSetVringCall, u64(1), []int{newEvent(t)}},
		scripted{reqRemMemReg, added, nil},
		scripted{reqSetMemTable, g.table(), []int{g.fd}},
		scripted{reqSetVringEnable, state(0, 0), nil},
		scripted{reqGetVringBase, state(0, 0), nil})
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
