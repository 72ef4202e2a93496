package measure

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"vacate/internal/bench"
	"vacate/internal/sys"
	"vacate/internal/uring"
)

const (
	testOff  = 1 << 20
	testSpan = 4 << 20
	testSize = testOff + testSpan + 1<<20
)

// newRaw gives the middle of a file of ones to the raw side.
func newRaw(t *testing.T, engine string) (r *raw, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "drive")
	if err := os.WriteFile(path, bytes.Repeat([]byte{1}, testSize), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := sys.OpenStorage(path, sys.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sys.CloseFD(fd); err != nil {
			t.Error(err)
		}
	})
	return &raw{fd: fd, off: testOff, span: testSpan, engine: engine}, path
}

var engines = []string{rawRing, rawThreads, rawPread}

// TestRaw: each way does what it says it does, with the depth that it has, and
// writes nothing beside its part.
func TestRaw(t *testing.T) {
	if err := uring.Probe(); err != nil {
		engines = engines[1:]
		t.Logf("without io_uring: %v", err)
	}
	for _, engine := range engines {
		for _, w := range bench.Workloads() {
			t.Run(engine+"/"+w.String(), func(t *testing.T) {
				r, path := newRaw(t, engine)
				const long = 20 * time.Millisecond
				got, err := r.run(w, long, 7)
				if err != nil {
					t.Fatal(err)
				}
				if got.requests == 0 || got.errors != 0 || got.bytes != got.requests*int64(w.BlockBytes) {
					t.Errorf("%d requests, %d errors (%v), %d bytes", got.requests, got.errors, got.first, got.bytes)
				}
				if got.elapsed < long || got.elapsed > time.Minute {
					t.Errorf("it took %v, want %v", got.elapsed, long)
				}
				if p50, p99 := got.times.Quantile(0.5), got.times.Quantile(0.99); p50 <= 0 || p99 < p50 {
					t.Errorf("p50 %v, p99 %v", p50, p99)
				}
				checkWritten(t, path, w)
			})
		}
	}
}

func checkWritten(t *testing.T, path string, w bench.Workload) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || len(b) != testSize {
		t.Fatalf("%d bytes of the file are left: %v", len(b), err)
	}
	ones := bytes.Repeat([]byte{1}, testSize)
	if !bytes.Equal(b[:testOff], ones[:testOff]) || !bytes.Equal(b[testOff+testSpan:], ones[testOff+testSpan:]) {
		t.Error("something was written beside the part")
	}
	if wrote := !bytes.Equal(b[testOff:testOff+testSpan], ones[:testSpan]); wrote != w.Write {
		t.Errorf("the part was written: %v, want %v", wrote, w.Write)
	}
}

// TestRawErrors: a request that fails or falls short is counted, and no bytes are.
func TestRawErrors(t *testing.T) {
	w := bench.Workloads()[0]
	for _, engine := range engines {
		r, path := newRaw(t, engine)
		if err := os.Truncate(path, testOff); err != nil {
			t.Fatal(err)
		}
		got, err := r.run(w, 5*time.Millisecond, 1)
		for more := 0; err == nil && got.requests == 0 && more < 100; more++ { // its threads had no turn
			got, err = r.run(w, 5*time.Millisecond, 1)
		}
		if err != nil {
			t.Fatal(err)
		}
		if got.requests == 0 || got.errors != got.requests || got.bytes != 0 || got.first != syscall.EIO {
			t.Errorf("%s: %d requests, %d errors (%v), %d bytes of a file that ends before", engine, got.requests, got.errors, got.first, got.bytes)
		}
		r.fd = -1
		if got, err = r.run(w, 50*time.Millisecond, 1); err != nil || got.errors == 0 || got.first != syscall.EBADF {
			t.Errorf("%s: %+v, %v of a descriptor that is none", engine, got, err)
		}
	}
}

// TestPath: sequential requests tile the part and begin anew; random ones stay
// within it, and come to its ends.
func TestPath(t *testing.T) {
	r := &raw{off: testOff, span: 16 << 12}
	seq := r.path(bench.Workload{BlockBytes: 4096}, 3)
	for i := range int64(40) {
		if got, want := seq.step(), testOff+i%16*4096; got != want {
			t.Fatalf("request %d at %d, want %d", i, got, want)
		}
	}
	rnd, seen := r.path(bench.Workload{BlockBytes: 4096, Random: true}, 3), make(map[int64]bool)
	for range 1000 {
		seen[rnd.step()] = true
	}
	if len(seen) != 16 || !seen[testOff] || !seen[testOff+15*4096] {
		t.Errorf("random requests came to %d of 16 blocks: %v", len(seen), seen)
	}
}

func TestRawEngine(t *testing.T) {
	if got := rawEngine(false); got != rawPread {
		t.Errorf("through a page cache with %q", got)
	}
	if got := rawEngine(true); got != rawRing && uring.Probe() == nil || got == rawPread {
		t.Errorf("with direct I/O by %q", got)
	}
}

func TestFigure(t *testing.T) {
	var s side
	if f := s.figure(); f != (bench.Figure{}) {
		t.Errorf("of nothing: %+v", f)
	}
	ms := time.Millisecond
	s.slice(100, 4096*90, 10, syscall.EIO, time.Second, 1*ms, 9*ms)
	s.slice(300, 4096*300, 0, 0, time.Second, 3*ms, 5*ms)
	s.slice(200, 4096*199, 1, syscall.ENOSPC, 2*time.Second, 2*ms, 7*ms)
	s.slice(0, 0, 0, 0, time.Second, 0, 0) // a slice in which nothing came to an end
	want := bench.Figure{Requests: 600, PerSecond: 120, BytesPerSecond: 4096 * 589 / 5.0,
		P50Ns: 2e6, P99Ns: 7e6, Errors: 11, FirstError: syscall.EIO.Error()}
	if f := s.figure(); f != want {
		t.Errorf("got %+v, want %+v", f, want)
	}
}
