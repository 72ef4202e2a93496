package blk

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

func TestGateIsAloneOnItsCacheLines(t *testing.T) {
	if n := unsafe.Sizeof(Gate{}); n != 128 {
		t.Errorf("a Gate has %d bytes, want 128", n)
	}
}

func TestGateStates(t *testing.T) {
	s := NewGates()
	g, err := s.New()
	if err != nil {
		t.Fatal(err)
	}
	if !g.Enter() || !g.Enter() {
		t.Fatal("an open gate refused")
	}
	s.Shut()
	s.Shut() // again is nothing
	for range 3 {
		if g.Enter() {
			t.Fatal("G2: Enter after Shut")
		}
	}
	if !g.IsShut() || !s.IsShut() {
		t.Error("IsShut is false after Shut")
	}
	if _, err := s.New(); !errors.Is(err, syscall.ESHUTDOWN) {
		t.Errorf("a new gate after Shut: %v, want ESHUTDOWN", err)
	}
	g.Leave()
	select {
	case <-s.Drained():
		t.Fatal("G1: drained with work in flight")
	default:
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := s.Revoke(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Revoke with work in flight: %v, want the context's error", err)
	}
	g.Leave()
	if err := s.Revoke(t.Context()); err != nil {
		t.Errorf("Revoke of a drained gate: %v", err)
	}
	s.Drop(g)
}

func TestGatesWithoutWorkDrainAtOnce(t *testing.T) {
	s := NewGates()
	for range 3 {
		if _, err := s.New(); err != nil {
			t.Fatal(err)
		}
	}
	s.Shut()
	select {
	case <-s.Drained():
	default:
		t.Error("not drained")
	}
}

func TestGateMisusePanics(t *testing.T) {
	mustPanic := func(name string, f func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s did not panic", name)
			}
		}()
		f()
	}
	s := NewGates()
	g, _ := s.New()
	mustPanic("Leave without Enter", g.Leave)
	s = NewGates()
	g, _ = s.New()
	g.Enter()
	mustPanic("Drop with work in flight", func() { s.Drop(g) })
	g.Leave()
	s.Shut()
	mustPanic("Leave without Enter, shut", g.Leave)
}

// TestGateRace holds the gates to G1 and G2 while workers run.
func TestGateRace(t *testing.T) {
	for range 50 {
		const workers = 4
		s := NewGates()
		var inside atomic.Int64
		var wg sync.WaitGroup
		begun := make(chan struct{}, workers)
		for range workers {
			g, err := s.New()
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				for i := 0; g.Enter(); i++ {
					inside.Add(1)
					if i == 10 {
						begun <- struct{}{}
					}
					inside.Add(-1)
					g.Leave()
				}
			})
		}
		<-begun
		if err := s.Revoke(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if n := inside.Load(); n != 0 {
				t.Fatalf("G1: %d inside after Revoke", n)
			}
		}
		wg.Wait() // G2: they all end
	}
}

func BenchmarkGate(b *testing.B) {
	s := NewGates()
	g, _ := s.New()
	for b.Loop() {
		g.Enter()
		g.Leave()
	}
}
