package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"vacate/internal/blk"
	"vacate/internal/blockmap"
	"vacate/internal/crypt"
	"vacate/internal/drive"
	"vacate/internal/export/nbd"
	"vacate/internal/mem"
	"vacate/internal/nbdclient"
	"vacate/internal/volume"
	"vacate/internal/xts"
)

// A stack is the layers of a lease, in this process: as internal/engine stacks
// them, but any can be left out.
type stack struct {
	drive  *drive.Drive
	span   blk.Device
	cipher blk.Device // on span
	blocks blk.Device // on cipher
	size   int64
}

// newStack enrols a drive at path, size bytes of which are used.
func newStack(path string, size int64) (_ *stack, err error) {
	if err := sparse(path, size+256<<20); err != nil {
		return nil, err
	}
	var id drive.ID
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	if _, err := drive.Enroll(path, drive.EnrollOptions{Node: id, UUID: id, Epoch: 1}); err != nil {
		return nil, err
	}
	s := &stack{size: size}
	if s.drive, err = drive.Open(context.Background(), path, drive.OpenOptions{Node: id, UUID: id, Epoch: 1, NewEpoch: 1}); err != nil {
		return nil, err
	}
	if s.span, err = drive.NewSpan([]drive.SpanPiece{{Drive: s.drive, Len: size}}); err != nil {
		return nil, errors.Join(err, s.drive.Close())
	}
	schedule, err := mem.Map(xts.ScheduleSize, mem.TryLock)
	if err != nil {
		return nil, errors.Join(err, s.drive.Close())
	}
	var key [xts.KeySize]byte
	if _, err := rand.Read(key[:]); err != nil {
		return nil, err
	}
	sched := (*xts.Schedule)(schedule.Bytes())
	if err := sched.Expand(&key); err != nil {
		return nil, err
	}
	s.cipher = crypt.New(s.span, sched, mem.TryLock)
	words := uint64(size) / blk.BlockSize / 64
	s.blocks = blockmap.New(s.cipher, blockmap.Bits{
		Words: make([]atomic.Uint64, words), Summary: make([]atomic.Uint64, words/512/64+1), Blocks: uint64(size) / blk.BlockSize,
	})
	return s, nil
}

// volume is the topmost layer, on one of the others.
func (s *stack) volume(below blk.Device) blk.Device {
	return volume.New(below, volume.Config{Size: s.size, Lock: mem.TryLock})
}

// export serves a device over NBD until the process or stop ends it.
func export(d blk.Device, socket string) (stop func() error, err error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	srv, err := nbd.Serve(f, nbd.Config{Export: d, Lock: mem.TryLock})
	if err != nil {
		return nil, errors.Join(err, f.Close(), l.Close())
	}
	return func() error {
		srv.Close()
		srv.Wait()
		return l.Close()
	}, nil
}

const (
	mapSocket   = "with-map.sock"
	noMapSocket = "without-map.sock"
)

// serveStack is the process of the row "map": one drive, one key, two exports, of
// which one has no block map. It runs until it is killed.
func serveStack(dir string, size int64) error {
	s, err := newStack(filepath.Join(dir, "stack"), size)
	if err != nil {
		return err
	}
	for socket, d := range map[string]blk.Device{mapSocket: s.blocks, noMapSocket: s.cipher} {
		if _, err := export(s.volume(d), filepath.Join(dir, socket)); err != nil {
			return err
		}
	}
	select {}
}

// mapContestants start that process and fill its drive through the map. The
// export without one then reads the same blocks of the same drive.
func mapContestants(w *world) ([]contestant, error) {
	s, err := w.serve("stack", func() (*server, error) {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		return spawn(filepath.Join(w.shm, mapSocket), self, "-stack", w.shm, "-size", fmt.Sprint(w.o.size/2))
	}, w.o.size/2)
	if err != nil {
		return nil, err
	}
	without := *s
	without.target = filepath.Join(w.shm, noMapSocket)
	c, err := without.dial()
	if err == nil {
		err = c.Close()
	}
	j := job{load: nbdclient.Load{Pattern: nbdclient.RandomRead, Depth: 32}, simple: true}
	return []contestant{{name: "with the map", measure: j.on(w, s)}, {name: "without a map", measure: j.on(w, &without)}}, err
}

// allocations counts what one process allocates that is client and server at once,
// with every layer between.
func allocations(w *world) ([]contestant, error) {
	socket := filepath.Join(w.shm, "allocations.sock")
	var target *server
	count := func(p nbdclient.Pattern) func(round int) (sample, error) {
		return func(int) (got sample, err error) {
			if target == nil {
				s, err := newStack(filepath.Join(w.shm, "allocations"), w.o.size/16)
				if err != nil {
					return got, err
				}
				stop, err := export(s.volume(s.blocks), socket)
				if err != nil {
					return got, err
				}
				target = &server{target: socket, stop: stop}
				w.servers["allocations"], w.names = target, append(w.names, "allocations")
				if err := target.fill(w.o.size / 16); err != nil {
					return got, err
				}
			}
			return countAllocations(socket, nbdclient.Load{Pattern: p, Depth: 32, Duration: w.o.span / 2})
		}
	}
	return []contestant{{name: "reads", measure: count(nbdclient.RandomRead)}, {name: "writes", measure: count(nbdclient.RandomWrite)}}, nil
}

// countAllocations runs a load on a server in this process.
func countAllocations(socket string, load nbdclient.Load) (got sample, err error) {
	c, err := nbdclient.Dial(socket, nbdclient.Options{})
	if err != nil {
		return got, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	warm := load
	warm.Duration, warm.Requests = 0, 2000 // the connection's buffers
	if _, err := warm.Run(c); err != nil {
		return got, err
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r, err := load.Run(c)
	runtime.ReadMemStats(&after)
	if err == nil && r.Errors > 0 {
		err = fmt.Errorf("%d requests failed, first %w", r.Errors, r.FirstError)
	}
	if err != nil {
		return got, err
	}
	// The load itself allocates some when it begins: less than 1 in 1000 requests.
	got.Rate = float64((after.Mallocs-before.Mallocs)*1000/uint64(r.Requests)) / 1000
	return got, nil
}

// cipherBuffer is what openssl and we encrypt at once, in bytes.
const cipherBuffer = 128 << 10

// ciphers are all implementations that this machine has, the best first, and
// openssl.
func ciphers(w *world) (all []contestant, err error) {
	region, err := mem.Map(cipherBuffer, mem.TryLock)
	if err != nil {
		return nil, err
	}
	for i, name := range xts.Implementations() {
		if i == 0 {
			all = append(all, contestant{name: "Vacate", measure: cipher(w, name, region.Bytes())}, contestant{name: "openssl", measure: openssl(w)})
			continue
		}
		all = append(all, contestant{name: "Vacate, " + name, measure: cipher(w, name, region.Bytes())})
	}
	return all, nil
}

func cipher(w *world, name string, buf []byte) func(round int) (sample, error) {
	return func(int) (got sample, err error) {
		err = w.cores.onThread(&w.cores.client, func() error {
			// By processor time, as openssl counts.
			wall, busy := time.Now(), threadTime()
			got.Rate = xts.SpeedOf(name, buf, w.o.span/2)
			got.Rate *= float64(time.Since(wall)) / float64(max(1, threadTime()-busy))
			return nil
		})
		return got, err
	}
}
