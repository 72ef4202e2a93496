package xts

import (
	"bytes"
	"runtime/debug"
	"syscall"
	"testing"
)

// guarded returns size bytes between two pages that can not be touched.
func guarded(tb testing.TB, size int) []byte {
	tb.Helper()
	page := syscall.Getpagesize()
	size = (size + page - 1) &^ (page - 1)
	m, err := syscall.Mmap(-1, 0, size+2*page, syscall.PROT_NONE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := syscall.Munmap(m); err != nil {
			tb.Error(err)
		}
	})
	if err := syscall.Mprotect(m[page:page+size], syscall.PROT_READ|syscall.PROT_WRITE); err != nil {
		tb.Fatal(err)
	}
	return m[page : page+size : page+size]
}

// TestGuardPages puts source, destination, key and schedule against an untouchable
// page, first after them, then before. One byte too far would end the process.
func TestGuardPages(t *testing.T) {
	r := newRand(t)
	const span = 8192
	in, out, slot, keys := guarded(t, span), guarded(t, span), guarded(t, ScheduleSize), guarded(t, KeySize)
	place := func(m []byte, n int, atEnd bool) []byte {
		if atEnd {
			return m[len(m)-n:]
		}
		return m[:n]
	}
	for _, im := range impls {
		for _, atEnd := range []bool{true, false} {
			key := (*[KeySize]byte)(place(keys, KeySize, atEnd))
			s := (*Schedule)(place(slot, ScheduleSize, atEnd))
			r.Read(key[:])
			im.expand(s, key)
			for _, unitSize := range lengths() {
				for units := 1; units <= 10 && units*unitSize <= span; units += 9 {
					src, dst := place(in, units*unitSize, atEnd), place(out, units*unitSize, atEnd)
					r.Read(src)
					want := oracle(t, key, src, unitSize, 77)
					im.encrypt(s, dst, src, unitSize, 77)
					if !bytes.Equal(dst, want) {
						t.Fatalf("%s: encrypt %d units of %d: wrong", im.name, units, unitSize)
					}
					im.decrypt(s, dst, dst, unitSize, 77)
					if !bytes.Equal(dst, src) {
						t.Fatalf("%s: decrypt %d units of %d: wrong", im.name, units, unitSize)
					}
				}
			}
		}
	}
}

// TestNothingBeside: no byte beside the output changes.
func TestNothingBeside(t *testing.T) {
	r := newRand(t)
	s := newSchedule(t, randomKey(r))
	for _, im := range impls {
		for n := 16; n <= 40*16; n += 16 {
			src, out := randomBytes(r, n), bytes.Repeat([]byte{0xa5}, n+512)
			im.encrypt(s, out[256:256+n], src, n, 3)
			im.decrypt(s, out[256:256+n], src, n, 3)
			if bytes.Count(out[:256], []byte{0xa5}) != 256 || bytes.Count(out[256+n:], []byte{0xa5}) != 256 {
				t.Fatalf("%s: a call on %d bytes wrote beside its output", im.name, n)
			}
		}
	}
}

// TestFault: a fault on the data, in the middle of the assembly, reaches the caller
// as a panic that it can recover from, and the next call works.
func TestFault(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	page := syscall.Getpagesize()
	r := newRand(t)
	key := randomKey(r)
	m, other := guarded(t, 2*page), make([]byte, 2*page)
	if err := syscall.Mprotect(m[page:], syscall.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	for _, im := range impls {
		s := new(Schedule)
		im.expand(s, key)
		for name, f := range map[string]func(){
			"reading, encrypt": func() { im.encrypt(s, other, m, page, 0) },
			"writing, encrypt": func() { im.encrypt(s, m, other, page, 0) },
			"reading, decrypt": func() { im.decrypt(s, other, m, page, 0) },
			"writing, decrypt": func() { im.decrypt(s, m, other, page, 0) },
		} {
			if _, ok := catch(f).(error); !ok {
				t.Errorf("%s, %s: no fault was reported", im.name, name)
			}
		}
		checkBothWays(t, im, key, randomBytes(r, 4096), 512, 1)
	}
}

func catch(f func()) (v any) {
	defer func() { v = recover() }()
	f()
	return nil
}
