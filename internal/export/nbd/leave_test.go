package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"vacate/internal/nbdclient"
)

// leave calls Leave with time enough, and fails the test if that is needed.
func leave(t testing.TB, s *Server) []Passed {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	passed := s.Leave(ctx)
	if ctx.Err() != nil {
		t.Fatal("Leave did not end by itself within a minute")
	}
	stop(t, s)
	return passed
}

// handOver lets a new server follow s.
func handOver(t testing.TB, s *Server, cfg Config) *Server {
	t.Helper()
	next := alone(t, cfg)
	for _, p := range leave(t, s) {
		if err := next.Adopt(p.File, p.Terms); err != nil {
			t.Error(err)
		}
		if err := p.File.Close(); err != nil {
			t.Error(err)
		}
	}
	return next
}

// TestLeaveIdle: clients that wait are handed over, with what they negotiated,
// and notice nothing; and so again.
func TestLeaveIdle(t *testing.T) {
	m := newMemory(1 << 20)
	places := 0
	cfg := m.config()
	cfg.Admit = func() (func(), error) {
		m.with(func() { places++ })
		return func() { m.with(func() { places-- }) }, nil
	}
	s := alone(t, cfg)
	full := client(t, s, nbdclient.Options{})
	free := client(t, s, nbdclient.Options{NoBlockSize: true})
	simple := client(t, s, nbdclient.Options{SimpleReplies: true})
	old := client(t, s, nbdclient.Options{OldStyle: true, SimpleReplies: true})
	for range 5 {
		s = handOver(t, s, cfg) // within a minute, or Leave waits for what is idle
		if st := s.Stats(); st.Adopted != 4 || st.Connections != 4 || st.Accepted != 0 {
			t.Errorf("the successor's stats: %+v", st)
		}
		m.with(func() {
			if places != 4 {
				t.Errorf("%d places are taken in the budget, want 4", places)
			}
		})
		if e, err := full.BlockStatus(0, 1<<20); err != nil || len(e) == 0 {
			t.Errorf("block status: %v, %v", e, err)
		}
		var failed *nbdclient.Error
		if err := full.ReadFlags(make([]byte, 100), 0, nbdclient.DF); !errors.As(err, &failed) || failed.Text == "" {
			t.Errorf("a misaligned read of a client that asked for block sizes: %v", err)
		}
		if err := free.ReadFlags(make([]byte, 100), 1, nbdclient.DF); err != nil {
			t.Errorf("a misaligned read of a client that did not: %v", err)
		}
		for _, c := range []*nbdclient.Client{simple, old} {
			if err := errors.Join(c.WriteFlags(make([]byte, 4096), 0, nbdclient.FUA), c.Flush()); err != nil {
				t.Error(err)
			}
			if err := c.ReadFlags(make([]byte, 512), 1<<20, 0); !errors.As(err, &failed) || failed.Text != "" {
				t.Errorf("a read behind the end, without structured replies: %v", err)
			}
		}
	}
}

// TestLeaveUnderLoad hands over many times while clients of all kinds are busy:
// each has its answers, once, and the volume holds what the models say.
func TestLeaveUnderLoad(t *testing.T) {
	for _, async := range []bool{false, true} {
		t.Run(fmt.Sprintf("async %v", async), func(t *testing.T) {
			m := newMemory(1 << 20)
			m.async = async
			loaded := newMemory(8 << 20)
			loaded.async = async
			servers := []*Server{alone(t, m.config()), alone(t, loaded.config())}
			done := make(chan struct{})
			var busy sync.WaitGroup
			model := client(t, servers[0], nbdclient.Options{NoBlockSize: true})
			busy.Go(func() { runModel(t, model, m, 1) })
			for i, o := range []nbdclient.Options{{}, {SimpleReplies: true}, {}, {SimpleReplies: true}} {
				c := client(t, servers[1], o)
				size := []int{4096, 512, 1 << 20, 300 << 10}[i]
				busy.Go(func() {
					r, err := nbdclient.Load{Pattern: nbdclient.Pattern(i), BlockSize: size, Depth: 16, Requests: 30_000 >> (i / 2 * 6)}.Run(c)
					if err != nil || r.Errors > 0 || r.Requests != 30_000>>(i/2*6) {
						t.Errorf("load of %d bytes: %v, %v", size, r, err)
					}
				})
			}
			go func() { busy.Wait(); close(done) }()
			n := 0
			for busy := true; busy; n++ {
				servers[n%2] = handOver(t, servers[n%2], servers[n%2].cfg)
				select {
				case <-done:
					busy = false
				case <-time.After(time.Millisecond):
				}
			}
			t.Logf("handed over %d times", n)
			if n < 4 {
				t.Errorf("handed over %d times only", n)
			}
		})
	}
}

