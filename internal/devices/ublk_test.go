package devices

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/ublkcmd"
	"vacate/internal/ublkctl"
)

const (
	leaseA = "aaaaaaaaaaaaaaaa"
	leaseB = "bbbbbbbbbbbbbbb7"
)

// A bench is a ublk driver over the kernel of these tests.
type bench struct {
	t *testing.T
	*ublk
	k     *kernel
	dir   string // of links
	mu    sync.Mutex
	lives map[int]bool
	owner map[string]uint32
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, k: newKernel(t), lives: map[int]bool{}, owner: map[string]uint32{}}
	b.dir = filepath.Join(b.k.dev, "vacate")
	if err := os.Mkdir(b.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b.anew("/run/vacate")
	t.Cleanup(func() {
		if err := b.close(); err != nil || !b.k.closed {
			t.Error(err, b.k.closed)
		}
	})
	return b
}

// anew is a driver of another process, over the same kernel.
func (b *bench) anew(run string) {
	if b.ublk != nil {
		b.serial.stop()
	}
	proc := filepath.Join(b.k.dev, "proc")
	if err := errors.Join(os.MkdirAll(proc+"/self", 0o755), os.WriteFile(proc+"/self/mountinfo", nil, 0o600)); err != nil {
		b.t.Fatal(err)
	}
	h := host{dev: b.k.dev, sys: b.k.dev, proc: proc, claim: func(string) error { return nil }}
	b.ublk = newUblk(b.k, run, links{b.dir}, h, func(what string) { b.t.Errorf("fatal: %s", what) })
	b.ublk.newID = func() int { return -1 } // the lowest
	b.alive = func(pid int) bool { b.mu.Lock(); defer b.mu.Unlock(); return b.lives[pid] }
	b.handOver = func(node string, uid uint32) error { b.mu.Lock(); defer b.mu.Unlock(); b.owner[node] = uid; return nil }
}

// live says whether a process lives.
func (b *bench) live(pid int, yes bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lives[pid] = yes
}

// up makes a device and starts it.
func (b *bench) up(lease string, pid int) {
	b.t.Helper()
	b.made(lease)
	b.live(pid, true)
	if _, err := b.start(b.t.Context(), lease, pid); err != nil {
		b.t.Fatal(err)
	}
}

// made makes a device, which must succeed.
func (b *bench) made(lease string) ipc.DeviceMade {
	b.t.Helper()
	m, f, err := b.make(b.t.Context(), request(lease))
	if err != nil {
		b.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		b.t.Error(err)
	}
	return m
}

func (b *bench) states(want map[int]int) {
	b.t.Helper()
	if got := b.k.state(); !maps.Equal(got, want) {
		b.t.Errorf("the kernel's devices have states %v, want %v", got, want)
	}
}

// linked demands the links, from leases to what they lead to.
func (b *bench) linked(want map[string]string) {
	b.t.Helper()
	got, err := b.links.all()
	if err != nil || !maps.Equal(got, want) {
		b.t.Errorf("links are %v, %v, want %v", got, err, want)
	}
}

func request(lease string) *ipc.DeviceMakeRequest {
	return &ipc.DeviceMakeRequest{Lease: lease, SizeBytes: 1 << 20, LogicalBlock: 512, UID: 1000}
}

// code demands an error of a code, whose text has all of the parts.
func code(t *testing.T, err error, want string, parts ...string) {
	t.Helper()
	var remote *ipc.RemoteError
	if !errors.As(err, &remote) || remote.Code != want {
		t.Fatalf("%v, want code %s", err, want)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("%q lacks %q", err, p)
		}
	}
}

