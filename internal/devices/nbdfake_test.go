package devices

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vacate/internal/ipc"
	"vacate/internal/nbdctl"
)

const nbdLease = "abcdefghijklmnop"

// An nbdDevice is one of the test's kernel.
type nbdDevice struct {
	mark     string
	size     int64
	patience time.Duration
	flags    uint16
	block    int
	dead     bool // it has lost its connection
	open     bool // someone has it open
	ended    bool // it was disconnected
}

// nbdFake is a kernel. What it is given it closes at once, or keeps as one connection.
type nbdFake struct {
	t   *testing.T
	dev string

	mu     sync.Mutex
	all    map[int]*nbdDevice
	fail   map[string]error // of commands, by name
	mended int              // connections that took the place of dead ones
	spare  int              // that were not needed
	dead   func(int)        // while someone listens
}

func (k *nbdFake) Connect(c nbdctl.Config) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.fail["connect"]; err != nil {
		return -1, err
	}
	index := len(k.all)
	k.all[index] = &nbdDevice{mark: c.Backend, size: c.SizeBytes, patience: nbdctl.DefaultPatience, flags: c.ServerFlags, block: c.BlockBytes}
	if len(c.Conns) != nbdConns || c.Timeout != 0 || c.DeadConnTimeout != nbdDeadTime {
		k.t.Errorf("a device is made with %+v", c)
	}
	return index, k.fail["after connect"]
}

func (k *nbdFake) Reconfigure(index int, c nbdctl.Change) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.all[index]
	if d == nil || d.mark != c.Backend || d.ended && !d.open {
		return &nbdctl.Error{Op: "reconfigure", Index: index, Err: syscall.EINVAL, Why: nbdctl.ErrNoDevice}
	}
	if err := k.fail["reconfigure"]; err != nil {
		return err
	}
	if c.SizeBytes != 0 && (d.dead || d.open || c.Conns != nil) {
		k.t.Error("a size is changed while the kernel may have to wait for ever")
	}
	if c.SizeBytes != 0 {
		d.size = c.SizeBytes
	}
	for range c.Conns {
		if d.ended {
			k.t.Error("a device that was ended is connected again")
		}
		if d.dead {
			d.dead = false
			k.mended++
		} else {
			k.spare++
		}
	}
	return nil
}

func (k *nbdFake) Disconnect(index int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.all[index].ended = true
	return k.fail["disconnect"]
}

func (k *nbdFake) List() (map[int]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	marks := map[int]string{}
	for i, d := range k.all {
		if !d.ended || d.open {
			marks[i] = d.mark
		}
	}
	return marks, k.fail["list"]
}

func (k *nbdFake) Size(index int) (int64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.all[index].size, nil
}

func (k *nbdFake) SetPatience(index int, p time.Duration) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.fail["patience"]; err != nil {
		return err
	}
	k.all[index].patience = p
	return nil
}

func (k *nbdFake) Patience(index int) (time.Duration, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.all[index].patience, nil
}

func (k *nbdFake) Close() error { return nil }

func (k *nbdFake) watch(ctx context.Context) (func(func(int)) error, error) {
	return func(dead func(int)) error {
		k.mu.Lock()
		k.dead = dead
		k.mu.Unlock()
		<-ctx.Done()
		return nil
	}, nil
}

// cut has a device lose its connection.
func (k *nbdFake) cut(index int) {
	k.mu.Lock()
	k.all[index].dead = true
	dead := k.dead
	k.mu.Unlock()
	if dead != nil {
		dead(index)
	}
}

func (k *nbdFake) set(change func(*nbdFake)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change(k)
}

func (k *nbdFake) look(index int) nbdDevice {
	k.mu.Lock()
	defer k.mu.Unlock()
	return *k.all[index]
}

// An nbdExport is a server that enters transmission, and then listens only.
type nbdExport struct {
	path string
	mu   sync.Mutex
	size int64
	min  uint32
	mute bool // it accepts, and says nothing
	all  []net.Conn
	ln   net.Listener
	done sync.WaitGroup
}

func newExport(t *testing.T, path string, size int64) *nbdExport {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	e := &nbdExport{path: path, size: size, min: 512, ln: ln}
	e.done.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			e.mu.Lock()
			e.all = append(e.all, c)
			if !e.mute {
				size, minimum := e.size, e.min
				e.done.Go(func() { e.serve(c, size, minimum) })
			}
			e.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		ln.Close()
		e.hangUp()
		e.done.Wait()
	})
	return e
}

