package vhostuser

import (
	"context"
	"errors"
	"os"
	"runtime"
	"sync"
	"testing"

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
func (k *shelf) snapshot(t testing.TB) *shelf {
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
	release func()        // closes taken
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
	x.release = sync.OnceFunc(func() { close(x.taken) })
	w.t.Cleanup(x.release) // a test that has failed does not wait for who is in it
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

// disarm takes away the trap that was set.
func (w *world) disarm() {
	w.keeper.mu.Lock()
	w.keeper.before = nil
	w.keeper.mu.Unlock()
	w.hook.Store(nil)
}

// spring is crash for a server that has fallen into x.
func (w *world) spring(x *trap) {
	w.t.Helper()
	t := w.server.current()
	w.disarm()
	old := w.keeper
	w.keeper = old.snapshot(w.t)
	w.cfg.Keeper = w.keeper
	x.release()
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

// TestL8CrashAnywhere ends the server at every step of every message of a session.
// The successor goes on, the frontend gets exactly one reply to each, and no
// descriptor is left in a place that nobody names.
func TestL8CrashAnywhere(t *testing.T) {
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

// crashAt sends m and ends the server when it comes to step, and asks something
// else afterwards: no second reply comes before that one's. It reports whether it
// ended the server.
func (w *world) crashAt(f *frontend, step string, m scripted) (crashed bool) {
	w.t.Helper()
	need := uint32(0)
	if !forms[m.request].reply {
		need = flagsNeedReply
	}
	x := w.set(step)
	answer := func(send []byte, files []int) (r reply) {
		f.send(send, files...)
		errs := make(chan error, 1)
		go func() {
			var err error
			r, err = f.tryReceive()
			errs <- err
		}()
		var err error
		select {
		case <-x.reached:
			if !crashed {
				crashed = true
				w.spring(x)
				w.serve()
			}
			err = <-errs
		case err = <-errs:
		}
		if err != nil {
			w.t.Fatalf("%s, crash %v: %v", requestName(m.request), crashed, err)
		}
		return r
	}
	r := answer(raw(m.request, flagsVersion|need, m.payload), m.files)
	if r.request != m.request || need != 0 && le.Uint64(r.payload) != 0 {
		w.t.Fatalf("%s, crash %v: %+v", requestName(m.request), crashed, r)
	}
	for _, fd := range r.files {
		_ = sys.CloseFD(fd)
	}
	// What is given up is given up behind the reply, and before the next message.
	if r := answer(raw(reqGetQueueNum, flagsVersion, nil), nil); r.request != reqGetQueueNum {
		w.t.Fatalf("%s, crash %v: %+v", requestName(m.request), crashed, r)
	}
	w.disarm()
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
