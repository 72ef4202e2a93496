package devices

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vacate/internal/nbdctl"
)

// An nbdLink keeps one device connected, in a goroutine of its own. Its states:
//
//	unsure ──mended──> sure ──a connection died, or mend──> unsure
//
// In unsure it connects again and again, and gives the kernel the connection, which
// takes it if its own is dead and drops it if not.
type nbdLink struct {
	d      *nbdDriver
	lease  string
	index  int
	cancel context.CancelFunc
	done   chan struct{} // closed when the goroutine has ended
	kick   chan struct{} // one place: something to mend

	// They stand under d.mu.
	socket string
	sure   chan struct{} // closed in state sure
}

// link returns what keeps a device connected, which is begun if there is none: in
// state unsure, since nobody knows what happened before.
func (d *nbdDriver) link(lease string, index int, socket string) *nbdLink {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l := d.links[index]; l != nil && l.lease == lease {
		return l
	}
	ctx, cancel := context.WithCancel(d.ctx)
	l := &nbdLink{
		d: d, lease: lease, index: index, cancel: cancel, socket: socket,
		done: make(chan struct{}), kick: make(chan struct{}, 1), sure: make(chan struct{}),
	}
	l.kick <- struct{}{}
	d.links[index] = l
	d.running.Go(func() { l.run(ctx) })
	return l
}

// mend has the device connected anew, if need be, over that socket.
func (l *nbdLink) mend(socket string) {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	l.socket = socket
	l.doubt()
}

// doubt makes the link unsure. REQUIRES: d.mu is held.
func (l *nbdLink) doubt() {
	select {
	case <-l.sure:
		l.sure = make(chan struct{})
	default:
	}
	select {
	case l.kick <- struct{}{}:
	default: // it is to look anyway
	}
}

// live reports whether a device is connected.
func (d *nbdDriver) live(index int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.links[index]
	if l == nil {
		return false
	}
	select {
	case <-l.sure:
		return true
	default:
		return false
	}
}

// wait waits until the link is sure.
func (l *nbdLink) wait(ctx context.Context) error {
	for {
		l.d.mu.Lock()
		sure := l.sure
		l.d.mu.Unlock()
		select {
		case <-sure:
			return nil
		case <-l.done:
			return fmt.Errorf("the nbd device has ended: %w", errNoDevice)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// end ends the goroutine, and waits for it.
func (l *nbdLink) end() {
	l.cancel()
	<-l.done
}

func (l *nbdLink) run(ctx context.Context) {
	defer close(l.done)
	defer l.cancel()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.kick:
		}
		if !l.reconnect(ctx) {
			return
		}
		l.d.mu.Lock()
		if len(l.kick) == 0 {
			close(l.sure)
		}
		l.d.mu.Unlock()
	}
}

// Between two attempts to connect: a lease whose socket is not there, or refuses, is
// about to be closed, or its engine to be replaced.
const (
	nbdShortPause = 10 * time.Millisecond
	nbdLongPause  = time.Second
)

// reconnect gives the kernel new connections, however long it takes to have them. It
// returns false if there is no device any more, or ctx has ended.
func (l *nbdLink) reconnect(ctx context.Context) bool {
	said := ""
	for pause := nbdShortPause; ; pause = min(2*pause, nbdLongPause) {
		err := l.try(ctx)
		switch {
		case err == nil:
			return true
		case ctx.Err() != nil:
			return false
		case errors.Is(err, nbdctl.ErrNoDevice):
			l.d.Log.Warn("an nbd device has ended without being told to", "lease_id", l.lease, "node", l.d.node(l.index), "error", err)
			return false
		case err.Error() != said && pause == nbdLongPause:
			said = err.Error()
			l.d.Log.Warn("connecting an nbd device anew", "lease_id", l.lease, "node", l.d.node(l.index), "error", err)
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
	}
}

func (l *nbdLink) try(ctx context.Context) (err error) {
	l.d.mu.Lock()
	socket := l.socket
	l.d.mu.Unlock()
	conns, export, err := l.d.connect(ctx, socket)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll(conns)) }()
	size, err := l.d.kernel.Size(l.index)
	if err != nil {
		return err
	}
	if export.Size < size { // a larger one is seen when the device is made anew, or by resize
		return fmt.Errorf("the NBD export at %s has %d bytes, and the device %d", socket, export.Size, size)
	}
	return l.d.kernel.Reconfigure(l.index, nbdctl.Change{Backend: l.d.prefix + l.lease, Conns: conns})
}

// listen hears of connections that died until the driver is closed.
func (d *nbdDriver) listen(listen func(func(int)) error) {
	for {
		if listen != nil {
			if err := listen(d.dead); err != nil {
				d.Log.Warn("listening for nbd connections that die", "error", err)
			}
		}
		select {
		case <-d.ctx.Done():
			return
		case <-time.After(nbdLongPause):
		}
		next, err := d.watch(d.ctx)
		if err != nil {
			d.Log.Warn("listening for nbd connections that die", "error", err)
		}
		if listen = next; listen != nil {
			d.dead(-1) // what was not heard
		}
	}
}

// dead is called for a connection that died; −1: nobody knows whose.
func (d *nbdDriver) dead(index int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, l := range d.links {
		if index < 0 || i == index {
			l.doubt()
		}
	}
}