func (e *nbdExport) hangUp() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.all {
		c.Close()
	}
}

func (e *nbdExport) set(change func(*nbdExport)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change(e)
}

// serve is the server's side of doc/proto.md's fixed newstyle negotiation, with
// NBD_OPT_GO only.
func (e *nbdExport) serve(c net.Conn, size int64, minimum uint32) {
	defer io.Copy(io.Discard, c) //nolint:errcheck // until it ends
	be := binary.BigEndian
	c.Write(append([]byte("NBDMAGICIHAVEOPT"), 0, 3)) //nolint:errcheck // the client tells
	var head [4 + 16]byte
	if _, err := io.ReadFull(c, head[:]); err != nil || be.Uint32(head[12:]) != 7 {
		c.Close()
		return
	}
	if _, err := io.CopyN(io.Discard, c, int64(be.Uint32(head[16:]))); err != nil {
		return
	}
	reply := func(kind uint32, data []byte) []byte {
		b := be.AppendUint64(nil, 0x3e889045565a9)
		b = be.AppendUint32(b, 7)
		b = be.AppendUint32(b, kind)
		return append(be.AppendUint32(b, uint32(len(data))), data...)
	}
	export := be.AppendUint16(be.AppendUint64([]byte{0, 0}, uint64(size)), 0x10d)
	blocks := be.AppendUint32(be.AppendUint32(be.AppendUint32([]byte{0, 3}, minimum), 4096), 32<<20)
	c.Write(append(append(reply(3, export), reply(3, blocks)...), reply(1, nil)...)) //nolint:errcheck // the client tells
}

// An nbdBench is a driver with all that is around it.
type nbdBench struct {
	*nbdDriver
	t      *testing.T
	kernel *nbdFake
	export *nbdExport
	owners map[string]uint32
	busy   error
}

const nbdSize = 1 << 20

func newNBDBench(t *testing.T) *nbdBench {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	run, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	b := &nbdBench{t: t, owners: map[string]uint32{}}
	b.kernel = &nbdFake{t: t, dev: "/dev", all: map[int]*nbdDevice{}, fail: map[string]error{}}
	b.export = newExport(t, filepath.Join(run, "leases", nbdLease, "nbd.sock"), nbdSize)
	b.anew(run)
	t.Cleanup(func() {
		if err := b.close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// anew is another process in the driver's place.
func (b *nbdBench) anew(run string) {
	b.t.Helper()
	if b.nbdDriver != nil {
		if err := b.close(); err != nil {
			b.t.Fatal(err)
		}
	}
	var err error
	b.nbdDriver, err = newNBD(nbdConfig{
		RunDir: run, Log: slog.New(slog.DiscardHandler), kernel: b.kernel, watch: b.kernel.watch, dev: "/dev",
		usage:    func(string, bool) error { return b.busy },
		handOver: func(node string, uid uint32) error { b.owners[node] = uid; return nil },
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *nbdBench) request() *ipc.DeviceMakeRequest {
	return &ipc.DeviceMakeRequest{Lease: nbdLease, SizeBytes: nbdSize, LogicalBlock: 512, UID: 1001, Socket: b.export.path}
}

// attach makes and starts the device.
func (b *nbdBench) attach() {
	b.t.Helper()
	made, f, err := b.make(b.t.Context(), b.request())
	if err != nil || f != nil || made.Kind != ipc.DeviceNBD {
		b.t.Fatalf("made %+v, %v, %v", made, f, err)
	}
	if node, err := b.start(b.t.Context(), nbdLease, 1); err != nil || node != "/dev/nbd0" {
		b.t.Fatalf("started %q, %v", node, err)
	}
}

// until waits for something that the driver does on its own.
func (b *nbdBench) until(what string, holds func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatal("never: " + what)
		}
	}
}

func (b *nbdBench) sure() {
	b.t.Helper()
	b.until("the device is live", func() bool { return b.live(0) })
}

// refused demands a code, and words for people.
func (b *nbdBench) refused(err error, code string, words ...string) {
	b.t.Helper()
	var r *ipc.RemoteError
	if !errors.As(err, &r) || r.Code != code {
		b.t.Errorf("%v is not refused with code %s", err, code)
		return
	}
	for _, w := range words {
		if !strings.Contains(r.Text, w) {
			b.t.Errorf("%q does not say %q", r.Text, w)
		}
	}
}
