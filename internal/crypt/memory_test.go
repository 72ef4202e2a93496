package crypt

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/xts"
)

// TestL2NoCopyOfTheSchedule searches this process' memory for a schedule that
// was used: it lies where it was expanded, and nowhere else. (The leak hunt does
// the same to the real processes, registers included.)
func TestL2NoCopyOfTheSchedule(t *testing.T) {
	if !undisturbed(t) {
		return
	}
	region, err := mem.Map(4096, mem.TryLock)
	if err != nil {
		t.Fatal(err)
	}
	defer region.Close() //nolint:errcheck // test's end
	slot := region.Bytes()
	for i := range xts.KeySize {
		slot[i] = byte(i*37 + 11)
	}
	s := (*xts.Schedule)(slot[xts.KeySize:])
	if err := s.Expand((*[xts.KeySize]byte)(slot)); err != nil {
		t.Fatal(err)
	}
	q := newQueue(t, New(newRAM(1<<20), s, mem.TryLock), 4)
	buf := make([]byte, 64<<10)
	for i := range int64(16) {
		for _, op := range []blk.Op{blk.OpWrite, blk.OpRead} {
			if err := blk.Do(q, &blk.Request{Op: op, Off: i * int64(len(buf)), Len: int64(len(buf)), Buf: buf}); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Round keys that no part of the key repeats, where they are: a needle that
	// was copied would find itself.
	needles := [][]byte{s[64:96], s[160:192], s[320:352]}
	found := locate(t, needles)
	for i, at := range found {
		want := addressOf(&needles[i][0])
		if len(at) != 1 || at[0] != want {
			t.Errorf("round keys %d are at %#x, want only %#x", i, at, want)
		}
	}
}

// newSlot returns a schedule in a slot of its own, and what counts the copies of
// its round keys in the memory of this process.
func newSlot(t *testing.T) (s *xts.Schedule, copies func() int) {
	region, err := mem.Map(4096, mem.TryLock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { region.Close() }) //nolint:errcheck // test's end
	slot := region.Bytes()
	if _, err := rand.Read(slot[:xts.KeySize]); err != nil { // what another test has left is not this one's
		t.Fatal(err)
	}
	s = (*xts.Schedule)(slot[xts.KeySize:])
	if err := s.Expand((*[xts.KeySize]byte)(slot)); err != nil {
		t.Fatal(err)
	}
	var needles [][]byte
	for i := 0; i < len(s); i += 16 { // every round key
		needles = append(needles, s[i:i+16])
	}
	return s, func() (n int) {
		for _, at := range locate(t, needles) {
			for _, a := range at {
				if a-addressOf(&slot[0]) >= uint64(len(slot)) { // the key itself begins with round keys
					n++
				}
			}
		}
		return n
	}
}

// TestL2SignalLeavesNoKey: a signal that strikes within a cipher call, as one that
// wakes threads may, has the kernel save keys in memory. When the thread has closed
// its queue they are gone.
func TestL2SignalLeavesNoKey(t *testing.T) {
	if !undisturbed(t) {
		return
	}
	s, copies := newSlot(t)
	q, err := New(newInMemory(t, 1<<20), s, mem.TryLock).NewQueue(1)
	if err != nil {
		t.Fatal(err)
	}
	tid, steps, done := make(chan int), make(chan func() error), make(chan error)
	go func() {
		runtime.LockOSThread() // the thread, and its signal stack, live as long as this
		tid <- syscall.Gettid()
		for step := range steps {
			done <- step()
		}
	}()
	defer close(steps)
	thread := <-tid
	struck := false
	for attempt := 0; attempt < 20 && !struck; attempt++ {
		var stop atomic.Bool
		steps <- func() (err error) {
			buf := make([]byte, blk.MaxTransfer)
			for !stop.Load() && err == nil {
				err = blk.Do(q, &blk.Request{Op: blk.OpWrite, Len: blk.MaxTransfer, Buf: buf})
			}
			return err
		}
		for range 10 {
			time.Sleep(time.Millisecond)
			if err := syscall.Tgkill(syscall.Getpid(), thread, syscall.SIGURG); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Millisecond) // it has been handled
		stop.Store(true)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		struck = copies() > 0
	}
	if !struck && xts.Implementation() != "generic" {
		t.Fatal("no round key is found after many signals: this test finds nothing")
	}
	steps <- q.Close
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := copies(); n != 0 {
		t.Errorf("L2: %d round keys are in memory after a signal, and the end of the queue", n)
	}
}

// undisturbed reports whether the test runs as the engine does, without asynchronous
// preemption: its signals leave a thread's registers in memory. If not, it runs
// the test in a process that does, and the caller returns.
func undisturbed(t *testing.T) bool {
	const setting = "GODEBUG=asyncpreemptoff=1"
	if "GODEBUG="+os.Getenv("GODEBUG") == setting {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout=60s", "-test.v")
	cmd.Env = append(os.Environ(), setting)
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("without asynchronous preemption: %v\n%s", err, out)
	}
	return false
}

// locate returns all addresses of this process at which each needle lies.
func locate(t *testing.T, needles [][]byte) [][]uint64 {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	memory, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close() //nolint:errcheck // read only
	// Not on the heap: the search would find what it has read.
	window, err := mem.Map(1<<20, mem.TryLock)
	if err != nil {
		t.Fatal(err)
	}
	defer window.Close() //nolint:errcheck // test's end
	buf := window.Bytes()
	found := make([][]uint64, len(needles))
	for line := range strings.Lines(string(maps)) {
		var lo, hi uint64
		var perms string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &lo, &hi, &perms); err != nil {
			t.Fatal(err)
		}
		if perms[0] != 'r' || lo == addressOf(&buf[0]) {
			continue
		}
		for ; lo < hi; lo += uint64(len(buf)) - 64 {
			n, _ := memory.ReadAt(buf[:min(uint64(len(buf)), hi-lo)], int64(lo)) //nolint:errcheck // the kernel's own pages
			for i, needle := range needles {
				for at := 0; ; at++ {
					k := bytes.Index(buf[at:n], needle)
					if k < 0 {
						break
					}
					at += k
					if addr := lo + uint64(at); len(found[i]) == 0 || found[i][len(found[i])-1] != addr {
						found[i] = append(found[i], addr)
					}
				}
			}
		}
	}
	return found
}

func addressOf(b *byte) uint64 { return uint64(uintptr(unsafe.Pointer(b))) }