func TestLife(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	m := b.made(leaseA)
	if m.Kind != "ublk" || m.Depth != 64 || m.MaxIO != 256<<10 || m.Queues < 1 || m.Queues > 4 {
		t.Errorf("made %+v", m)
	}
	p := b.k.devices[0].params
	if p.Basic.DevSectors != 2048 || p.Basic.LogicalShift != 9 || p.Basic.MaxSectors != 512 || p.Basic.Attrs != ublkcmd.AttrVolatileCache|ublkcmd.AttrFUA || p.Discard.MaxSegments != 1 {
		t.Errorf("its parameters are %+v", p)
	}
	b.live(7, true)
	node, err := b.start(ctx, leaseA, 7)
	if err != nil || node != filepath.Join(b.k.dev, "ublkb0") || b.owner[node] != 1000 {
		t.Fatalf("start: %q, %v, owned by %v", node, err, b.owner)
	}
	b.linked(map[string]string{leaseA: "ublkb0"})
	if at, err := os.Readlink(filepath.Join(b.dir, leaseA)); err != nil || at != "../ublkb0" {
		t.Errorf("the link leads to %q, %v", at, err)
	}
	for range 2 { // a second time
		if again, err := b.start(ctx, leaseA, 7); err != nil || again != node {
			t.Errorf("start again: %q, %v", again, err)
		}
	}
	_, err = b.start(ctx, leaseA, 8)
	code(t, err, ipc.CodeBusy, "served", "7")
	_, _, err = b.make(ctx, request(leaseA))
	code(t, err, ipc.CodeBusy, "is served, by process 7")
	list, err := b.list(ctx)
	want := []ipc.Device{{Lease: leaseA, Kind: "ublk", Node: node, SizeBytes: 1 << 20, Live: true}}
	if err != nil || !slices.Equal(list, want) {
		t.Errorf("list: %+v, %v, want %+v", list, err, want)
	}
	if err := b.remove(ctx, leaseA, false); err != nil {
		t.Fatal(err)
	}
	b.states(map[int]int{})
	b.linked(map[string]string{})
	if err := b.remove(ctx, leaseA, false); !errors.Is(err, errNoDevice) {
		t.Errorf("removed twice: %v", err)
	}
	if _, err := b.start(ctx, leaseA, 7); !errors.Is(err, errNoDevice) {
		t.Errorf("start of none: %v", err)
	}
}

// TestMakeAgain: what was made and not started is made anew, also by the next process.
func TestMakeAgain(t *testing.T) {
	b := newBench(t)
	for round := range 4 {
		b.made(leaseA)
		b.states(map[int]int{round: ublkcmd.StateDead})
		if round == 1 {
			b.anew("/run/vacate")
		}
	}
	b.anew("/run/vacate")
	_, err := b.start(t.Context(), leaseA, 1)
	code(t, err, ipc.CodeMismatch, "device.make comes first")
}

// TestRecovery: a server that was killed this moment, of which the kernel knows later,
// by the process that made the device and by one that knows nothing.
func TestRecovery(t *testing.T) {
	for _, anew := range []bool{false, true} {
		for _, looks := range []int{0, 1, 5} {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.up(leaseA, 7)
				b.up(leaseB, 7)
				b.live(7, false)
				b.k.killed(0, looks, 3)
				b.k.killed(1, looks, 0)
				if anew {
					b.anew("/run/vacate")
				}
				if l, err := b.list(t.Context()); err != nil || len(l) != 2 || l[0].Live {
					t.Errorf("list: %+v, %v", l, err)
				}
				b.made(leaseA)
				b.made(leaseA) // its engine has ended too
				b.live(8, true)
				if _, err := b.start(t.Context(), leaseA, 8); err != nil {
					t.Fatal(err)
				}
				if i := b.k.devices[0].Info; i.State != ublkcmd.StateLive || i.PID != 8 {
					t.Errorf("the device: %+v", i)
				}
				if b.k.devices[1].State == ublkcmd.StateLive && looks == 0 {
					t.Errorf("the other: %+v", b.k.devices[1])
				}
			})
		}
	}
}

// TestNeverQuiesced: the kernel does not see that the server has ended; the call ends,
// and so it does when its caller goes.
func TestNeverQuiesced(t *testing.T) {
	for _, busy := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t)
			b.up(leaseA, 7)
			b.live(7, false)
			if busy {
				b.k.killed(0, 0, 1<<30)
			}
			start := time.Now()
			_, _, err := b.make(t.Context(), request(leaseA))
			code(t, err, ipc.CodeBusy, "ublkb0")
			if took := time.Since(start); took < quiesceTime || took > quiesceTime+recoverTime+time.Second {
				t.Errorf("it took %v", took)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start = time.Now()
			if _, _, err := b.make(ctx, request(leaseA)); err == nil || time.Since(start) > 2*time.Second {
				t.Errorf("given up: %v after %v", err, time.Since(start))
			}
		})
	}
}

