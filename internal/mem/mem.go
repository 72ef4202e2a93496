// Package mem gives memory that holds keys and tenants' plaintext: outside the
// Go heap, so that nothing copies it; locked, so that it is never swapped; left
// out of core dumps; cleared before it is given up (laws L2 and L3).
//
//	M1: a region's address is a multiple of the page size, and never changes.
//	M2: the pages before and after a private region fault.
//	M3: what a private region or a pool held is overwritten before its memory
//	    goes back to the kernel or to another user.
//
// Locked pages are locked when first touched: a large region that is used
// sparsely takes little memory, but its whole length counts against
// RLIMIT_MEMLOCK (a process with CAP_IPC_LOCK has no limit).
package mem

import (
	"errors"
	"fmt"
	"os"

	"vacate/internal/sys"
)

// A Lock says what to do when memory cannot be locked.
type Lock uint8

// MustLock fails; TryLock goes on with memory that is not locked, and
// [Region.LockError] tells why.
const (
	MustLock Lock = iota
	TryLock
)

// A Region is memory outside the Go heap. Its methods may be called from any
// goroutine, but not at once; its bytes may be shared as the owner sees fit.
type Region struct {
	whole   []byte // as mapped, with the guard pages
	data    []byte
	private bool
	locked  bool
	lockErr error // why it is not locked
}

// Map returns size bytes of zeroed, private memory, rounded up to whole pages
// (the rest lies beyond len). The error says what could not be had and how to
// allow it.
func Map(size int, lock Lock) (*Region, error) {
	if size <= 0 || size > 1<<40 {
		return nil, fmt.Errorf("mapping %d bytes: size out of range", size)
	}
	page := sys.PageSize
	pages := (size + page - 1) &^ (page - 1)
	whole, err := sys.MapAnonymous(pages + 2*page)
	if err != nil {
		return nil, fmt.Errorf("mapping %d bytes: %w", size, err)
	}
	r := &Region{whole: whole, data: whole[page : page+size : page+pages], private: true}
	err = errors.Join(sys.Guard(whole[:page]), sys.Guard(whole[page+pages:]))
	if err == nil {
		full := r.data[:cap(r.data)]
		err = errors.Join(sys.DontDump(full), sys.WipeOnFork(full))
	}
	if err == nil {
		err = r.Lock(lock)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mapping %d bytes: %w", size, err), sys.Unmap(whole))
	}
	return r, nil
}

// MapShared maps the first size bytes of f, which has at least that many and
// cannot shrink (a memfd). Its pages are small, so that a sparse file stays so.
// It is not locked until [Region.Lock], except that
// memfd_secret always is. Close leaves its contents alone: others map it too.
func MapShared(f *os.File, size int) (*Region, error) {
	if size <= 0 {
		return nil, fmt.Errorf("mapping %d bytes of %s: size out of range", size, f.Name())
	}
	whole, err := sys.MapShared(f, size)
	if err != nil {
		return nil, fmt.Errorf("mapping %d bytes of %s: %w", size, f.Name(), explain(size, err))
	}
	r := &Region{whole: whole, data: whole}
	r.locked = sys.IsSecretMem(f)
	if !r.locked {
		r.lockErr = errNotAsked
	}
	if err := errors.Join(sys.DontDump(whole), sys.DontFork(whole), sys.SmallPages(whole)); err != nil {
		return nil, errors.Join(fmt.Errorf("mapping %d bytes of %s: %w", size, f.Name(), err), sys.Unmap(whole))
	}
	return r, nil
}

var errNotAsked = errors.New("nobody asked to lock it")

// Lock locks the region if it is not locked yet. With TryLock it returns nil
// also when the system refuses.
func (r *Region) Lock(lock Lock) error {
	if r.locked {
		return nil
	}
	if err := sys.LockOnFault(r.data[:cap(r.data)]); err != nil {
		r.lockErr = explain(cap(r.data), err)
		if lock == TryLock {
			return nil
		}
		return r.lockErr
	}
	r.locked, r.lockErr = true, nil
	return nil
}

// Bytes returns the memory. It is valid until Close.
func (r *Region) Bytes() []byte { return r.data }

// Locked reports whether the region is never swapped.
func (r *Region) Locked() bool { return r.locked }

// LockError tells why the region is not locked, and nil if it is.
func (r *Region) LockError() error { return r.lockErr }

// Close overwrites the region if it is private, and unmaps it. A second Close
// does nothing.
func (r *Region) Close() error {
	if r.whole == nil {
		return nil
	}
	if r.private {
		Wipe(r.data[:cap(r.data)])
	}
	whole := r.whole
	r.whole, r.data = nil, nil
	return sys.Unmap(whole)
}
