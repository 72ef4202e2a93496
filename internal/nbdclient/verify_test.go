package nbdclient

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// quick is a load for the victim.
func (v *victim) quick() *Verify {
	return &Verify{Target: v.path, Lease: "abcdefghijklmnop", Seed: rand.Uint64(), Connections: 3, Depth: 4,
		MaxRequest: 128 << 10, Requests: 3000, Patience: 10 * time.Second}
}

// verify runs v, also apart from the test's goroutine: it never ends it.
func verify(t *testing.T, v *Verify) Report {
	t.Helper()
	r, err := v.Run(t.Context())
	if err != nil {
		t.Errorf("seed %d: %v", v.Seed, err)
	}
	return r
}

// TestVerifyGood: a server without a fault is found to have none, whatever its
// block size and the part of it that is used.
func TestVerifyGood(t *testing.T) {
	for _, tt := range []struct {
		minimum   uint32
		off, span int64
		most      int
	}{{512, 0, 0, 0}, {4096, 0, 0, 0}, {512, 512, 100 << 10, 64 << 10}, {512, 4096, 512, 512}, {4096, 8192, 4096, 4096}} {
		t.Run(fmt.Sprintf("%+v", tt), func(t *testing.T) {
			s := newVictim(t, 2<<20)
			s.minimum = tt.minimum
			for i := range s.data { // beside the part is what it may be
				if tt.span > 0 && (int64(i) < tt.off || int64(i) >= tt.off+tt.span) {
					s.data[i] = 7
				}
			}
			v := s.quick()
			v.Off, v.Span, v.MaxRequest = tt.off, tt.span, tt.most
			r := verify(t, v)
			if err := r.Err(); err != nil {
				t.Errorf("seed %d: %v", r.Seed, err)
			}
			kinds := min(r.Reads, r.Writes, r.Zeroes, r.Trims)
			if tt.span > 0 && tt.span <= 4096 { // one at a time, between flushes: not all kinds need come
				kinds = r.Reads + r.Writes + r.Zeroes + r.Trims
			}
			if r.Requests < v.Requests || kinds == 0 || r.Flushes == 0 {
				t.Errorf("requests are missing: %v", &r)
			}
			if want := v.Span; r.Verified != want || r.Reconnects != 0 || len(r.Stalls) != 0 || r.Elapsed <= 0 {
				t.Errorf("verified %d bytes, want %d; %v", r.Verified, want, &r)
			}
			for i, b := range s.data {
				if tt.span > 0 && (int64(i) < tt.off || int64(i) >= tt.off+tt.span) && b != 7 {
					t.Fatalf("it wrote at %d, outside of its part", i)
				}
			}
		})
	}
}

// loading waits until v has had an answer.
func loading(t *testing.T, v *Verify) {
	for begun := time.Now(); v.Snapshot().Requests == 0; time.Sleep(time.Millisecond) {
		if time.Since(begun) > time.Minute {
			t.Error("the load has had no answer for a minute")
			return
		}
	}
}

// TestVerifyKilled: a server that is killed at random moments, with requests half
// received, carried out and half answered, is found to have no fault; the load
// goes on, and its stalls are told.
func TestVerifyKilled(t *testing.T) {
	s := newVictim(t, 2<<20)
	v := s.quick()
	v.Requests, v.Duration = 0, 1500*time.Millisecond
	done := make(chan Report)
	go func() { done <- verify(t, v) }()
	loading(t, v)
	kills := 0
	for over := false; !over; {
		select {
		case r := <-done:
			if err := r.Err(); err != nil {
				t.Errorf("seed %d, after %d kills: %v", r.Seed, kills, err)
			}
			t.Log(kills, "kills;", &r)
			if r.Reconnects < int64(kills) || r.Resent == 0 || r.GivenUp == 0 || r.LastBreak == nil {
				t.Errorf("after %d kills: %v", kills, &r)
			}
			if int64(len(r.Stalls)) < int64(kills) || r.StallMax < 5*time.Millisecond || r.StallP50 > r.StallP99 || r.StallP99 > r.StallMax {
				t.Errorf("%d stalls after %d kills: %v, %v, %v", len(r.Stalls), kills, r.StallP50, r.StallP99, r.StallMax)
			}
			for _, st := range r.Stalls {
				if !st.Broken || st.Start.IsZero() || st.Duration < 0 || st.Reconnect > st.Duration+time.Second {
					t.Errorf("stall %+v", st)
				}
			}
			over = true
		case <-time.After(time.Duration(rand.IntN(40)) * time.Millisecond):
			if v.Snapshot().Elapsed > v.Duration {
				continue // the last pass needs a server
			}
			s.kill()
			time.Sleep(5 * time.Millisecond)
			s.start()
			kills++
		}
	}
}

