package devices

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/sys"
	"vacate/internal/ublkcmd"
	"vacate/internal/ublkctl"
)

// A ublk device's life, by the kernel's states:
//
//	make ──> DEAD ──start──> LIVE ──server ends──> QUIESCED ──make, start──> LIVE
//	           └──────────────┴──────remove──────────┘
//
// A device that was made and not started is nobody's: the next make removes it.

// What devices are like.
const (
	ublkQueues  = 4 // at most; one a processor
	ublkDepth   = 64
	ublkMaxIO   = 256 << 10 // blk.MaxTransfer
	ublkMax     = 4096      // devices, of all programs on the host
	ublkIDs     = 1 << 20   // that a device may have (UBLK_MINORS, drivers/block/ublk_drv.c)
	discardMost = 1 << 22   // sectors of one discard: 2 GiB
)

// How often what the kernel does by itself is looked for, and for how long.
const (
	pause       = 8 * time.Millisecond
	quiesceTime = 15 * time.Second // a server's end is noticed within 5 s
	recoverTime = 15 * time.Second
)

// control is package ublkctl, or a test's.
type control interface {
	Features() ublkctl.Features
	Add(ublkctl.Info) (ublkctl.Info, error)
	SetParams(id int, p ublkcmd.Params) error
	Params(id int) (ublkcmd.Params, error)
	Info(id int) (ublkctl.Info, error)
	Start(id, pid int) error
	Stop(id int) error
	Delete(id int) error
	BeginRecovery(id int) error
	EndRecovery(id, pid int) error
	Resize(id int, bytes int64) error
	List() ([]int, error)
	OpenServer(id int) (*os.File, error)
	Close() error
}

// A ublk is the driver of ublk devices.
type ublk struct {
	ctl      control // used within serial.do
	serial   *serial
	features ublkctl.Features
	run      string // run folder: its devices are ours
	links    links
	host     host
	alive    func(pid int) bool
	handOver func(node string, uid uint32) error
	newID    func() int // of a device that is made; used within serial.do

	mu   sync.Mutex
	made map[string]made // by lease; forgotten with this process
}

// made is what make leaves to start.
type made struct {
	id   int
	uid  uint32
	anew bool // it was started before
}

// newUblk takes ctl over.
func newUblk(ctl control, run string, l links, h host, fatal func(what string)) *ublk {
	return &ublk{
		ctl: ctl, serial: newSerial(fatal), features: ctl.Features(), run: run, links: l, host: h,
		alive: alive, handOver: sys.HandOver, newID: newIDs(), made: map[string]made{},
	}
}

// newIDs gives one id after the other, from any on. So hardly any name is ever that of
// two leases: who has kept one, as a container that is stopped, finds nothing there. (The
// kernel would give the lowest that is free: the next tenant's.)
func newIDs() func() int {
	next := rand.IntN(ublkIDs)
	return func() int {
		id := next
		next = (next + 1) % ublkIDs
		return id
	}
}

// alive reports whether a process runs its program still.
func alive(pid int) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	return err == nil && !sys.Dying(pid)
}

func (u *ublk) kind() string  { return ipc.DeviceUblk }
func (u *ublk) resizes() bool { return u.features.UpdateSize }

func (u *ublk) close() error {
	u.serial.stop()
	return u.ctl.Close()
}

// make is described at [driver].
func (u *ublk) make(ctx context.Context, r *ipc.DeviceMakeRequest) (ipc.DeviceMade, *os.File, error) {
	i, err := u.find(ctx, r.Lease)
	if errors.Is(err, errNoDevice) {
		return u.makeNew(ctx, r)
	}
	if err != nil {
		return ipc.DeviceMade{}, nil, err
	}
	if i.State == ublkcmd.StateDead { // of a make that came to nothing
		if err := u.discard(ctx, r.Lease, i.ID); err != nil {
			return ipc.DeviceMade{}, nil, err
		}
		return u.makeNew(ctx, r)
	}
	return u.recover(ctx, r, i)
}