// TestLeaveAtEveryByte calls Leave after each byte of a request, and sends the
// rest byte by byte with the next request glued to it: the first is answered by
// the server that leaves, and of the second not one byte is taken.
func TestLeaveAtEveryByte(t *testing.T) {
	m := newMemory(2 << 20)
	payload := bytes.Repeat([]byte("payload!"), 1<<17)
	write := func(n int) []byte {
		return append(command(0, cmdWrite, 1, 4096, uint32(n)), payload[:n]...)
	}
	type cut struct {
		message []byte
		at      int
	}
	var cuts []cut
	for _, message := range [][]byte{write(24), command(0, cmdRead, 1, 0, 512), command(0, cmdFlush, 1, 0, 0), command(0, cmdTrim, 1, 0, 4096)} {
		for at := range len(message) + 1 {
			cuts = append(cuts, cut{message, at})
		}
	}
	for _, n := range []int{4096, 256 << 10, 600 << 10} { // the last goes alone, in pieces
		for _, at := range []int{1, 27, 28, 29, n / 3, n + 27, n + 28} {
			cuts = append(cuts, cut{write(n), at})
		}
	}
	next := append(write(512), command(0, cmdFlush, 2, 0, 0)...)
	for _, tt := range cuts {
		s := alone(t, m.config())
		c := rawConnect(t, s)
		c.enter()
		c.write(tt.message[:tt.at])
		eventually(t, "the server has it", func() bool { return unread(t, s) == 0 })
		passed := make(chan []Passed)
		go func() { passed <- leave(t, s) }()
		eventually(t, "the connection knows that it leaves", func() bool { return s.leaving.Load() && !waits(s) })
		rest := tt.message[tt.at:]
		if tt.at == 0 || len(rest) == 0 {
			eventually(t, "it stands at a boundary", func() bool { return s.Stats().Passed == 1 })
		}
		step := max(1, len(rest)/50)
		for tt.at > 0 && len(rest) > step {
			c.write(rest[:step])
			rest = rest[step:]
		}
		c.write(append(bytes.Clone(rest), next...))
		got := <-passed
		if len(got) != 1 {
			t.Fatalf("%d of %d bytes: %d connections passed, want 1", tt.at, len(tt.message), len(got))
		}
		want := len(next)
		if tt.at == 0 {
			want += len(tt.message)
		}
		if n := available(t, got[0].File); n != want {
			t.Fatalf("%d of %d bytes: %d bytes are left for the successor, want %d", tt.at, len(tt.message), n, want)
		}
		after := alone(t, m.config())
		if err := after.Adopt(got[0].File, got[0].Terms); err != nil {
			t.Fatal(err)
		}
		got[0].File.Close()
		c.readSimple(1, tt.message)
		c.readSimple(1, next)
		c.readSimple(2, nil)
	}
}

