package devices

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"vacate/internal/ipc"
	"vacate/internal/ublkcmd"
	"vacate/internal/ublkctl"
)

// How devices are found again by a process that knows nothing: the kernel keeps a mark
// of 64 bits with each, of which the upper half says whose run folder it belongs to,
// and the lower half which lease's it is. A link alone says nothing: its device may be
// gone, and the number be another's. The mark alone says whose a device is; the name
// of its lease stands in the link.

// mark is what a lease's device bears.
func mark(run, lease string) uint64 {
	return uint64(runMark(run))<<32 | uint64(short("lease ", lease))
}

// runMark is the upper half: never 0, which devices of others have there.
func runMark(run string) uint32 { return short("run ", run) | 1<<31 }

func short(kind, s string) uint32 {
	h := sha256.Sum256([]byte("vacate ublk " + kind + s))
	return binary.BigEndian.Uint32(h[:])
}

// find returns the device of a lease, or an error that wraps errNoDevice. It looks
// where the lease's device was last, where its link leads, and at all devices.
func (u *ublk) find(ctx context.Context, lease string) (i ublkctl.Info, err error) {
	want := mark(u.run, lease)
	var guesses []int
	u.mu.Lock()
	if m, ok := u.made[lease]; ok {
		guesses = append(guesses, m.id)
	}
	u.mu.Unlock()
	if n, ok := u.links.node(lease); ok {
		if id, ok := numbered(n); ok {
			guesses = append(guesses, id)
		}
	}
	err = u.do(ctx, "looking for a ublk device", func() error {
		all, err := u.ctl.List()
		if err != nil {
			return err
		}
		for _, id := range append(guesses, all...) {
			if !slices.Contains(all, id) {
				continue // what was removed is listed no more, but shown until its server lets it go
			}
			i, err = u.ctl.Info(id)
			if errors.Is(err, ublkctl.ErrNoDevice) {
				continue
			}
			if err != nil || i.Mark == want {
				return err
			}
		}
		return errNoDevice
	})
	if err != nil {
		return ublkctl.Info{}, ublkError(lease, err)
	}
	return i, nil
}

// ours is all devices of this run folder.
func (u *ublk) ours(ctx context.Context) (all []ublkctl.Info, err error) {
	err = u.do(ctx, "listing ublk devices", func() error {
		ids, err := u.ctl.List()
		if err != nil {
			return err
		}
		for _, id := range ids {
			i, err := u.ctl.Info(id)
			if errors.Is(err, ublkctl.ErrNoDevice) {
				continue // it has gone this moment
			}
			if err != nil {
				return err
			}
			if uint32(i.Mark>>32) == runMark(u.run) {
				all = append(all, i)
			}
		}
		return nil
	})
	return all, err
}