// TestVerifyFinds plants each fault in the server: it is found, and called by its
// name.
func TestVerifyFinds(t *testing.T) {
	other := stamp{lease: leaseWords("another"), seed: 1, gen: 3}
	tests := []struct {
		class Class
		plant func(s *victim, v *Verify)
	}{
		{Stale, func(s *victim, v *Verify) { // a write is lost
			n := 0
			s.onWrite = func(b []byte, off int64) bool {
				_, whole := readSector(b)
				_, before := readSector(s.data[off:])
				if whole && before {
					n++
				}
				return whole && before && n%20 == 0
			}
		}},
		{Foreign, func(s *victim, v *Verify) { // another lease's sector
			n := 0
			s.onRead = func(b []byte, off int64) {
				if n++; n == 100 {
					other.off = off
					other.put(b)
				}
			}
		}},
		{Misplaced, func(s *victim, v *Verify) { // the neighbour's
			n := 0
			s.onRead = func(b []byte, off int64) {
				next := off + 512
				if next+512 > int64(len(s.data)) {
					return
				}
				if _, whole := readSector(s.data[next:]); whole {
					if n++; n == 50 {
						copy(b[:512], s.data[next:])
					}
				}
			}
		}},
		{Zeros, func(s *victim, v *Verify) { // a block is gone
			n := 0
			s.onRead = func(b []byte, off int64) {
				if _, whole := readSector(b); whole {
					if n++; n == 50 {
						clear(b[:512])
					}
				}
			}
		}},
		{Torn, func(s *victim, v *Verify) { // a write that went half way
			n := 0
			s.onWrite = func(b []byte, off int64) bool {
				_, whole := readSector(b)
				_, before := readSector(s.data[off:])
				if whole && before {
					n++
				}
				if !whole || !before || n%20 != 0 {
					return false
				}
				copy(s.data[off:], b[:200])
				copy(s.data[off+512:], b[512:])
				return true
			}
		}},
		{Garbage, func(s *victim, v *Verify) { // one bit
			n := 0
			s.onRead = func(b []byte, off int64) {
				if _, whole := readSector(b); whole {
					if n++; n == 50 {
						b[300] ^= 4
					}
				}
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.class.String(), func(t *testing.T) {
			var r Report
			for range 10 { // what strikes only once may strike where a request in flight excuses it
				s := newVictim(t, 1<<20)
				v := s.quick()
				tt.plant(s, v)
				if r = verify(t, v); r.WrongByClass[tt.class] > 0 {
					break
				}
			}
			if r.WrongByClass[tt.class] == 0 || r.Err() == nil || len(r.Wrong) == 0 {
				t.Fatalf("seed %d: not found: %v", r.Seed, &r)
			}
			for class, n := range r.WrongByClass {
				if Class(class) != tt.class && n > 0 && (tt.class != Stale || Class(class) != Zeros) {
					t.Errorf("seed %d: found %v too: %v", r.Seed, Class(class), r.Err())
				}
			}
			t.Log(r.Wrong[0])
			if w := r.Wrong[0]; w.Off%512 != 0 || w.Expected == "" || w.Found == "" || !strings.Contains(r.Err().Error(), w.Class.String()) {
				t.Errorf("report %+v", w)
			}
			if tt.class != Stale && tt.class != Torn && r.WrongBytes != 512 {
				t.Errorf("%d wrong bytes, want one sector", r.WrongBytes)
			}
		})
	}
}

// TestVerifyLateWrite: a server keeps a write back when it is killed, and carries
// it out after its successor has answered.
func TestVerifyLateWrite(t *testing.T) {
	s := newVictim(t, 256<<10)
	v := s.quick()
	v.Requests, v.Duration, v.Resend, v.MaxRequest = 0, 2*time.Second, -1, 8<<10
	type kept struct {
		b   []byte
		off int64
	}
	var late []kept
	killing := false
	s.onWrite = func(b []byte, off int64) bool {
		if killing {
			late = append(late, kept{b, off})
		}
		return killing
	}
	done := make(chan Report)
	go func() { done <- verify(t, v) }()
	loading(t, v)
	for range 5 {
		time.Sleep(50 * time.Millisecond)
		s.mu.Lock()
		killing = true
		s.onReply = func(uint64) int { return 0 } // nobody hears of them
		s.mu.Unlock()
		for begun := time.Now(); time.Since(begun) < time.Second; time.Sleep(5 * time.Millisecond) {
			s.mu.Lock()
			n := len(late)
			s.mu.Unlock()
			if n > 0 {
				break
			}
		}
		s.kill()
		s.mu.Lock()
		killing, s.onReply = false, nil
		s.mu.Unlock()
		s.start()
		time.Sleep(50 * time.Millisecond)
		s.mu.Lock()
		for _, k := range late {
			copy(s.data[k.off:], k.b)
		}
		late = nil
		s.mu.Unlock()
	}
	r := <-done
	if n := r.WrongByClass[Stale] + r.WrongByClass[Late] + r.WrongByClass[Zeros]; n == 0 || r.WrongByClass[Stale] == 0 && r.WrongByClass[Late] == 0 {
		t.Errorf("seed %d: late writes were not found: %v", r.Seed, &r)
	}
	if n := r.WrongByClass[Garbage] + r.WrongByClass[Torn] + r.WrongByClass[Foreign] + r.WrongByClass[Misplaced]; n != 0 {
		t.Errorf("seed %d: called by other names: %v", r.Seed, r.Err())
	}
}

// TestVerifyNonsense: a second reply, and one to nothing, are findings.
func TestVerifyNonsense(t *testing.T) {
	s := newVictim(t, 1<<20)
	n := 0
	s.onReply = func(uint64) int {
		if n++; n == 500 {
			return 2
		}
		return 1
	}
	r := verify(t, s.quick())
	if r.Nonsense != 1 || r.Err() == nil || !strings.Contains(r.Err().Error(), "was not sent") || r.Reconnects == 0 || r.WrongBytes != 0 {
		t.Errorf("seed %d: %v; %v", r.Seed, &r, r.Err())
	}
}

// TestVerifyErrors: a request that the server refuses is counted, and a write
// that failed may have happened or not.
func TestVerifyErrors(t *testing.T) {
	s := newVictim(t, 1<<20)
	n := 0
	s.fail = func(cmd uint16, off, length int64) syscall.Errno {
		if n++; n%25 != 0 || n > 2000 {
			return 0
		}
		if n%50 == 0 && (cmd == cmdTrim || cmd == cmdWriteZeroes) {
			clear(s.data[off : off+length])
		}
		return syscall.EIO
	}
	r := verify(t, s.quick())
	if r.Errors == 0 || r.Errnos[syscall.EIO] != r.Errors || r.WrongBytes != 0 || !errors.Is(r.Err(), syscall.EIO) {
		t.Errorf("seed %d: %v; %v", r.Seed, &r, r.Err())
	}
}

// TestVerifyGap: a stall without a break is told when it is asked for.
func TestVerifyGap(t *testing.T) {
	s := newVictim(t, 1<<20)
	var n atomic.Int64
	s.onReply = func(uint64) int {
		if n.Add(1) == 1000 {
			time.Sleep(150 * time.Millisecond)
		}
		return 1
	}
	v := s.quick()
	v.Gap = 100 * time.Millisecond
	r := verify(t, v)
	if len(r.Stalls) == 0 || r.StallMax < 100*time.Millisecond || r.Stalls[0].Broken {
		t.Errorf("stalls %+v", r.Stalls)
	}
}

// TestVerifyGivesUp: without a server, or with one that answers nothing, Run ends.
func TestVerifyGivesUp(t *testing.T) {
	s := newVictim(t, 1<<20)
	v := s.quick()
	v.Patience = 2 * time.Second
	s.onReply = func(uint64) int { return 0 }
	if r, err := v.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "no answer for 2s") || r.Requests != 0 {
		t.Errorf("with a server that does not answer: %v, %v", &r, err)
	}
	s.kill()
	v = s.quick()
	v.Patience = time.Second
	none := func(err error) bool { // the last attempt may have had no time
		return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrDeadlineExceeded)
	}
	if r, err := v.Run(t.Context()); !none(err) || r.Attempts < 2 {
		t.Errorf("without a server: %v, %v", &r, err)
	}
}

// TestVerifyContext: the context ends the load, and the last pass still runs.
func TestVerifyContext(t *testing.T) {
	s := newVictim(t, 1<<20)
	v := s.quick()
	v.Requests, v.Pause = 0, time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		loading(t, v)
		time.Sleep(50 * time.Millisecond)
	}()
	r, err := v.Run(ctx)
	if err != nil || r.Err() != nil || r.Verified != 1<<20 || r.Requests == 0 {
		t.Errorf("%v, %v, %v", &r, err, r.Err())
	}
}

func TestVerifyValidates(t *testing.T) {
	s := newVictim(t, 1<<20)
	for _, v := range []*Verify{
		{Connections: -1}, {Depth: -1}, {Connections: 1 << 10, Depth: 1 << 10}, {MaxRequest: 1}, {MaxRequest: 64 << 20}, {Off: -512},
		{Off: 1}, {Span: 513}, {Off: 512, Span: 1 << 20}, {Off: 2 << 20}, {Pause: -1},
	} {
		v.Target, v.Requests = s.path, 1
		if _, err := v.Run(t.Context()); err == nil {
			t.Errorf("%+v runs", v)
		}
	}
}