// TestCutOff: the process ends at any command of a device's life. The next removes or
// goes on with what it finds, and nothing is left over.
func TestCutOff(t *testing.T) {
	for _, at := range []string{"add", "params", "open", "start", "link", "stop", "delete"} {
		t.Run(at, func(t *testing.T) {
			b := newBench(t)
			ctx := t.Context()
			cut := errors.New("the process ends")
			b.k.fail[at] = cut
			_, f, err := b.make(ctx, request(leaseA))
			if err == nil {
				if err := f.Close(); err != nil {
					t.Error(err)
				}
				b.live(7, true)
				if at == "link" {
					b.handOver = func(string, uint32) error { return cut }
				}
				_, err = b.start(ctx, leaseA, 7)
			}
			if err == nil {
				err = b.remove(ctx, leaseA, true)
			}
			if !errors.Is(err, cut) {
				t.Fatalf("%v, want it cut off", err)
			}
			b.live(7, true)
			b.anew("/run/vacate")
			if err := b.tidy(ctx); err != nil {
				t.Fatal(err)
			}
			_, f, err = b.make(ctx, request(leaseA))
			if err == nil {
				err = f.Close()
			} else {
				code(t, err, ipc.CodeBusy) // it was started
				err = nil
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err = b.start(ctx, leaseA, 7); err != nil {
				t.Fatal(err)
			}
			if len(b.k.state()) != 1 {
				t.Errorf("devices %v", b.k.state())
			}
			if l, err := b.list(ctx); err != nil || len(l) != 1 || !l[0].Live {
				t.Errorf("list: %v, %v", l, err)
			}
			if err := b.remove(ctx, leaseA, true); err != nil {
				t.Fatal(err)
			}
			b.states(map[int]int{})
			b.linked(map[string]string{})
		})
	}
}

func TestErrors(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	for _, tt := range []struct {
		why  error
		code string
	}{{ublkctl.ErrFull, ipc.CodeBusy}, {ublkctl.ErrNoPermission, ipc.CodeUnsupported}, {ublkctl.ErrTooOld, ipc.CodeUnsupported}, {ublkctl.ErrNoNode, ipc.CodeUnsupported}} {
		b.k.fail["add"] = &ublkctl.Error{Op: "making one", ID: -1, Errno: syscall.EPERM, Why: tt.why}
		_, _, err := b.make(ctx, request(leaseA))
		code(t, err, tt.code, leaseA, tt.why.Error())
	}
	b.states(map[int]int{})
	b.made(leaseA)
	code(t, b.resize(ctx, leaseA, 2<<20), ipc.CodeUnsupported, "6.16")
	b.features.UpdateSize = true
	if err := b.resize(ctx, leaseA, 2<<20); err != nil || b.k.devices[0].params.Basic.DevSectors != 4096 {
		t.Errorf("resize: %v, %+v", err, b.k.devices[0].params)
	}
	if err := b.resize(ctx, leaseB, 2<<20); !errors.Is(err, errNoDevice) {
		t.Errorf("resize of none: %v", err)
	}
	// The kernel has made the device, but not its node.
	b.host.dev = t.TempDir()
	b.live(7, true)
	_, err := b.start(ctx, leaseA, 7)
	code(t, err, ipc.CodeUnsupported, "devtmpfs")
}

// TestMany: more devices than the driver has by default, at once.
func TestMany(t *testing.T) {
	b := newBench(t)
	b.handOver = func(string, uint32) error { return nil }
	b.live(7, true)
	var all sync.WaitGroup
	for i := range 100 {
		lease := fmt.Sprintf("aaaaaaaaaaaaa%c%c%c", 'a'+i/26, 'a'+i%26, 'a')
		all.Go(func() {
			_, f, err := b.make(t.Context(), request(lease))
			if err == nil {
				_, err = b.start(t.Context(), lease, 7)
			}
			if err := errors.Join(err, f.Close()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if l, err := b.list(t.Context()); err != nil || len(l) != 100 {
		t.Errorf("%d devices, %v", len(l), err)
	}
	if err := b.clear(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.states(map[int]int{})
	b.linked(map[string]string{})
}

// TestNames: no device gets the name of one before it, nor of one that is there.
func TestNames(t *testing.T) {
	b := newBench(t)
	b.ublk.newID = newIDs()
	seen := map[int]bool{}
	for range 100 {
		b.up(leaseA, 7)
		for id := range b.k.state() {
			if seen[id] || id < 0 || id >= ublkIDs {
				t.Fatalf("after %d others a device has the id %d", len(seen), id)
			}
			seen[id] = true
		}
		if err := b.ublk.remove(t.Context(), leaseA, true); err != nil {
			t.Fatal(err)
		}
	}
	ids := []int{5, 5, 6, 6, 6, 6}
	b.ublk.newID = func() int { id := ids[0]; ids = ids[1:]; return id }
	b.made(leaseA)
	b.made(leaseB)
	b.states(map[int]int{5: ublkcmd.StateDead, 6: ublkcmd.StateDead})
	_, _, err := b.make(t.Context(), request("ccccccccccccccc7"))
	if err == nil || !strings.Contains(err.Error(), "file exists") || len(ids) > 0 {
		t.Errorf("with no id to be had: %v", err)
	}
}