// leases is the lease of each device whose mark bears it out, by id.
func (u *ublk) leases(all []ublkctl.Info) (map[int]string, error) {
	linked, err := u.links.all()
	if err != nil {
		return nil, err
	}
	of := map[int]string{}
	fits := func(lease string, id int) {
		for _, i := range all {
			if i.ID == id && i.Mark == mark(u.run, lease) {
				of[id] = lease
			}
		}
	}
	for lease, n := range linked {
		if id, ok := numbered(n); ok {
			fits(lease, id)
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for lease, m := range u.made {
		fits(lease, m.id)
	}
	return of, nil
}

// list is described at [driver].
func (u *ublk) list(ctx context.Context) ([]ipc.Device, error) {
	all, err := u.ours(ctx)
	if err != nil {
		return nil, err
	}
	of, err := u.leases(all)
	if err != nil {
		return nil, err
	}
	var list []ipc.Device
	for _, i := range all {
		lease, ok := of[i.ID]
		if !ok {
			continue
		}
		size := u.host.sizeOf(name(i.ID))
		if size == 0 { // it is not started
			var p ublkcmd.Params
			err := u.do(ctx, "looking at a ublk device", func() (err error) { p, err = u.ctl.Params(i.ID); return err })
			if errors.Is(err, ublkctl.ErrNoDevice) {
				continue
			}
			if err != nil {
				return nil, err
			}
			size = int64(p.Basic.DevSectors) * 512
		}
		list = append(list, ipc.Device{
			Lease: lease, Kind: ipc.DeviceUblk, Node: u.node(i.ID), SizeBytes: size,
			Live: i.State == ublkcmd.StateLive && u.alive(i.PID),
		})
	}
	return list, nil
}

// remove is described at [driver].
func (u *ublk) remove(ctx context.Context, lease string, force bool) error {
	i, err := u.find(ctx, lease)
	if err != nil {
		return err
	}
	if !force && i.State != ublkcmd.StateDead {
		asleep := i.State != ublkcmd.StateLive || !u.alive(i.PID)
		if err := u.host.usage(name(i.ID), asleep); err != nil {
			return err
		}
	}
	if err := u.discard(ctx, lease, i.ID); err != nil {
		return err
	}
	return u.links.remove(lease)
}

// discard stops and removes a device. Its lease, if known, has none any more.
func (u *ublk) discard(ctx context.Context, lease string, id int) error {
	err := u.do(ctx, "removing "+u.node(id), func() error {
		if err := u.ctl.Stop(id); err != nil && !errors.Is(err, ublkctl.ErrNoDevice) {
			return err
		}
		if err := u.ctl.Delete(id); err != nil && !errors.Is(err, ublkctl.ErrNoDevice) {
			return err
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("removing %s: %w", u.node(id), err)
	}
	u.forget(lease)
	return nil
}

// resize is described at [driver].
func (u *ublk) resize(ctx context.Context, lease string, bytes int64) error {
	i, err := u.find(ctx, lease)
	if err != nil {
		return err
	}
	if !u.resizes() {
		return refuse(ipc.CodeUnsupported, "%s keeps its size until the lease is attached again: to resize a ublk device in use, the kernel must be Linux 6.16 or later", u.node(i.ID))
	}
	err = u.do(ctx, "resizing "+u.node(i.ID), func() error { return u.ctl.Resize(i.ID, bytes) })
	if err != nil {
		return ublkError(lease, err)
	}
	return nil
}

// clear is described at [driver].
func (u *ublk) clear(ctx context.Context) error {
	all, err := u.ours(ctx)
	if err != nil {
		return err
	}
	of, err := u.leases(all)
	for _, i := range all {
		err = errors.Join(err, u.discard(ctx, of[i.ID], i.ID))
	}
	return errors.Join(err, u.tidy(ctx))
}

// tidy removes what no lease can come to have again: devices that were made and not
// started by a process that is gone, and links whose device is gone.
func (u *ublk) tidy(ctx context.Context) error {
	all, err := u.ours(ctx)
	if err != nil {
		return err
	}
	of, err := u.leases(all)
	if err != nil {
		return err
	}
	for _, i := range all {
		if _, known := of[i.ID]; !known && i.State == ublkcmd.StateDead {
			err = errors.Join(err, u.discard(ctx, "", i.ID))
		}
	}
	linked, lerr := u.links.all()
	if lerr != nil {
		return errors.Join(err, lerr)
	}
	for lease, n := range linked {
		id, ok := numbered(n)
		if !ok || of[id] == lease {
			continue
		}
		gone, gerr := u.gone(ctx, lease, id)
		if gerr == nil && gone {
			gerr = u.links.remove(lease)
		}
		err = errors.Join(err, gerr)
	}
	return err
}

// gone reports whether a link leads to no device of its lease, whichever daemon's it
// may be.
func (u *ublk) gone(ctx context.Context, lease string, id int) (gone bool, err error) {
	err = u.do(ctx, "looking at a ublk device", func() error {
		all, err := u.ctl.List()
		if err != nil {
			return err
		}
		if gone = !slices.Contains(all, id); gone {
			return nil
		}
		i, err := u.ctl.Info(id)
		if errors.Is(err, ublkctl.ErrNoDevice) {
			gone = true
			return nil
		}
		gone = uint32(i.Mark) != short("lease ", lease)
		return err
	})
	return gone && err == nil, err
}
