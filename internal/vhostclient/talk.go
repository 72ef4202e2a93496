package vhostclient

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"time"
)

// Alive reports whether the server has not hung up, without a word, and has said
// nothing that nobody asked for. No reply is due.
func (c *Conn) Alive() error {
	raw, err := c.c.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var perr error
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		n, _, perr = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	})
	switch {
	case err != nil:
		return err
	case perr == nil && n > 0:
		return errUnasked
	case perr == syscall.EAGAIN || perr == syscall.EINTR:
		return nil
	case perr != nil:
		return perr
	}
	return net.ErrClosed
}

// converse breaks the session and talks on it while the lanes are busy, and watches
// that it lives. Both have ended when stop returns.
func (r *verifier) converse() (stop func()) {
	done := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		if err := r.talk(done); err != nil {
			r.book.Fail(fmt.Errorf("vhost-user verify as %s: %w", r.c.o.Sequence.Name, err))
		}
	})
	return func() { close(done); all.Wait() }
}

// talk is the monitor's side: one goroutine, as its messages must not mix.
func (r *verifier) talk(done <-chan struct{}) error {
	rng := rand.New(rand.NewPCG(r.Seed, 1<<32))
	next := func(mean time.Duration) time.Time {
		if mean == 0 {
			return time.Now().Add(1 << 60)
		}
		return time.Now().Add(time.Duration(rng.Int64N(2 * int64(mean))))
	}
	word, cut := next(r.Talk), next(r.Breaks)
	for {
		now := time.Now()
		wait := 20 * time.Millisecond
		if !r.calm.Load() {
			wait = max(min(wait, word.Sub(now), cut.Sub(now)), 0)
		}
		select {
		case <-done:
			return nil
		case <-r.book.Failed():
			return nil
		case <-time.After(wait):
		}
		var err error
		switch now := time.Now(); {
		case r.calm.Load():
			err = r.alive()
		case now.After(cut):
			err, cut = r.reconnect(), next(r.Breaks)
		case now.After(word):
			err, word = r.say(rng), next(r.Talk)
		default:
			err = r.alive()
		}
		if err != nil {
			return err
		}
	}
}

func (r *verifier) alive() error {
	err := r.c.Conn.Alive()
	if err == nil {
		return nil
	}
	if errors.Is(err, errUnasked) {
		r.book.Nonsense(err)
		return err
	}
	if r.Breaks > 0 {
		return r.reconnect()
	}
	return fmt.Errorf("the server has hung up on a frontend that cannot connect again: %w", err)
}

func (r *verifier) reconnect() error {
	if err := r.c.Reconnect(); err != nil {
		return err
	}
	r.book.Reconnected()
	return nil
}

// say sends what a running session may get.
func (r *verifier) say(rng *rand.Rand) error {
	c := r.c
	i := rng.IntN(len(c.Queues))
	ring := func(message, arg uint32) error {
		return c.step(Step{Message: message, Arg: arg, Ack: true}, i)
	}
	kind := rng.IntN(7)
	if kind == 4 && !c.o.Sequence.asksBases() { // it would not know where to go on
		kind = 5
	}
	switch kind {
	case 0:
		return c.Refresh()
	case 1:
		return errors.Join(ring(SetVringEnable, 0), ring(SetVringEnable, 1))
	case 2:
		return errors.Join(ring(SetVringCall, 0), c.Queues[i].Notify())
	case 3:
		return ring(SetVringKick, 0)
	case 4:
		if err := c.Restart(); err != nil {
			return err
		}
		for _, q := range c.Queues {
			if err := q.Notify(); err != nil {
				return err
			}
		}
		return nil
	case 5:
		return c.step(Step{Message: SetFeatures, Ack: true}, 0)
	}
	features, err := c.Conn.Get(GetFeatures)
	if err == nil && features != c.offered {
		err = fmt.Errorf("the server offered features %#x, and offers %#x now", c.offered, features)
	}
	return err
}
