package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/sys"
	"vacate/internal/virtioblk"
	"vacate/internal/virtq"
)

// A frontend is the other end of a session, as the tests drive it.
type frontend struct {
	t    testing.TB
	conn *net.UnixConn
}

// A reply is what came back.
type reply struct {
	request, flags uint32
	payload        []byte
	files          []int
}

func raw(request, flags uint32, payload []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, request)
	b = binary.LittleEndian.AppendUint32(b, flags)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

func (f *frontend) send(b []byte, files ...int) {
	f.t.Helper()
	var oob []byte
	if len(files) > 0 {
		oob = syscall.UnixRights(files...)
	}
	if _, _, err := f.conn.WriteMsgUnix(b, oob, nil); err != nil {
		f.t.Fatalf("sending: %v", err)
	}
}

// tell sends a message that has no reply.
func (f *frontend) tell(request uint32, payload []byte, files ...int) {
	f.t.Helper()
	f.send(raw(request, flagsVersion, payload), files...)
}

// ack sends a message and returns what its acknowledgement says.
func (f *frontend) ack(request uint32, payload []byte, files ...int) uint64 {
	f.t.Helper()
	f.send(raw(request, flagsVersion|flagsNeedReply, payload), files...)
	r := f.receive()
	if r.request != request || len(r.payload) != 8 {
		f.t.Fatalf("the acknowledgement of %s is %+v", requestName(request), r)
	}
	return le.Uint64(r.payload)
}

// must is ack of what is not refused.
func (f *frontend) must(request uint32, payload []byte, files ...int) {
	f.t.Helper()
	if got := f.ack(request, payload, files...); got != 0 {
		f.t.Fatalf("%s was refused: %d", requestName(request), got)
	}
}

// ask sends a message that has a reply of its own.
func (f *frontend) ask(request uint32, payload []byte, files ...int) []byte {
	f.t.Helper()
	f.send(raw(request, flagsVersion, payload), files...)
	r := f.receive()
	if r.request != request {
		f.t.Fatalf("the reply to %s is %+v", requestName(request), r)
	}
	return r.payload
}

func (f *frontend) receive() reply {
	f.t.Helper()
	r, err := f.tryReceive()
	if err != nil {
		f.t.Fatalf("receiving: %v", err)
	}
	return r
}

func (f *frontend) tryReceive() (r reply, err error) {
	if err := f.conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		return r, err
	}
	b, oob := make([]byte, headerSize), make([]byte, 64)
	n, on, _, _, err := f.conn.ReadMsgUnix(b, oob)
	if err != nil {
		return r, err
	}
	if n == 0 {
		return r, io.EOF
	}
	if _, err := io.ReadFull(f.conn, b[n:]); err != nil {
		return r, err
	}
	r.request, r.flags = le.Uint32(b), le.Uint32(b[4:])
	r.payload = make([]byte, le.Uint32(b[8:]))
	if _, err := io.ReadFull(f.conn, r.payload); err != nil {
		return r, err
	}
	msgs, err := syscall.ParseSocketControlMessage(oob[:on])
	for i := range msgs {
		fds, err := syscall.ParseUnixRights(&msgs[i])
		if err != nil {
			return r, err
		}
		r.files = append(r.files, fds...)
	}
	if r.flags != flagsVersion|flagsReply {
		return r, fmt.Errorf("a reply with flags %#x", r.flags)
	}
	return r, err
}

// ended waits for the server to hang up.
func (f *frontend) ended() {
	f.t.Helper()
	for {
		_, err := f.tryReceive()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			f.t.Fatal("the server does not hang up")
		}
		if err != nil {
			return
		}
	}
}

func u64(v uint64) []byte      { return le.AppendUint64(nil, v) }
func state(i, n uint32) []byte { return le.AppendUint32(le.AppendUint32(nil, i), n) }
func u64s(v ...uint64) (b []byte) {
	for _, x := range v {
		b = le.AppendUint64(b, x)
	}
	return b
}

// A shelf is the keeper of a test. It outlives servers, as the real one does.
type shelf struct {
	mu     sync.Mutex
	places map[int]int
	before func(f *os.File) // Keep does anything; may be nil
}

func (k *shelf) Keep(place int, f *os.File) error {
	k.mu.Lock()
	before := k.before
	k.mu.Unlock()
	if before != nil {
		before(f)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if fd, ok := k.places[place]; ok {
		_ = sys.CloseFD(fd)
		delete(k.places, place)
	}
	if f == nil {
		return nil
	}
	again, err := dup(f)
	if err != nil {
		return err
	}
	if k.places == nil {
		k.places = map[int]int{}
	}
	k.places[place], err = sys.Detach(again)
	return err
}

func dup(f *os.File) (*os.File, error) {
	fd, err := sys.Descriptor(f)
	if err != nil {
		return nil, err
	}
	return sys.Share(fd, f.Name())
}

func (k *shelf) Fetch(place int) (*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	fd, ok := k.places[place]
	if !ok {
		return nil, nil
	}
	return sys.Share(fd, "kept")
}

func (k *shelf) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.places)
}