// makeNew makes a device that there is none of.
func (u *ublk) makeNew(ctx context.Context, r *ipc.DeviceMakeRequest) (ipc.DeviceMade, *os.File, error) {
	want := ublkctl.Info{Queues: min(ublkQueues, runtime.NumCPU()), Depth: ublkDepth, MaxIO: ublkMaxIO, Mark: mark(u.run, r.Lease)}
	var got ublkctl.Info
	var f *os.File
	err := u.serial.do(ctx, "making a ublk device", func() (err error) {
		for range 3 {
			want.ID = u.newID()
			if got, err = u.ctl.Add(want); !errors.Is(err, syscall.EEXIST) {
				break
			}
		}
		if err != nil {
			return err
		}
		if err = u.ctl.SetParams(got.ID, params(r)); err == nil {
			f, err = u.ctl.OpenServer(got.ID)
		}
		if err != nil {
			return errors.Join(err, u.ctl.Delete(got.ID))
		}
		return nil
	})
	if err != nil {
		return ipc.DeviceMade{}, nil, ublkError(r.Lease, err)
	}
	u.remember(r.Lease, made{id: got.ID, uid: r.UID})
	return describe(got), f, nil
}

// params are what a lease's device is like. Blocks of 4096 bytes are what the volume
// does best; there is a cache to flush, which the drive's flush class decides on.
func params(r *ipc.DeviceMakeRequest) ublkcmd.Params {
	shift := uint8(12)
	if r.LogicalBlock == 512 {
		shift = 9
	}
	return ublkcmd.Params{
		Types: ublkcmd.ParamBasic | ublkcmd.ParamDiscard,
		Basic: ublkcmd.Basic{
			Attrs:        ublkcmd.AttrVolatileCache | ublkcmd.AttrFUA,
			LogicalShift: shift, PhysicalShift: 12, IOOptShift: 12, IOMinShift: 12,
			MaxSectors: ublkMaxIO / 512, DevSectors: uint64(r.SizeBytes) / 512,
		},
		Discard: ublkcmd.Discard{
			Granularity: 4096, MaxDiscardSectors: discardMost, MaxWriteZeroesSectors: discardMost, MaxSegments: 1,
		},
	}
}

func describe(i ublkctl.Info) ipc.DeviceMade {
	return ipc.DeviceMade{Kind: ipc.DeviceUblk, Queues: i.Queues, Depth: i.Depth, MaxIO: i.MaxIO}
}

// recover readies a device that was started for its next server. Its server may have
// been killed this moment, and the kernel not know yet.
func (u *ublk) recover(ctx context.Context, r *ipc.DeviceMakeRequest, i ublkctl.Info) (ipc.DeviceMade, *os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, quiesceTime+recoverTime)
	defer cancel()
	for start := time.Now(); i.State == ublkcmd.StateLive; {
		if u.alive(i.PID) {
			// A start whose answer was lost: what came after it is made up for.
			err := u.finish(r.Lease, i.ID, r.UID)
			return ipc.DeviceMade{}, nil, errors.Join(refuse(ipc.CodeBusy, "%s is served, by process %d", u.node(i.ID), i.PID), err)
		}
		if time.Since(start) > quiesceTime {
			return ipc.DeviceMade{}, nil, refuse(ipc.CodeBusy, "the kernel has not noticed in %v that process %d, which served %s, is gone", quiesceTime, i.PID, u.node(i.ID))
		}
		if err := rest(ctx); err != nil {
			return ipc.DeviceMade{}, nil, err
		}
		if err := u.do(ctx, "looking at a ublk device", func() (err error) { i, err = u.ctl.Info(i.ID); return err }); err != nil {
			return ipc.DeviceMade{}, nil, ublkError(r.Lease, err)
		}
	}
	var f *os.File
	for begun := false; f == nil; {
		err := u.do(ctx, "giving a ublk device a new server", func() (err error) {
			if !begun {
				if err := u.ctl.BeginRecovery(i.ID); err != nil {
					return err
				}
				begun = true
			}
			f, err = u.ctl.OpenServer(i.ID)
			return err
		})
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EBUSY) && ctx.Err() == nil {
			return ipc.DeviceMade{}, nil, ublkError(r.Lease, err)
		}
		if rest(ctx) != nil {
			return ipc.DeviceMade{}, nil, refuse(ipc.CodeBusy, "the last server of %s has not let it go: %v", u.node(i.ID), err)
		}
	}
	u.remember(r.Lease, made{id: i.ID, uid: r.UID, anew: true})
	return describe(i), f, nil
}

// rest waits a little.
func rest(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pause):
		return nil
	}
}

// served is described at [driver].
func (u *ublk) served(ctx context.Context, lease string, uid uint32) error {
	i, err := u.find(ctx, lease)
	if err != nil {
		return err
	}
	u.remember(lease, made{id: i.ID, uid: uid, anew: i.State != ublkcmd.StateDead})
	return nil
}

