package devices

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestSerial: commands are done one after another; who waits may give up, what has
// begun is waited for.
func TestSerial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSerial(func(what string) { t.Errorf("fatal: %s", what) })
		var all sync.WaitGroup
		running, most, count := 0, 0, 0
		for range 20 {
			all.Go(func() {
				if err := s.do(t.Context(), "work", func() error {
					running++
					most = max(most, running)
					time.Sleep(patience - time.Second)
					running--
					count++
					return nil
				}); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if most != 1 || count != 20 {
			t.Errorf("%d were done, %d at once", count, most)
		}
		want := errors.New("no")
		if err := s.do(t.Context(), "work", func() error { return want }); !errors.Is(err, want) {
			t.Errorf("%v", err)
		}
		begun := make(chan struct{})
		go s.do(t.Context(), "long", func() error { close(begun); time.Sleep(10 * time.Second); return nil }) //nolint:errcheck // it is in the way
		<-begun
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.do(ctx, "short", func() error { t.Error("it was done"); return nil }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("given up: %v", err)
		}
		s.stop()
		if err := s.do(t.Context(), "late", func() error { t.Error("it was done"); return nil }); !errors.Is(err, errStopped) {
			t.Errorf("after the end: %v", err)
		}
	})
}

// TestWatchdog: a command that does not come back ends the process, after half a
// minute and not before.
func TestWatchdog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fatal []string
		stuck := make(chan struct{})
		s := newSerial(func(what string) { fatal = append(fatal, what); close(stuck) })
		start := time.Now()
		err := s.do(t.Context(), "starting /dev/ublkb0", func() error { <-stuck; return nil })
		if took := time.Since(start); err != nil || len(fatal) != 1 || fatal[0] != "starting /dev/ublkb0" || took != patience {
			t.Errorf("after %v: %q, %v", took, fatal, err)
		}
		s.stop()
	})
}

// TestServerEnds: a start whose server ends never comes back, and the process does not
// wait half a minute for it.
func TestServerEnds(t *testing.T) {
	for _, ends := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			stuck := make(chan struct{})
			var fatal []string
			u := &ublk{serial: newSerial(func(what string) { fatal = append(fatal, what); close(stuck) })}
			start := time.Now()
			var mu sync.Mutex
			u.alive = func(int) bool { mu.Lock(); defer mu.Unlock(); return !ends || time.Since(start) < 3*time.Second }
			err := u.do(t.Context(), "start", func() error {
				defer u.attend(7, "starting")()
				select {
				case <-stuck:
				case <-time.After(20 * time.Second): // it takes its time
				}
				return nil
			})
			took := time.Since(start)
			if err != nil || ends != (len(fatal) == 1) || ends && took > 5*time.Second {
				t.Errorf("server ends %v: after %v: %q, %v", ends, took, fatal, err)
			}
			time.Sleep(time.Minute) // nothing comes later
			if len(fatal) > 1 {
				t.Errorf("fatal: %q", fatal)
			}
			u.serial.stop()
		})
	}
}

// TestHolds: one call at a time for a lease, none waits for another lease's, and one
// that must be has the other end.
func TestHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h holds
		ctx, release, err := h.take(t.Context(), leaseA, false)
		if err != nil {
			t.Fatal(err)
		}
		_, other, err := h.take(t.Context(), leaseB, false)
		if err != nil {
			t.Fatal(err)
		}
		other()
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := h.take(short, leaseA, false); !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			t.Errorf("taken twice: %v, %v", err, ctx.Err())
		}
		go func() { <-ctx.Done(); time.Sleep(time.Second); release() }()
		start := time.Now()
		_, release2, err := h.take(t.Context(), leaseA, true)
		if err != nil || time.Since(start) != time.Second {
			t.Fatalf("%v after %v", err, time.Since(start))
		}
		release2()
		if len(h.all) != 0 {
			t.Errorf("left over: %v", h.all)
		}
	})
}

// TestSerialCancelled: what nobody waits for any more is not begun, also where the
// thread is free.
func TestSerialCancelled(t *testing.T) {
	s := newSerial(func(what string) { t.Error(what) })
	defer s.stop()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 {
		if err := s.do(ctx, "a command", func() error { t.Error("it was begun"); return nil }); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
}