func (k *shelf) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for p, fd := range k.places {
		_ = sys.CloseFD(fd)
		delete(k.places, p)
	}
}

// A fake is a worker that does nothing but remember.
type fake struct {
	mu      sync.Mutex
	rings   map[int]*virtq.Ring
	files   map[int]virtioblk.RingFiles
	log     []string
	through bool
	quit    bool
	block   chan struct{} // Stop waits for it, unless it is nil
}

func (w *fake) note(format string, a ...any) { w.log = append(w.log, fmt.Sprintf(format, a...)) }

func (w *fake) Start(i int, r *virtq.Ring, f virtioblk.RingFiles) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.rings[i] != nil {
		panic("started twice")
	}
	w.rings[i], w.files[i] = r, f
	w.note("start %d at %d", i, r.Base())
	return nil
}

func (w *fake) Stop(i int) *virtq.Ring {
	w.mu.Lock()
	block := w.block
	w.mu.Unlock()
	if block != nil {
		<-block
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.rings[i]
	delete(w.rings, i)
	delete(w.files, i)
	if r != nil {
		w.note("stop %d", i)
	}
	return r
}

func (w *fake) Signal(i int, f virtioblk.RingFiles) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.rings[i] == nil {
		return syscall.ENOENT
	}
	w.files[i] = f
	w.note("signal %d", i)
	return nil
}

func (w *fake) WriteThrough(on bool) { w.mu.Lock(); w.through = on; w.mu.Unlock() }
func (w *fake) Hurry()               {}
func (w *fake) Quit()                { w.mu.Lock(); w.quit = true; w.mu.Unlock() }
func (w *fake) Close() error         { return nil }

// hold has Stop wait until the channel is closed.
func (w *fake) hold() chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.block = make(chan struct{})
	return w.block
}

func (w *fake) takeLog() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.log
	w.log = nil
	return l
}

func (w *fake) running(i int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rings[i] != nil
}

// A disk is a volume of which only the geometry counts.
type disk struct{ size int64 }

func (d disk) Geometry() blk.Geometry {
	return blk.Geometry{Size: d.size, Logical: 512, Physical: 4096}
}
func (d disk) NewQueue(int) (blk.Queue, error) { return nil, syscall.EOPNOTSUPP }

// A guest is memory with rings in it.
type guest struct {
	f    *os.File
	fd   int
	mem  []byte
	size uint64
	user uint64
}

const guestAt = 0x7f0000000000 // where frontends of tests see their memory

func newGuest(t *testing.T, size uint64) *guest {
	t.Helper()
	f, err := os.CreateTemp("/dev/shm", "guest")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(f.Name()), f.Truncate(int64(size))); err != nil {
		t.Fatal(err)
	}
	fd, err := sys.Descriptor(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := sys.MapShared(f, int(size))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(sys.Unmap(b), f.Close()); err != nil {
			t.Error(err)
		}
	})
	return &guest{f: f, fd: fd, mem: b, size: size, user: guestAt}
}

func (g *guest) region() []byte { return u64s(0, g.size, g.user, 0) }

func (g *guest) table() []byte { return append(u64(1), g.region()...) }

// Each ring of a test has 16 KiB of guest memory: descriptors, available, used.
func (g *guest) addr(i uint32, flags uint32) []byte {
	at := g.user + 0x4000*uint64(i)
	return append(state(i, flags), u64s(at, at+0x2000, at+0x1000, 0x4000*uint64(i)+0x2000)...)
}

func (g *guest) setUsed(i int, idx uint16) { le.PutUint16(g.mem[0x4000*i+0x2000+2:], idx) }

func newEvent(t *testing.T) int {
	t.Helper()
	fd, err := sys.NewEvent()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sys.CloseFD(fd) })
	return fd
}

const allProtocol = protoOffered

// negotiate does what comes before rings.
func (f *frontend) negotiate() {
	f.t.Helper()
	features := le.Uint64(f.ask(reqGetFeatures, nil))
	f.ask(reqGetProtocolFeatures, nil)
	f.tell(reqSetProtocolFeatures, u64(allProtocol))
	f.must(reqSetOwner, nil)
	f.must(reqSetFeatures, u64(features&^virtioblk.FeatureLogAll))
}

// start makes ring i run, as QEMU does.
func (f *frontend) start(g *guest, i uint32, kick, call int) {
	f.t.Helper()
	f.must(reqSetVringNum, state(i, 128))
	f.must(reqSetVringBase, state(i, 0))
	f.must(reqSetVringAddr, g.addr(i, 0))
	f.must(reqSetVringKick, u64(uint64(i)), kick)
	f.must(reqSetVringCall, u64(uint64(i)), call)
	f.must(reqSetVringEnable, state(i, 1))
}
