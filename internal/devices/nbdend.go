package devices

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/nbdctl"
)

func (d *nbdDriver) remove(ctx context.Context, lease string, force bool) error {
	if err := d.put(lease, nil); err != nil {
		return err
	}
	index, all, err := d.find(lease)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return fmt.Errorf("lease %s: %w", lease, errNoDevice)
	}
	if index >= 0 && !force {
		if err := d.usage(filepath.Base(d.node(index)), !d.live(index)); err != nil {
			return err
		}
	}
	var errs []error
	for _, i := range all {
		errs = append(errs, d.retire(i))
	}
	if err := errors.Join(errs...); err != nil || force {
		// Whoever has it open gets errors, and has the kernel keep it until he closes it.
		return err
	}
	return d.gone(ctx, lease)
}

// retire ends a device, whose users get errors. Cut off, it is a device of ours still,
// or again.
func (d *nbdDriver) retire(index int) error {
	d.mu.Lock()
	l := d.links[index]
	delete(d.links, index)
	d.mu.Unlock()
	if l != nil {
		l.end()
	}
	err := d.handOver(d.node(index), 0) // the number's next device is not this user's
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, d.kernel.Disconnect(index), d.kernel.SetPatience(index, nbdctl.DefaultPatience))
}

// gone waits until no device of a lease is left.
func (d *nbdDriver) gone(ctx context.Context, lease string) error {
	ctx, cancel := context.WithTimeout(ctx, nbdGone)
	defer cancel()
	for {
		_, all, err := d.find(lease)
		if err != nil || len(all) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("lease %s: the kernel has %s still in use, %v after its end", lease, d.node(all[0]), nbdGone)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// resize tells the kernel a size that the engine has already, unless the device is in
// use: the kernel would wait for what is in flight while nobody could give it another
// connection, should the engine end just then.
func (d *nbdDriver) resize(ctx context.Context, lease string, bytes int64) error {
	index, _, err := d.find(lease)
	if err != nil {
		return err
	}
	if index < 0 {
		return fmt.Errorf("lease %s: %w", lease, errNoDevice)
	}
	switch size, err := d.kernel.Size(index); {
	case err != nil:
		return err
	case size == bytes:
		return nil
	case size > bytes:
		return refuse(ipc.CodeInvalid, "%s has %d bytes already, and cannot have less", d.node(index), size)
	}
	if err := d.usage(filepath.Base(d.node(index)), !d.live(index)); err != nil {
		return refuse(ipc.CodeUnsupported, "the kernel's nbd driver cannot resize a device in use (%v): attach lease %s again, and it has the new size", err, lease)
	}
	if err := d.connected(ctx, index); err != nil {
		return fmt.Errorf("lease %s: %w", lease, err)
	}
	return d.kernel.Reconfigure(index, nbdctl.Change{Backend: d.prefix + lease, SizeBytes: bytes})
}

func (d *nbdDriver) list(context.Context) ([]ipc.Device, error) {
	ours, err := d.ours()
	if err != nil {
		return nil, err
	}
	var all []ipc.Device
	for _, o := range ours {
		if !o.live {
			continue
		}
		size, err := d.kernel.Size(o.index)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, ipc.Device{Lease: o.lease, Kind: ipc.DeviceNBD, Node: d.node(o.index), SizeBytes: size, Live: d.live(o.index)})
	}
	return all, nil
}

// tidy ends what was not started to the end.
func (d *nbdDriver) tidy(context.Context) error {
	ours, err := d.ours()
	errs := []error{err}
	for _, o := range ours {
		if !o.live {
			errs = append(errs, d.retire(o.index))
		}
	}
	return errors.Join(errs...)
}

func (d *nbdDriver) clear(context.Context) error {
	ours, err := d.ours()
	errs := []error{err}
	for _, o := range ours {
		errs = append(errs, d.retire(o.index))
	}
	return errors.Join(errs...)
}

// nbdGuarded has the process end if a command does not: the kernel carries out one at a
// time, and all others would wait behind it.
type nbdGuarded struct {
	nbdKernel
	fatal func(what string)
	after time.Duration
}

// nbdCommand is what a command may take: as long as those of ublk.
const nbdCommand = 30 * time.Second

func (g nbdGuarded) guard(what string, index int) (done func()) {
	t := time.AfterFunc(g.after, func() { g.fatal(fmt.Sprintf("%s (%s)", what, nbdctl.Node(index))) })
	return func() { t.Stop() }
}

func (g nbdGuarded) Connect(c nbdctl.Config) (int, error) {
	defer g.guard("making an nbd device", -1)()
	return g.nbdKernel.Connect(c)
}

func (g nbdGuarded) Reconfigure(index int, ch nbdctl.Change) error {
	defer g.guard("giving an nbd device another connection or size", index)()
	return g.nbdKernel.Reconfigure(index, ch)
}

func (g nbdGuarded) Disconnect(index int) error {
	defer g.guard("ending an nbd device", index)()
	return g.nbdKernel.Disconnect(index)
}

func (g nbdGuarded) SetPatience(index int, p time.Duration) error {
	defer g.guard("setting how long an nbd device's requests may take", index)()
	return g.nbdKernel.SetPatience(index, p)
}
