package ublk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/poll"
	"vacate/internal/sys"
	"vacate/internal/ublkcmd"
)

// MaxQueues is the most queues that a device may have here.
const MaxQueues = 16

// Config describes a device to be served. It is as it was made (package devices).
type Config struct {
	Queues int // 1 to MaxQueues
	Depth  int // requests in flight a queue, 1 to 4096
	MaxIO  int // bytes: the longest read or write, a multiple of 512 up to blk.MaxTransfer

	Lock mem.Lock      // what becomes of memory that cannot be locked
	Poll time.Duration // how long a queue polls before its thread sleeps; 0: not at all
	Log  *slog.Logger
}

// Validate reports every fault of the configuration at once.
func (c Config) Validate() error {
	var errs []error
	if c.Queues < 1 || c.Queues > MaxQueues {
		errs = append(errs, fmt.Errorf("%d queues: want 1 to %d", c.Queues, MaxQueues))
	}
	if c.Depth < 1 || c.Depth > ublkcmd.MaxDepth {
		errs = append(errs, fmt.Errorf("queues of %d requests: want 1 to %d", c.Depth, ublkcmd.MaxDepth))
	}
	if c.MaxIO < blk.SectorSize || c.MaxIO > blk.MaxTransfer || c.MaxIO%blk.SectorSize != 0 {
		errs = append(errs, fmt.Errorf("transfers of %d bytes: want a multiple of %d up to %d", c.MaxIO, blk.SectorSize, blk.MaxTransfer))
	}
	if c.Poll < 0 || c.Poll > poll.Max {
		errs = append(errs, fmt.Errorf("polling for %v: want 0 to %v", c.Poll, poll.Max))
	}
	return errors.Join(errs...)
}

// A Server serves one device. Its methods may be called from any goroutine, in any
// order; they wait for nothing where they do not say so.
//
//	paused ── Resume ──> serving ── Pause ──> paused
//	   └────── Close ───────┴──> closed ── the device is stopped ──> gone
type Server struct {
	cfg    Config
	kernel kernel
	fd     int // the character device
	queues []*queue
	gone   chan struct{}

	resuming sync.Mutex // held by Resume
}

// Serve takes the requests of the device whose character device char is, of which it
// keeps a descriptor while it does; char stays the caller's. It begins paused, and returns when the driver has all that
// it wants before it starts the device. After an error the device can be served by
// another try, or only be removed; the queues that had begun then answer with errors
// until it is.
func Serve(char *os.File, cfg Config) (*Server, error) { return serve(char, cfg, driver{}) }

// serve is Serve with another kernel.
func serve(char *os.File, cfg Config, k kernel) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("serving a block device: %w", err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	fd, err := k.share(char)
	if err != nil {
		return nil, fmt.Errorf("serving a block device: %w", err)
	}
	s := &Server{cfg: cfg, kernel: k, fd: fd, gone: make(chan struct{})}
	var running sync.WaitGroup
	for i := range cfg.Queues {
		q, e := startQueue(s, i, &running)
		if e != nil {
			err = fmt.Errorf("serving a block device: queue %d: %w", i, e)
			break
		}
		s.queues = append(s.queues, q)
	}
	go func() {
		running.Wait()
		_ = sys.CloseFD(s.fd) // nothing is written behind
		close(s.gone)
	}()
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Resume has requests carried out by the volume v, those that waited first. It
// returns when all queues have a queue of v, or why one has none: then nothing has
// changed. It waits for processor time only. After Close it does nothing.
func (s *Server) Resume(v blk.Device) error {
	s.resuming.Lock()
	defer s.resuming.Unlock()
	// All are made before one is used: what has begun could wait for its drive.
	made := make([]blk.Queue, 0, len(s.queues))
	for _, q := range s.queues {
		if q.shut.Load() {
			return closeAll(made)
		}
		vq, err := v.NewQueue(s.cfg.Depth)
		if err != nil {
			return fmt.Errorf("serving a block device: %w", errors.Join(err, closeAll(made)))
		}
		made = append(made, vq)
	}
	var errs []error
	for i, q := range s.queues {
		errs = append(errs, q.order(&order{volume: made[i], size: v.Geometry().Size}))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("serving a block device: %w", err)
	}
	return nil
}

func closeAll(queues []blk.Queue) (err error) {
	for _, q := range queues {
		err = errors.Join(err, q.Close())
	}
	return err
}

// Pause brings the device to rest: when it returns nil, nothing is in flight, all that
// was carried out is answered, and the volume has no queue of this server. Requests
// wait from then on. When ctx ends first, it comes to rest later, and ctx's error is
// returned.
func (s *Server) Pause(ctx context.Context) error {
	paused := make(chan error, 1)
	go func() {
		var all sync.WaitGroup
		for _, q := range s.queues {
			all.Go(func() { _ = q.order(&order{}) }) // nothing of it fails
		}
		all.Wait()
		paused <- nil
	}()
	select {
	case err := <-paused:
		return err
	case <-ctx.Done():
		return fmt.Errorf("waiting for a block device to come to rest: %w", context.Cause(ctx))
	}
}

// Hurry lets the threads run before others: the lease is closed, and somebody waits
// for what is in flight.
func (s *Server) Hurry() {
	for _, q := range s.queues {
		q.hurry()
	}
}

// Close has every request fail, those that wait too, until the device is stopped, and
// gives the volume back once nothing is in flight.
func (s *Server) Close() {
	for _, q := range s.queues {
		q.close()
	}
}

// Wait returns when, after Close, the volume has no queue of this server any more.
func (s *Server) Wait() {
	for _, q := range s.queues {
		<-q.dead
	}
}

// Gone is closed when the device was stopped, and nothing is left of the server.
func (s *Server) Gone() <-chan struct{} { return s.gone }

// An order is what somebody wants of a queue's thread: to carry requests out by a
// queue of a volume, which is the thread's then, or, without one, to pause.
type order struct {
	volume blk.Queue
	size   int64 // bytes, of the volume
	done   chan error
}

// order gives o to the thread and waits until it is carried out.
func (q *queue) order(o *order) error {
	o.done = make(chan error, 1)
	q.mu.Lock()
	if q.ended {
		q.mu.Unlock()
		return o.refuse(nil)
	}
	q.orders = append(q.orders, o)
	q.mu.Unlock()
	q.alarm()
	return <-o.done
}

// refuse gives back what o has brought, and returns why.
func (o *order) refuse(why error) error {
	if o.volume == nil {
		return why
	}
	return errors.Join(why, o.volume.Close())
}

// ErrServed is returned by Resume where a volume serves the device already.
var ErrServed = errors.New("it is served already")

func (q *queue) close() {
	q.shut.Store(true)
	q.alarm()
}

// alarm makes the thread look at its orders.
func (q *queue) alarm() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.urgent.Store(true)
	if !q.ended { // else wake may be another's
		_ = sys.SignalEvent(q.wake) // EAGAIN: it is signalled
	}
}

func (q *queue) hurry() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if tid := q.tid.Load(); tid != 0 && !q.ended {
		sys.Hurry(int(tid))
	}
}

// mailbox is what others have said to a queue's thread.
type mailbox struct {
	wake   int // event descriptor
	urgent atomic.Bool
	shut   atomic.Bool
	tid    atomic.Int32

	mu     sync.Mutex
	orders []*order
	ended  bool // the thread takes no orders any more
}