// TestLeaveHandshake: who is in the handshake may enter, and is handed over; who
// does not in time is cut off.
func TestLeaveHandshake(t *testing.T) {
	m := newMemory(1 << 20)
	s := alone(t, m.config())
	late, silent := rawConnect(t, s), rawConnect(t, s)
	ctx, cancel := context.WithCancel(context.Background())
	passed := make(chan []Passed)
	go func() { passed <- s.Leave(ctx) }()
	eventually(t, "it leaves", s.leaving.Load)
	late.enter()
	eventually(t, "the late client has entered and passed", func() bool { return s.Stats().Passed == 1 })
	silent.write(hexBytes("0000"))
	cancel()
	got := <-passed
	if len(got) != 1 {
		t.Fatalf("%d connections passed, want 1", len(got))
	}
	silent.wantEnd()
	s.Wait()
	next := alone(t, m.config())
	if err := next.Adopt(got[0].File, got[0].Terms); err != nil {
		t.Fatal(err)
	}
	got[0].File.Close()
	late.write(command(0, cmdFlush, 7, 0, 0))
	late.readSimple(7, nil)
}

// TestLeaveStalled: clients that stop in the middle of a message, take no reply,
// or wait for a volume that hangs do not hold Leave up past its context, nor the
// others.
func TestLeaveStalled(t *testing.T) {
	m := newMemory(8 << 20)
	s := alone(t, m.config())
	idle := client(t, s, nbdclient.Options{})
	var stalled []rawClient
	for _, send := range [][]byte{
		command(0, cmdRead, 1, 0, 512)[:5],
		append(command(0, cmdWrite, 1, 0, 4096), 1, 2, 3),
		append(command(0, cmdWrite, 1, 0, 4<<20), make([]byte, 1<<20)...),
		bytes.Repeat(command(0, cmdRead, 1, 0, 256<<10), 40), // and takes no reply
	} {
		c := rawConnect(t, s)
		c.enter()
		c.write(send)
		stalled = append(stalled, c)
	}
	gone, left := rawConnect(t, s), rawConnect(t, s)
	gone.enter()
	left.enter()
	left.write(command(0, cmdDisc, 1, 0, 0))
	gone.Close()
	eventually(t, "two have gone", func() bool { return s.Stats().Connections == 5 })

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan []Passed, 1)
	go func() { ended <- s.Leave(ctx) }()
	eventually(t, "one is passed", func() bool { return s.Stats().Passed == 1 })
	select {
	case <-ended:
		t.Error("Leave has not waited for those that stalled")
	case <-time.After(50 * time.Millisecond):
	}
	cancel()
	passed := <-ended
	if len(passed) != 1 {
		t.Fatalf("%d connections passed, want 1", len(passed))
	}
	s.Wait()
	for _, c := range stalled[:3] {
		c.wantEnd()
	}
	next := alone(t, m.config())
	if err := next.Adopt(passed[0].File, passed[0].Terms); err != nil {
		t.Fatal(err)
	}
	passed[0].File.Close()
	if err := idle.Flush(); err != nil {
		t.Errorf("the client beside the stalled ones: %v", err)
	}
}

// TestLeaveBacklog: who connects meanwhile waits in the backlog of the socket
// that the next server accepts from.
func TestLeaveBacklog(t *testing.T) {
	m := newMemory(1 << 20)
	first, path := serve(t, m.config())
	c, err := nbdclient.Dial(path, nbdclient.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Abort()
	l, err := first.listener.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	kept := -1 // as the keeper keeps it
	if err := l.Control(func(fd uintptr) { kept, err = syscall.Dup(int(fd)) }); err != nil || kept < 0 {
		t.Fatal(err)
	}
	held := os.NewFile(uintptr(kept), "listener")
	defer held.Close()
	passed := leave(t, first)
	dialled := make(chan error)
	go func() {
		c, err := nbdclient.Dial(path, nbdclient.Options{})
		if err == nil {
			err = errors.Join(c.Flush(), c.Close())
		}
		dialled <- err
	}()
	next, err := Serve(held, m.config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, next) })
	for _, p := range passed {
		if err := next.Adopt(p.File, p.Terms); err != nil {
			t.Error(err)
		}
		p.File.Close()
	}
	if err := errors.Join(<-dialled, c.Flush()); err != nil {
		t.Error(err)
	}
}