// start is described at [driver].
func (u *ublk) start(ctx context.Context, lease string, pid int) (string, error) {
	i, err := u.find(ctx, lease)
	if err != nil {
		return "", err
	}
	u.mu.Lock()
	m, known := u.made[lease]
	u.mu.Unlock()
	known = known && m.id == i.ID
	switch {
	case i.State == ublkcmd.StateLive && i.PID == pid && known:
		return u.node(i.ID), u.finish(lease, i.ID, m.uid)
	case i.State == ublkcmd.StateLive && i.PID == pid:
		return u.node(i.ID), u.there(i.ID)
	case i.State == ublkcmd.StateLive:
		return "", refuse(ipc.CodeBusy, "%s is served, by process %d", u.node(i.ID), i.PID)
	case !known || m.anew != (i.State != ublkcmd.StateDead):
		return "", refuse(ipc.CodeMismatch, "%s was not made ready for process %d: device.make comes first", u.node(i.ID), pid)
	}
	what := fmt.Sprintf("starting %s, which process %d serves", u.node(i.ID), pid)
	err = u.do(ctx, what, func() error {
		defer u.attend(pid, what)()
		if m.anew {
			return u.ctl.EndRecovery(i.ID, pid)
		}
		return u.ctl.Start(i.ID, pid)
	})
	if err != nil {
		return "", ublkError(lease, err)
	}
	return u.node(i.ID), u.finish(lease, i.ID, m.uid)
}

// attend watches the process that a start waits for: when it ends, the kernel waits on,
// and only the end of this process ends that. The function that it returns ends it.
func (u *ublk) attend(pid int, what string) (done func()) {
	const often = 250 * time.Millisecond
	var mu sync.Mutex
	over, lost := false, 0
	var t *time.Timer
	look := func() {
		mu.Lock()
		defer mu.Unlock()
		if over {
			return
		}
		if u.alive(pid) {
			lost = 0
		} else if lost++; lost > 4 { // a start that came to its end just then has returned by now
			u.serial.fatal(what + ", which has ended")
			return
		}
		t.Reset(often)
	}
	mu.Lock()
	defer mu.Unlock()
	t = time.AfterFunc(often, look)
	return func() {
		mu.Lock()
		defer mu.Unlock()
		over = true
		t.Stop()
	}
}

// finish does what comes behind a start: the node gets its owner, and then its link.
func (u *ublk) finish(lease string, id int, uid uint32) error {
	if err := u.there(id); err != nil {
		return err
	}
	if err := u.host.spare(name(id)); err != nil {
		return err
	}
	if err := u.handOver(u.node(id), uid); err != nil {
		return fmt.Errorf("giving %s to uid %d: %w", u.node(id), uid, err)
	}
	return u.links.set(lease, u.node(id))
}

// there is an error if the kernel has made no node.
func (u *ublk) there(id int) error {
	if _, err := os.Lstat(u.node(id)); err != nil {
		return refuse(ipc.CodeUnsupported, "%v: %v", ublkctl.ErrNoNode, err)
	}
	return nil
}

func (u *ublk) remember(lease string, m made) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.made[lease] = m
}

func (u *ublk) forget(lease string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.made, lease)
}

// node is the path of a device's node.
func (u *ublk) node(id int) string { return filepath.Join(u.host.dev, name(id)) }

// name is a block device's, to the kernel.
func name(id int) string { return fmt.Sprintf("ublkb%d", id) }

// do does a command. REQUIRES: run uses nothing of u but ctl.
func (u *ublk) do(ctx context.Context, what string, run func() error) error {
	return u.serial.do(ctx, what, run)
}

// ublkError says which lease's device an error is about, and gives it its code.
func ublkError(lease string, err error) error {
	var code string
	switch {
	case errors.Is(err, ublkctl.ErrNoDevice):
		return fmt.Errorf("lease %s: %w: %w", lease, errNoDevice, err)
	case errors.Is(err, ublkctl.ErrFull):
		code = ipc.CodeBusy
	case errors.Is(err, ublkctl.ErrNoDriver), errors.Is(err, ublkctl.ErrNoPermission), errors.Is(err, ublkctl.ErrTooOld), errors.Is(err, ublkctl.ErrNoNode):
		code = ipc.CodeUnsupported
	default:
		return fmt.Errorf("lease %s: %w", lease, err)
	}
	return refuse(code, "lease %s: %v", lease, err)
}
