package power

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"

	"vacate/internal/plant"
	"vacate/test/vm"
	"vacate/test/vm/disk"
	"vacate/test/vm/wire"
)

// Sizes of the disks in bytes. The drive is small, so that its space is leased
// over and over. The state disk has a rest behind its file system, for a bug to
// be planted in.
const (
	stateBytes = 48 << 20
	stateRest  = 1 << 20
	dataBytes  = 64 << 20

	stateDir  = "/state/vacate"
	dataPath  = "/dev/" + dataName
	statePath = "/dev/" + stateName
)

// errCut is why a call to a machine ended whose power was cut.
var errCut = errors.New("the power was cut")

// A hunt is one run.
type hunt struct {
	o              options
	ctx            context.Context
	dir, initramfs string
	kernel         vm.Kernel
	emptyState     []byte // an ext4 image
	id             uint64 // of its canaries
	supply         *disk.Supply
	state, data    *disk.Disk
	listeners      []net.Listener
	enrolled       bool // the drive, and the node has said so
	boots          uint64
	machine        *vm.VM
	total          totals
	served         chan error // what ended a disk's server
	sockets        map[string]string
	servers        sync.WaitGroup

	mu     sync.Mutex // the machine's events come from another goroutine
	finder *finder    // what this boot must not leave on a disk
	book   *book
	wrong  []string // what the guest or the book said must not be
}

// totals are what is told at the end.
type totals struct {
	boot, serve            series
	lost, closed, between  int
	keys, sectors, crashes int
	records                int // of the node, at the end
}

// A series is some durations.
type series struct {
	n   int
	sum time.Duration
}

func (s *series) add(d time.Duration) { s.n, s.sum = s.n+1, s.sum+d }

func (s *series) mean() time.Duration {
	if s.n == 0 {
		return 0
	}
	return (s.sum / time.Duration(s.n)).Round(10 * time.Millisecond)
}

func (h *hunt) logf(format string, args ...any) {
	if h.o.verbose {
		fmt.Printf("  "+format+"\n", args...)
	}
}

// freshDisks replaces both disks, and the book of what is on them.
func (h *hunt) freshDisks() error {
	h.close()
	h.supply = disk.NewSupply()
	h.state, h.data = disk.New(h.supply, stateBytes+stateRest), disk.New(h.supply, dataBytes)
	if h.o.plant == lyingDisk {
		h.state.Lie()
	}
	image := make([]byte, h.state.Size())
	copy(image, h.emptyState)
	if err := h.state.Fill(image); err != nil {
		return err
	}
	h.book, h.enrolled = newBook(), false
	h.sockets, h.served, h.listeners = map[string]string{}, make(chan error, 2), nil
	for name, d := range map[string]*disk.Disk{stateName: h.state, dataName: h.data} {
		path := filepath.Join(h.dir, fmt.Sprintf("%s%d.sock", name, h.boots))
		l, err := net.Listen("unix", path)
		if err != nil {
			return err
		}
		h.listeners = append(h.listeners, l)
		h.sockets[name] = path
		h.servers.Go(func() { h.served <- d.Serve(l) })
	}
	return nil
}

// close ends the machine and the disks' servers.
func (h *hunt) close() {
	if h.machine != nil {
		h.machine.Kill()
		h.machine = nil
	}
	for _, l := range h.listeners {
		l.Close()
	}
	h.listeners = nil
	h.servers.Wait()
}

// boot starts the machine. A start that fails changes nothing on the disks: it is
// tried again.
func (h *hunt) boot(ctx context.Context) error {
	h.boots++
	h.mu.Lock()
	h.finder, h.wrong = newFinder(h.id), nil
	h.mu.Unlock()
	cfg := vm.Config{
		Kernel: h.kernel, Initramfs: h.initramfs, Dir: h.dir, Event: h.event,
		Drives: []vm.Drive{
			{Name: stateName, Socket: h.sockets[stateName], Bus: vm.Virtio},
			{Name: dataName, Socket: h.sockets[dataName], Bus: vm.NVMe},
		},
	}
	for crashes := 0; ; crashes++ {
		m, up, err := vm.Boot(ctx, cfg)
		if err == nil {
			h.machine = m
			h.total.boot.add(m.Age())
			h.logf("linux %s is up after %v, boot %s", up.Release, m.Age().Round(10*time.Millisecond), up.BootID)
			return nil
		}
		if crashes == maxCrashes {
			return err
		}
		h.total.crashes++
		h.logf("the machine does not start: %v", err)
	}
}

// serve mounts the state folder's file system and starts the daemon.
func (h *hunt) serve(ctx context.Context, _ decision) error {
	if err := h.machine.Call(ctx, "mount", wire.Mount{Device: statePath, Dir: "/state"}, nil); err != nil {
		return err
	}
	s := wire.Serve{StateDir: stateDir}
	if h.o.plant == plant.CipherNull {
		s.Env = []string{plant.Variable + "=" + h.o.plant}
	}
	start := time.Now()
	if err := h.machine.Call(ctx, "serve", s, nil); err != nil {
		return err
	}
	h.total.serve.add(time.Since(start))
	h.logf("the daemon is ready after %v", time.Since(start).Round(10*time.Millisecond))
	return nil
}

// event notes what the guest tells while it works.
func (h *hunt) event(m wire.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var e wire.LeaseEvent
	if err := json.Unmarshal(m.Body, &e); err != nil {
		h.wrong = append(h.wrong, fmt.Sprintf("event %q: %v", m.Kind, err))
		return
	}
	switch m.Kind {
	case "wrong":
		h.wrong = append(h.wrong, e.Text)
	case "writing":
		h.finder.canaries(e)
	default:
		if e.Keys != nil {
			h.finder.keys(e.Tag, e.Keys)
			h.total.keys += len(e.Keys.Slots)
			if len(e.Keys.Slots) == 0 {
				h.wrong = append(h.wrong, fmt.Sprintf("a lease was opened (tag %#x), and there is no key in the keys' memory", e.Tag))
			} else if h.o.plant == keyOnDisk {
				h.leakKey(e.Keys.Slots[0])
			}
		}
		if err := h.book.event(m.Kind, e); err != nil {
			h.wrong = append(h.wrong, err.Error())
		}
	}
}

// leakKey plants a bug: half of a key lies on the state folder's disk, at an odd
// place.
func (h *hunt) leakKey(slot []byte) {
	p := make([]byte, disk.SectorSize)
	copy(p[77:], slot[32:64])
	h.state.Write(p, stateBytes, true) //nolint:errcheck // without power it is written another time
}

// search looks at both disks, with what their caches hold.
func (h *hunt) search() error {
	start := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []string
	var bytes int64
	for name, d := range map[string]*disk.Disk{stateName: h.state, dataName: h.data} {
		texts, n := h.finder.search(name, d)
		all = append(all, texts...)
		bytes += n
	}
	needles, sectors := h.finder.known()
	h.total.sectors += sectors
	h.logf("searched %d MiB for %d needles and %d sectors in %v", bytes>>20, needles, sectors, time.Since(start).Round(10*time.Millisecond))
	return found("on a disk", all)
}
