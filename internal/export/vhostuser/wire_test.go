package vhostuser

import (
	"errors"
	"net"
	"os"
	"syscall"
	"testing"

	"vacate/internal/sys"
)

// wirePair is a wire, with io_uring or without, and the frontend at its other end.
func wirePair(t *testing.T, uring bool) (*wire, *frontend) {
	t.Helper()
	ours, theirs, err := sys.StreamPair()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := sys.Detach(ours)
	if err != nil {
		t.Fatal(err)
	}
	w, err := newWire(fd)
	if err != nil {
		t.Fatal(err)
	}
	if w.ring == nil {
		t.Fatal("io_uring is needed: sysctl kernel.io_uring_disabled, or a container's seccomp filter, forbids it")
	}
	if !uring {
		if err := w.ring.Close(); err != nil {
			t.Fatal(err)
		}
		w.ring = nil
	}
	c, err := net.FileConn(theirs)
	if err = errors.Join(err, theirs.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = w.close(), c.Close() })
	return w, &frontend{t: t, conn: c.(*net.UnixConn)}
}

// TestWire: messages wait in the socket, whole and with their descriptors, until
// they are answered, whatever waits behind them.
func TestWire(t *testing.T) {
	for _, uring := range []bool{true, false} {
		w, f := wirePair(t, uring)
		if _, partial, err := w.peek(); !errors.Is(err, errNothing) || partial {
			t.Errorf("an empty socket: %v, %v", partial, err)
		}
		file, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		fd, err := sys.Descriptor(file)
		if err != nil {
			t.Fatal(err)
		}
		f.tell(reqGetFeatures, nil)
		f.tell(reqSetVringKick, u64(1), fd)
		f.tell(reqSetMemTable, append(u64(2), make([]byte, 64)...), fd, fd)
		f.tell(reqSetOwner, nil)
		for _, want := range []struct {
			request     uint32
			bytes, fds  int
			reply       []byte
			withNewFile bool
		}{
			{reqGetFeatures, 0, 0, u64(5), false}, {reqSetVringKick, 8, 1, nil, false},
			{reqSetMemTable, 72, 2, u64(0), false}, {reqSetOwner, 0, 0, u64(7), true},
		} {
			for range 2 { // as often as one likes
				m, _, err := w.peek()
				if err != nil || m.request != want.request || len(m.payload) != want.bytes || len(m.files) != want.fds {
					t.Fatalf("%+v, %v, want %+v", m, err, want)
				}
				m.close()
			}
			if !w.writable() {
				t.Error("there is no room for a reply")
			}
			reply, with := []byte(nil), -1
			if want.reply != nil {
				reply = newReply(want.request, want.reply)
			}
			if want.withNewFile {
				with = fd
			}
			if err := w.answer(reply, with); err != nil {
				t.Fatal(err)
			}
			if want.reply == nil {
				continue
			}
			r := f.receive()
			if r.request != want.request || le.Uint64(r.payload) != le.Uint64(want.reply) || len(r.files) != b2i(want.withNewFile) {
				t.Errorf("the reply is %+v", r)
			}
			for _, fd := range r.files {
				_ = syscall.Close(fd)
			}
		}
		if _, _, err := w.peek(); !errors.Is(err, errNothing) {
			t.Errorf("all is taken: %v", err)
		}
		if err := f.conn.Close(); err != nil {
			t.Fatal(err)
		}
		if _, _, err := w.peek(); !errors.Is(err, errHungUp) || !hungUp(w.fd) {
			t.Errorf("the frontend is gone: %v", err)
		}
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestL8WireAfterSplit takes a connection over from a server that was killed while it
// looked at a message piece by piece.
func TestL8WireAfterSplit(t *testing.T) {
	old, f := wirePair(t, true)
	whole := raw(reqSetVringKick, flagsVersion, u64(0))
	f.send(whole[:5])
	f.send(whole[5:])
	if err := sys.PeekFrom(old.fd, 5); err != nil {
		t.Fatal(err)
	}
	again, err := sys.Share(old.fd, "connection")
	if err != nil {
		t.Fatal(err)
	}
	fd, err := sys.Detach(again)
	if err != nil {
		t.Fatal(err)
	}
	w, err := newWire(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	m, _, err := w.peek()
	if err != nil || m.request != reqSetVringKick || len(m.payload) != 8 {
		t.Errorf("the successor finds %+v, %v", m, err)
	}
}

// TestWireUrgent: a byte that was sent out of band is one of the stream. Else it would
// be readable for ever, and not there for those who look.
func TestWireUrgent(t *testing.T) {
	for _, uring := range []bool{true, false} {
		w, f := wirePair(t, uring)
		raw, err := f.conn.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		urgent := func(b ...byte) {
			t.Helper()
			var sent error
			if err := raw.Write(func(fd uintptr) bool {
				sent = syscall.Sendto(int(fd), b, syscall.MSG_OOB, nil)
				return true
			}); err != nil || sent != nil {
				t.Fatal(err, sent)
			}
		}
		urgent(reqGetFeatures)
		if _, partial, err := w.peek(); !errors.Is(err, errNothing) || !partial {
			t.Errorf("a byte out of band alone: %v, %v", partial, err)
		}
		f.send([]byte{0, 0, 0, flagsVersion, 0, 0, 0, 0, 0, 0})
		urgent(0)
		m, _, err := w.peek()
		if err != nil || m.request != reqGetFeatures {
			t.Fatalf("%+v, %v", m, err)
		}
		if err := w.answer(newReply(m.request, u64(0)), -1); err != nil {
			t.Fatal(err)
		}
		f.receive()
		if _, partial, err := w.peek(); !errors.Is(err, errNothing) || partial {
			t.Errorf("when all is taken: %v, %v", partial, err)
		}
	}
}

// TestWireSplit takes messages that came in any two or three parts, whose
// descriptors came with any of them.
func TestWireSplit(t *testing.T) {
	event := newEvent(t)
	whole := raw(reqSetVringKick, flagsVersion, u64(0))
	for _, uring := range []bool{true, false} {
		w, f := wirePair(t, uring)
		for first := 1; first < len(whole); first++ {
			for with := range 3 {
				second := min(first+3, len(whole))
				for i, part := range [][]byte{whole[:first], whole[first:second], whole[second:]} {
					if len(part) == 0 {
						continue
					}
					if i == with {
						f.send(part, event)
					} else {
						f.send(part)
					}
					if _, partial, err := w.peek(); i == 0 && (!errors.Is(err, errNothing) || !partial) {
						t.Fatalf("a part of %d bytes: %v, %v", first, partial, err)
					}
				}
				m, _, err := w.peek()
				if err != nil || m.request != reqSetVringKick || len(m.payload) != 8 || len(m.files) > 1 || with == 0 && len(m.files) != 1 {
					t.Fatalf("%d and %d bytes: %+v, %v", first, second, m, err)
				}
				m.close()
				if err := w.answer(newReply(m.request, u64(0)), -1); err != nil {
					t.Fatalf("%d and %d bytes: %v", first, second, err)
				}
				f.receive()
			}
		}
	}
}
