package devices

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"vacate/internal/ublkcmd"
	"vacate/internal/ublkctl"
)

// kernel is a control that behaves as the driver of Linux 6.12 does, as far as its
// states go.
type kernel struct {
	t   *testing.T
	dev string // folder of nodes

	mu      sync.Mutex
	devices map[int]*device
	next    int
	resize  bool
	fail    map[string]error // by the name of the method, once
	calls   []string
	closed  bool
}

type device struct {
	ublkctl.Info
	params   ublkcmd.Params
	busy     int // how often BeginRecovery is EBUSY
	gone     int // in how many looks at it the end of its server is seen; 0: not at all
	recovers bool
	deleted  bool // and held open
}

func newKernel(t *testing.T) *kernel {
	return &kernel{t: t, dev: t.TempDir(), devices: map[int]*device{}, fail: map[string]error{}}
}

// enter notes a call, and says what it is to fail with. The caller holds k.mu.
func (k *kernel) enter(what string) error {
	k.calls = append(k.calls, what)
	err := k.fail[what]
	delete(k.fail, what)
	return err
}

// of returns a device, or ErrNoDevice.
func (k *kernel) of(what string, id int) (*device, error) {
	if err := k.enter(what); err != nil {
		return nil, err
	}
	d := k.devices[id]
	if d == nil {
		return nil, &ublkctl.Error{Op: what, ID: id, Errno: syscall.ENODEV, Why: ublkctl.ErrNoDevice}
	}
	return d, nil
}

func wrong(what string, id int, errno syscall.Errno) error {
	return &ublkctl.Error{Op: what, ID: id, Errno: errno}
}

func (k *kernel) Features() ublkctl.Features { return ublkctl.Features{UpdateSize: k.resize} }

func (k *kernel) Add(i ublkctl.Info) (ublkctl.Info, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.enter("add"); err != nil {
		return ublkctl.Info{}, err
	}
	if i.ID < 0 {
		i.ID = k.next
		k.next++
	}
	if k.devices[i.ID] != nil {
		return ublkctl.Info{}, wrong("add", i.ID, syscall.EEXIST)
	}
	k.devices[i.ID] = &device{Info: i}
	return i, nil
}

func (k *kernel) SetParams(id int, p ublkcmd.Params) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	d, err := k.of("params", id)
	if err != nil {
		return err
	}
	if d.State != ublkcmd.StateDead {
		return wrong("params", id, syscall.EACCES)
	}
	d.params = p
	return nil
}

func (k *kernel) Params(id int) (ublkcmd.Params, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	d, err := k.of("get params", id)
	if err != nil {
		return ublkcmd.Params{}, err
	}
	return d.params, nil
}

func (k *kernel) Info(id int) (ublkctl.Info, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	d, err := k.of("info", id)
	if err != nil {
		return ublkctl.Info{}, err
	}
	if d.gone > 0 {
		if d.gone--; d.gone == 0 {
			d.State = ublkcmd.StateQuiesced
		}
	}
	return d.Info, nil
}

func (k *kernel) Start(id, pid int) error { return k.run("start", id, pid, false) }

func (k *kernel) EndRecovery(id, pid int) error { return k.run("end recovery", id, pid, true) }

func (k *kernel) run(what string, id, pid int, again bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	d, err := k.of(what, id)
	if err != nil {
		return err
	}
	if again != d.recovers || d.State == ublkcmd.StateLive {
		return wrong(what, id, syscall.EBUSY)
	}
	d.State, d.PID, d.recovers = ublkcmd.StateLive, pid, false
	if !again {
		return os.WriteFile(filepath.Join(k.dev, name(id)), nil, 0o600)
	}
	return nil
}

func (k *kernel) Stop(id int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	d, err := k.of("stop", id)
	if err != nil {
		return err
	}
	d.State, d.PID = ublkcmd.StateDead, 0
	if err := os.Remove(filepath.Join(k.dev, name(id))); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (k *kernel) Delete(id int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	d, err := k.of("delete", id)
	if err != nil {
		return err
	}
	if d.State != ublkcmd.StateDead {
		k.t.Errorf("device %d is deleted and was not stopped", id)
	}
	d.deleted = true // its server holds it still
	return nil
}

func (k *kernel) BeginRecovery(id int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	d, err := k.of("begin recovery", id)
	if err != nil {
		return err
	}
	if d.State != ublkcmd.StateQuiesced || d.busy > 0 {
		d.busy--
		return wrong("begin recovery", id, syscall.EBUSY)
	}
	d.recovers = true
	return nil
}

func (k *kernel) Resize(id int, bytes int64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	d, err := k.of("resize", id)
	if err != nil {
		return err
	}
	d.params.Basic.DevSectors = uint64(bytes / 512)
	return nil
}

func (k *kernel) List() ([]int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.enter("list"); err != nil {
		return nil, err
	}
	ids := []int{}
	for _, id := range slices.Sorted(maps.Keys(k.devices)) {
		if !k.devices[id].deleted {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

func (k *kernel) OpenServer(id int) (*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, err := k.of("open", id); err != nil {
		return nil, err
	}
	return os.Open(os.DevNull)
}

func (k *kernel) Close() error {
	k.closed = true
	return nil
}

// killed has the server of a device end, which is seen in so many looks.
func (k *kernel) killed(id, looks, busy int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.devices[id].gone, k.devices[id].busy = looks, busy
	if looks == 0 {
		k.devices[id].State = ublkcmd.StateQuiesced
	}
}

// state is the states of all devices that are left, by id.
func (k *kernel) state() map[int]int {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := map[int]int{}
	for id, d := range k.devices {
		if !d.deleted {
			s[id] = d.State
		}
	}
	return s
}
