// Package slow shows a file whose writes take random times: one that a killed
// process has in flight may land long after it, and after others that were made
// later. A disk may do that, too, but seldom does when it is watched.
//
// The file is a mount of FUSE (it needs root and /dev/fuse), served by this
// process; what is below it is an ordinary file. All that the kernel asks at once
// is carried out at once: there is no order among writes, as on a disk.
package slow

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// A File is a slow file.
type File struct {
	path string // of the mount
	fuse int    // the connection to the kernel
	back *os.File
	size int64
	most time.Duration

	replies sync.WaitGroup
	serving sync.WaitGroup
	pending atomic.Int64                  // writes that have not landed
	hangs   atomic.Pointer[chan struct{}] // closed by GoOn; nil: writes do not hang

	landing sync.RWMutex // writes land one at a time, and not while something is read

	mu  sync.Mutex
	rng *rand.Rand // under mu
}

// servers is how many goroutines take requests from the kernel.
const servers = 4

// Open shows the file back as path, which it makes. A write takes from nothing
// to most, evenly spread; then it lands, all at once. Equal seeds give the same
// times, in the order in which the kernel asks.
func Open(path, back string, most time.Duration, seed uint64) (f *File, err error) {
	f = &File{path: path, fuse: -1, most: most, rng: rand.New(rand.NewPCG(seed, 0))}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("showing %s as a slow file: %w", back, err), f.Close())
			f = nil
		}
	}()
	if f.back, err = os.OpenFile(back, os.O_RDWR, 0); err != nil {
		return f, err
	}
	st, err := f.back.Stat()
	if err != nil {
		return f, err
	}
	f.size = st.Size()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return f, err
	}
	if f.fuse, err = syscall.Open("/dev/fuse", syscall.O_RDWR|syscall.O_CLOEXEC, 0); err != nil {
		return f, fmt.Errorf("/dev/fuse: %w", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,allow_other", f.fuse, mode, os.Getuid(), os.Getgid())
	if err := syscall.Mount("vacate-slow", path, "fuse", syscall.MS_NOSUID|syscall.MS_NODEV, options); err != nil {
		return f, fmt.Errorf("mounting: %w (it needs root)", err)
	}
	for range servers {
		f.serving.Go(f.serve)
	}
	return f, f.unpolled()
}

// unpolled has the kernel learn that nobody is to be asked whether the file is ready.
// Package os asks when it opens a file, by a system call for which the runtime does not
// make place for another goroutine: on one processor this process could not answer it,
// and nothing would end that.
func (f *File) unpolled() error {
	fd, err := syscall.Open(f.path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd) //nolint:errcheck // nothing was written
	type pollfd struct {
		fd              int32
		events, revents int16
	}
	p := pollfd{fd: int32(fd), events: 1}
	var now syscall.Timespec // it waits for nothing
	for {
		switch _, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0); errno {
		case 0:
			return nil
		case syscall.EINTR:
		default:
			return fmt.Errorf("polling: %w", errno)
		}
	}
}

// Hang keeps every write from landing until GoOn: a drive that never completes.
func (f *File) Hang() {
	c := make(chan struct{})
	f.hangs.Store(&c)
}

// GoOn lets them land.
func (f *File) GoOn() {
	if c := f.hangs.Swap(nil); c != nil {
		close(*c)
	}
}

// Pending is the number of writes that have not landed yet.
func (f *File) Pending() int { return int(f.pending.Load()) }

// Close takes the mount away, when nobody has the file open any more, and waits
// for writes that have not landed.
func (f *File) Close() error {
	var errs []error
	if f.fuse >= 0 {
		for range 200 { // what was killed may be a moment in letting go
			err := syscall.Unmount(f.path, 0)
			if err == nil || !errors.Is(err, syscall.EBUSY) {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		// What is still mounted is detached; its users get errors. Not mounted: EINVAL.
		if err := syscall.Unmount(f.path, syscall.MNT_DETACH|mntForce); err == nil {
			errs = append(errs, fmt.Errorf("%s was in use when it was taken away", f.path))
		}
		f.serving.Wait()
		f.replies.Wait()
		errs = append(errs, syscall.Close(f.fuse))
		f.fuse = -1
	}
	if f.back != nil {
		errs = append(errs, f.back.Close())
		f.back = nil
	}
	return errors.Join(errs...)
}

const mntForce = 1 // umount2(2): end what waits for a reply

// serve answers the kernel until the mount is gone.
func (f *File) serve() {
	buf := make([]byte, maxWrite+4096)
	for {
		n, err := syscall.Read(f.fuse, buf)
		switch {
		case errors.Is(err, syscall.EINTR), errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOENT):
			continue // ENOENT: the request was interrupted while it was read
		case err != nil: // ENODEV: unmounted
			return
		}
		f.answer(buf[:n])
	}
}

// write carries out a write when its time has come.
func (f *File) write(r request, off int64, data []byte) {
	f.pending.Add(1)
	f.mu.Lock()
	wait := time.Duration(f.rng.Int64N(int64(f.most) + 1))
	f.mu.Unlock()
	f.replies.Go(func() {
		time.Sleep(wait)
		if c := f.hangs.Load(); c != nil {
			<-*c
		}
		f.landing.Lock()
		n, err := f.back.WriteAt(data, off)
		f.landing.Unlock()
		f.pending.Add(-1)
		if err != nil {
			f.fail(r, syscall.EIO)
			return
		}
		f.reply(r, wroteReply(n))
	})
}
