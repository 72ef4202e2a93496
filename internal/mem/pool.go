package mem

import (
	"fmt"
	"unsafe"

	"vacate/internal/plant"
	"vacate/internal/sys"
)

// A Pool is a fixed number of equal, page-aligned buffers. It belongs to one
// goroutine (a queue) and has no lock. Get and Put allocate nothing.
//
//	P1: what Get returns is all zeros.
//	P2: a buffer is cleared when it is put back, not when it is next needed.
//
// Built with the tag "invariants", free buffers hold a poison that Get checks:
// a write to a buffer after Put panics.
type Pool struct {
	region *Region
	size   int // bytes of a buffer
	stride int // bytes from buffer to buffer, whole pages
	free   []int32
	out    []bool // by buffer: it is with a user
}

// NewPool makes a pool of count buffers of size bytes.
func NewPool(size, count int, lock Lock) (*Pool, error) {
	if size <= 0 || size > 1<<30 || count <= 0 || count > 1<<20 {
		return nil, fmt.Errorf("making a pool of %d buffers of %d bytes: out of range", count, size)
	}
	stride := (size + sys.PageSize - 1) &^ (sys.PageSize - 1)
	r, err := Map(stride*count, lock)
	if err != nil {
		return nil, fmt.Errorf("making a pool of %d buffers of %d bytes: %w", count, size, err)
	}
	p := &Pool{region: r, size: size, stride: stride, free: make([]int32, 0, count), out: make([]bool, count)}
	for i := count - 1; i >= 0; i-- {
		if checked {
			poison(p.buffer(i))
		}
		p.free = append(p.free, int32(i))
	}
	return p, nil
}

func (p *Pool) buffer(i int) []byte {
	at := i * p.stride
	return p.region.data[at : at+p.size : at+p.size]
}

// Get returns a buffer of zeros, or nil when all are out. It is the caller's
// until Put.
func (p *Pool) Get() []byte {
	n := len(p.free)
	if n == 0 {
		return nil
	}
	i := int(p.free[n-1])
	p.free = p.free[:n-1]
	p.out[i] = true
	b := p.buffer(i)
	if checked {
		unpoison(b)
	}
	return b
}

// Put clears b and takes it back. b starts where the buffer starts; it may be
// shorter than what Get returned, and then only its own length is cleared.
//
// REQUIRES: nothing beyond len(b) was written since Get, and nobody uses the
// buffer any more, the kernel and its devices included.
func (p *Pool) Put(b []byte) {
	i := p.index(b)
	if !plant.Is(plant.BufferNotCleared) {
		Wipe(b)
		if checked {
			whole := p.buffer(i)
			if !IsZero(whole) {
				panic("mem: a buffer was written beyond what was put back")
			}
			poison(whole)
		}
	}
	p.out[i] = false
	p.free = append(p.free, int32(i))
}

func (p *Pool) index(b []byte) int {
	off := uintptr(unsafe.Pointer(unsafe.SliceData(b))) - uintptr(unsafe.Pointer(unsafe.SliceData(p.region.data)))
	i := int(off) / p.stride
	if off >= uintptr(len(p.region.data)) || off%uintptr(p.stride) != 0 || len(b) > p.size {
		panic("mem: buffer put into a pool that it did not come from")
	}
	if !p.out[i] {
		panic("mem: buffer put back twice")
	}
	return i
}

// Free returns how many buffers Get can still give.
func (p *Pool) Free() int { return len(p.free) }

// Locked reports whether the buffers are never swapped.
func (p *Pool) Locked() bool { return p.region.Locked() }

// LockError tells why the buffers are not locked, and nil if they are.
func (p *Pool) LockError() error { return p.region.LockError() }

// Close gives the memory back. It refuses while buffers are out: the kernel may
// still write to them.
func (p *Pool) Close() error {
	if n := len(p.out) - len(p.free); n > 0 {
		return fmt.Errorf("closing a pool with %d buffers in use", n)
	}
	return p.region.Close()
}
