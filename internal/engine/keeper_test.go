package engine

import (
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"vacate/internal/export/nbd"
	"vacate/internal/sys"
	"vacate/internal/volatile"
)

// testKeeper keeps volatile memory by the keeper's rules, in this process, and
// through a mapping of its own. Engines come and go; it stays.
type testKeeper struct {
	keys *volatile.Keys

	mu      sync.Mutex
	slots   map[int]*held // slots with a map
	mapErr  error
	wipeErr error
	short   error     // FetchMap fails with it
	badMap  bool      // Map answers with a file that is no map
	onWipe  func(int) // called before a key is overwritten
	onUnmap func(int)
	onFetch func(place int) // called before what is in a place is given out
	ups     int
	older   error // why it does not know what leases may be made of today
}

// held is what the keeper holds for a slot.
type held struct {
	bits, listener *os.File
	conns          []nbd.Passed
	places         map[int]*os.File
}

func (h *held) close() {
	for _, f := range slices.AppendSeq(append([]*os.File{h.bits, h.listener}, connFiles(h.conns)...), maps.Values(h.places)) {
		if f != nil {
			f.Close()
		}
	}
}

func connFiles(conns []nbd.Passed) (fs []*os.File) {
	for _, c := range conns {
		fs = append(fs, c.File)
	}
	return fs
}

// dup is what passing a descriptor over a socket does.
func dup(f *os.File) (*os.File, error) {
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func newTestKeeper(keys *volatile.Keys) *testKeeper {
	return &testKeeper{keys: keys, slots: map[int]*held{}}
}

func (k *testKeeper) Map(slot int, blocks uint64, extents int, lease volatile.LeaseID) (*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.mapErr != nil:
		return nil, k.mapErr
	case k.slots[slot] != nil:
		return nil, syscall.EEXIST
	case !k.keys.Empty(slot):
		return nil, syscall.EBUSY
	}
	f, err := volatile.CreateMap(blocks, extents, lease)
	if err != nil {
		return nil, err
	}
	k.slots[slot] = &held{bits: f, places: map[int]*os.File{}}
	if k.badMap {
		if _, err := f.WriteAt([]byte("nonsense"), 0); err != nil {
			return nil, err
		}
	}
	return dup(f)
}

func (k *testKeeper) Unmap(slot int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.keys.Empty(slot) {
		return syscall.EBUSY
	}
	if k.onUnmap != nil {
		k.onUnmap(slot)
	}
	if h := k.slots[slot]; h != nil {
		h.close()
		delete(k.slots, slot)
	}
	return nil
}

func (k *testKeeper) Wipe(slot int) (w volatile.Wiped, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.wipeErr != nil {
		return w, k.wipeErr
	}
	if k.onWipe != nil {
		k.onWipe(slot)
	}
	w.StartedNs = sys.BoottimeNs()
	err = k.keys.Wipe(slot)
	w.DoneNs = sys.BoottimeNs()
	w.ReadBack = err == nil
	return w, err
}

func (k *testKeeper) Hold(slot int, listener *os.File) (err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch h := k.slots[slot]; {
	case h == nil:
		return syscall.ENOENT
	case h.listener != nil:
		return syscall.EEXIST
	default:
		h.listener, err = dup(listener)
		return err
	}
}

func (k *testKeeper) Keep(slot, place int, f *os.File) (err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	h := k.slots[slot]
	if h == nil {
		if f == nil {
			return nil
		}
		return syscall.ENOENT
	}
	if old := h.places[place]; old != nil {
		old.Close()
		delete(h.places, place)
	}
	if f != nil {
		h.places[place], err = dup(f)
	}
	return err
}

func (k *testKeeper) FetchPlace(slot, place int) (*os.File, error) {
	k.mu.Lock()
	onFetch := k.onFetch
	k.mu.Unlock()
	if onFetch != nil {
		onFetch(place)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if h := k.slots[slot]; h != nil && h.places[place] != nil {
		return dup(h.places[place])
	}
	return nil, nil
}

func (k *testKeeper) Remap(slot int, f *os.File) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	h := k.slots[slot]
	switch {
	case k.mapErr != nil:
		return k.mapErr
	case h == nil:
		return syscall.ENOENT
	}
	bits, err := dup(f)
	if err != nil {
		return err
	}
	h.bits.Close()
	h.bits = bits
	return nil
}

func (k *testKeeper) FetchMap(slot int) (*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.short != nil {
		return nil, k.short
	}
	if h := k.slots[slot]; h != nil {
		return dup(h.bits)
	}
	return nil, syscall.ENOENT
}

func (k *testKeeper) FetchListener(slot int) (*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if h := k.slots[slot]; h != nil && h.listener != nil {
		return dup(h.listener)
	}
	return nil, nil
}

func (k *testKeeper) FetchConn(slot, n int) (*os.File, uint64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	h := k.slots[slot]
	if h == nil || n >= len(h.conns) {
		return nil, 0, nil
	}
	f, err := dup(h.conns[n].File)
	return f, h.conns[n].Terms, err
}

func (k *testKeeper) Pass(slot int, conn *os.File, terms uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	h := k.slots[slot]
	if h == nil {
		return syscall.ENOENT
	}
	f, err := dup(conn)
	h.conns = append(h.conns, nbd.Passed{File: f, Terms: terms})
	return err
}

func (k *testKeeper) Up() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ups++
	for _, h := range k.slots {
		for _, c := range h.conns {
			c.File.Close()
		}
		h.conns = nil
	}
	return nil
}

func (k *testKeeper) Knows(uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.older
}

// set changes the keeper while the engine runs.
func (k *testKeeper) set(fn func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	fn()
}

func (k *testKeeper) mapped() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.slots)
}

// engineLink is one engine's link to the keeper. What sessions keep goes through
// until they are abandoned.
type engineLink struct {
	*testKeeper
	dead *atomic.Bool
}

func (l engineLink) err() error {
	if l.dead.Load() {
		return volatile.ErrLink
	}
	return nil
}

func (l engineLink) Unmap(slot int) error {
	if err := l.err(); err != nil {
		return err
	}
	return l.testKeeper.Unmap(slot)
}

func (l engineLink) Remap(slot int, f *os.File) error {
	if err := l.err(); err != nil {
		return err
	}
	return l.testKeeper.Remap(slot, f)
}

func (l engineLink) Wipe(slot int) (volatile.Wiped, error) {
	if err := l.err(); err != nil {
		return volatile.Wiped{}, err
	}
	return l.testKeeper.Wipe(slot)
}
