package vhostuser

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/sys"
	"vacate/internal/virtioblk"
	"vacate/internal/virtq"
	"vacate/internal/volatile"
)

// eventually waits for what another goroutine is about to do.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// TestSession takes a session through its life: negotiated, rings run, are paused,
// are stopped, and the frontend hangs up.
func TestSession(t *testing.T) {
	w := newWorld(t, nil)
	f := w.connect()
	f.negotiate()
	if n := le.Uint64(f.ask(reqGetQueueNum, nil)); n != 2 {
		t.Errorf("%d queues", n)
	}
	g := newGuest(t, 1<<20)
	f.must(reqSetMemTable, g.table(), g.fd)
	g.setUsed(1, 77)
	for i := range uint32(2) {
		f.start(g, i, newEvent(t), newEvent(t))
	}
	if got := w.worker.takeLog(); !slices.Equal(got, []string{"start 0 at 0", "start 1 at 77"}) {
		t.Errorf("the worker was told %v", got)
	}
	if st := w.server.Stats(); st.Rings != 2 || st.Connections != 1 {
		t.Errorf("%+v", st)
	}

	f.must(reqSetVringCall, u64(1), newEvent(t))
	f.must(reqSetVringEnable, state(0, 0))
	f.must(reqSetVringEnable, state(0, 1))
	f.must(reqSetVringEnable, state(0, 1)) // nothing changes
	if got := w.worker.takeLog(); !slices.Equal(got, []string{"signal 1", "stop 0", "start 0 at 0"}) {
		t.Errorf("pausing a ring, the worker was told %v", got)
	}

	if got := f.ask(reqGetVringBase, state(1, 0)); !bytes.Equal(got, state(1, 77)) {
		t.Errorf("base % x", got)
	}
	if got := f.ask(reqGetVringBase, state(1, 0)); !bytes.Equal(got, state(1, 77)) {
		t.Errorf("base, asked again, % x", got)
	}
	if w.worker.running(1) {
		t.Error("a stopped ring runs")
	}
	f.must(reqSetVringEnable, state(1, 1))
	if w.worker.running(1) {
		t.Error("a stopped ring runs without a kick")
	}
	f.must(reqSetVringKick, u64(1), newEvent(t))
	if !w.worker.running(1) {
		t.Error("it does not run with one")
	}

	if err := f.conn.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the session's end", func() bool { return w.keeper.count() == 1 })
	if w.worker.running(0) || w.worker.running(1) {
		t.Error("rings run without a frontend")
	}
	f = w.connect()
	if got := le.Uint64(f.ask(reqGetFeatures, nil)); got != virtioblk.Features(false, 2)|featureProtocol {
		t.Errorf("features %#x", got)
	}
}

// TestOldFrontend negotiates no protocol features: rings are enabled at once.
func TestOldFrontend(t *testing.T) {
	w := newWorld(t, nil)
	f := w.connect()
	f.tell(reqSetOwner, nil)
	f.ask(reqGetFeatures, nil)
	f.tell(reqSetFeatures, u64(virtioblk.FeatureVersion1))
	g := newGuest(t, 1<<20)
	f.tell(reqSetMemTable, g.table(), g.fd)
	f.tell(reqSetVringNum, state(0, 64))
	f.tell(reqSetVringBase, state(0, 0))
	f.tell(reqSetVringAddr, g.addr(0, 0))
	f.tell(reqSetVringKick, u64(vringNoFD))
	f.ask(reqGetFeatures, nil)
	if !w.worker.running(0) {
		t.Error("the ring does not run")
	}
	w.worker.mu.Lock()
	defer w.worker.mu.Unlock()
	if !w.worker.through { // without FLUSH (virtio 1.2, 5.2.6.2)
		t.Error("writes may stay in a cache")
	}
	if k := w.worker.files[0].Kick; k != -1 {
		t.Errorf("a ring to poll has kick descriptor %d", k)
	}
}

// TestRingsKeepRunning: messages that change how rings are read, or where memory
// is, leave them running (rust-vmm/vhost#210, #227).
func TestRingsKeepRunning(t *testing.T) {
	w := newWorld(t, nil)
	f := w.connect()
	f.negotiate()
	g, more := newGuest(t, 1<<20), newGuest(t, 1<<20)
	f.must(reqSetMemTable, g.table(), g.fd)
	f.start(g, 0, newEvent(t), newEvent(t))
	w.worker.takeLog()
	features := virtioblk.Features(false, 2) | featureProtocol
	added := append(u64(0), u64s(1<<30, more.size, guestAt+1<<30, 0)...)
	log := newGuest(t, 1<<20)
	for _, tt := range []struct {
		name string
		do   func()
		want []string
	}{
		{"the same features", func() { f.must(reqSetFeatures, u64(features&^virtioblk.FeatureLogAll)) }, nil},
		{"log", func() { f.ask(reqSetLogBase, u64s(4096, 0), log.fd) }, nil},
		{"logging on", func() { f.must(reqSetFeatures, u64(features)) }, []string{"stop 0", "start 0 at 0"}},
		{"used ring logged", func() { f.must(reqSetVringAddr, g.addr(0, vringLog)) }, []string{"stop 0", "start 0 at 0"}},
		{"another log", func() { f.ask(reqSetLogBase, u64s(4096, 4096), log.fd) }, []string{"stop 0", "start 0 at 0"}},
		{"another kick", func() { f.must(reqSetVringKick, u64(0), newEvent(t)) }, []string{"signal 0"}},
		{"err", func() { f.must(reqSetVringErr, u64(0), newEvent(t)) }, []string{"signal 0"}},
		{"region added", func() { f.must(reqAddMemReg, added, more.fd) }, []string{"stop 0", "start 0 at 0"}},
		{"region removed", func() { f.must(reqRemMemReg, added) }, []string{"stop 0", "start 0 at 0"}},
		{"the same size", func() { f.must(reqSetVringNum, state(0, 128)) }, nil},
		{"log's event", func() { f.must(reqSetLogFD, nil, newEvent(t)) }, nil},
		{"owner", func() { f.must(reqSetOwner, nil) }, nil},
		{"inflight", func() {
			f.send(raw(reqGetInflightFD, flagsVersion, append(u64s(0, 0), 2, 0, 128, 0)))
			r := f.receive()
			f.must(reqSetInflightFD, r.payload, r.files[0])
			_ = sys.CloseFD(r.files[0])
		}, []string{"stop 0", "start 0 at 0"}},
		{"ring's own memory removed", func() { f.must(reqRemMemReg, append(u64(0), g.region()...)) }, []string{"stop 0"}},
		{"and added", func() { f.must(reqAddMemReg, append(u64(0), g.region()...), g.fd) }, []string{"start 0 at 0"}},
		{"owner reset", func() { f.must(reqResetOwner, nil) }, []string{"stop 0"}},
		{"enabled", func() { f.must(reqSetVringEnable, state(0, 1)) }, []string{"start 0 at 0"}},
		{"device reset", func() { f.must(reqResetDevice, nil) }, []string{"stop 0"}},
		{"enabled without a kick", func() { f.must(reqSetVringEnable, state(0, 1)) }, nil},
	} {
		tt.do()
		if got := w.worker.takeLog(); !slices.Equal(got, tt.want) {
			t.Errorf("%s: the worker was told %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestConfigSpace reads and writes it as frontends do.
func TestConfigSpace(t *testing.T) {
	w := newWorld(t, nil)
	f := w.connect()
	f.negotiate()
	want := virtioblk.ConfigSpace(disk{1 << 30}.Geometry(), 2, usualRing, true)
	get := func(off, n uint32) []byte {
		return f.ask(reqGetConfig, append(le.AppendUint32(state(off, n), 0), make([]byte, n)...))
	}
	for _, at := range []uint32{0, 0x100} { // Cloud Hypervisor before 2026
		if got := get(at, 60); len(got) != 72 || !bytes.Equal(got[12:], want[:]) {
			t.Errorf("at %#x: % x", at, got)
		}
	}
	if got := get(0, 256); !bytes.Equal(got[12:72], want[:]) || !bytes.Equal(got[72:], make([]byte, 196)) {
		t.Errorf("all of it: % x", got)
	}
	if got := get(200, 57); len(got) != 0 {
		t.Errorf("beyond its end: % x", got)
	}
	set := func(off, n, flags uint32, data ...byte) uint64 {
		return f.ack(reqSetConfig, append(le.AppendUint32(state(off, n), flags), data...))
	}
	if set(32, 1, 0, 0) != 0 {
		t.Error("writeback cannot be cleared")
	}
	if got := get(32, 1); got[12] != 0 {
		t.Error("writeback is set")
	}
	for name, got := range map[string]uint64{
		"capacity": set(0, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8), "writeback 2": set(32, 1, 0, 2), "beyond": set(256, 1, 0, 0),
		"flags": set(32, 1, 2, 1), "more than there is": set(32, 2, 0, 1),
	} {
		if got == 0 {
			t.Errorf("%s was accepted", name)
		}
	}
	if set(0, 60, configMigration, want[:]...) != 0 {
		t.Error("a migration cannot write it")
	}
	if got := get(32, 1); got[12] != 1 {
		t.Error("a migration does not set writeback")
	}
	if set(32, 1, 0, 0) != 0 {
		t.Error("writeback cannot be cleared")
	}
	f.must(reqResetDevice, nil)
	if got := get(32, 1); got[12] != 0 {
		t.Error("a frontend that keeps the config space tells its next driver of a cache that is off, and it is on")
	}
}

// TestWriteThrough: each write reaches the medium before it is answered where the
// driver relies on that, and nowhere else.
func TestWriteThrough(t *testing.T) {
	const flush, wce = virtioblk.FeatureFlush, virtioblk.FeatureConfigWCE
	for _, tt := range []struct {
		set      bool
		features uint64
		cleared  bool
		want     bool
	}{
		{false, 0, false, false},
		{false, 0, true, true},
		{true, 0, false, true}, // firmware; Firecracker's cache_type Unsafe
		{true, 0, true, true},
		{true, wce, false, true},
		{true, flush, false, false}, // Firecracker's Writeback
		{true, flush, true, false},  // by a driver before this one
		{true, flush | wce, false, false},
		{true, flush | wce, true, true},
	} {
		r := volatile.SessionRecord{FeaturesSet: tt.set, Features: tt.features | virtioblk.FeatureVersion1, WriteThrough: tt.cleared}
		if got := through(&r); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

// TestOneFrontend refuses a second frontend, and waits for the end of one that has
// hung up.
func TestOneFrontend(t *testing.T) {
	w := newWorld(t, nil)
	f := w.connect()
	f.negotiate()
	w.connect().ended()
	eventually(t, "the second to be counted as refused", func() bool { // after it was hung up
		got := w.server.Stats()
		return got.Refused == 1 && got.Connections == 1
	})
	g := newGuest(t, 1<<20)
	f.must(reqSetMemTable, g.table(), g.fd)
	f.start(g, 0, newEvent(t), newEvent(t))
	block := w.worker.hold()
	if err := f.conn.Close(); err != nil {
		t.Fatal(err)
	}
	second := w.connect()
	second.tell(reqGetFeatures, nil)
	time.Sleep(20 * time.Millisecond)
	close(block) // the drive answers what the first had in flight
	if r := second.receive(); r.request != reqGetFeatures {
		t.Errorf("%+v", r)
	}
}

func TestAdmit(t *testing.T) {
	var admitted, released atomic.Int32
	var stranger atomic.Bool
	w := newWorld(t, func(c *Config) {
		c.Admit = func() (func(), error) {
			if admitted.Load() == 2 {
				return nil, errors.New("no more")
			}
			admitted.Add(1)
			return func() { released.Add(1) }, nil
		}
		c.Allow = func(uint32) bool { return !stranger.Load() }
	})
	for range 2 {
		f := w.connect()
		f.negotiate()
		if err := f.conn.Close(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the session's end", func() bool { return w.server.Stats().Connections == 0 && w.keeper.count() == 1 })
	}
	w.connect().ended()
	stranger.Store(true)
	w.connect().ended()
	w.server.Close()
	w.server.Wait()
	if st := w.server.Stats(); admitted.Load() != 2 || released.Load() != 2 || st.Refused != 2 || st.Accepted != 4 {
		t.Errorf("%d admitted, %d released, %+v", admitted.Load(), released.Load(), st)
	}
}

// TestCloseWhileBusy closes a server whose drive does not answer (S1, S2).
func TestCloseWhileBusy(t *testing.T) {
	w := newWorld(t, nil)
	f := w.connect()
	f.negotiate()
	g := newGuest(t, 1<<20)
	f.must(reqSetMemTable, g.table(), g.fd)
	f.start(g, 0, newEvent(t), newEvent(t))
	block := w.worker.hold()
	f.tell(reqGetVringBase, state(0, 0)) // waits for the drive
	time.Sleep(5 * time.Millisecond)
	w.server.Hurry()
	w.server.Close()
	w.server.Close()
	f.ended()
	waited := make(chan struct{})
	go func() { w.server.Wait(); close(waited) }()
	select {
	case <-waited:
		t.Error("Wait returned while requests are in flight")
	case <-time.After(20 * time.Millisecond):
	}
	w.worker.mu.Lock()
	if !w.worker.quit {
		t.Error("the worker begins requests still")
	}
	w.worker.mu.Unlock()
	close(block)
	<-waited
	if err := w.server.Leave(context.Background()); !errors.Is(err, errClosed) {
		t.Errorf("leaving after Close: %v", err)
	}
}

func TestValidate(t *testing.T) {
	bad := Config{Export: disk{1000}, Queues: 65, ID: "123456789012345678901", Poll: time.Second, Depth: 5000, Cores: -1}
	err := bad.Validate()
	for _, want := range []string{"1000 bytes", "65 queues", "serial number", "polling", "depth 5000", "-1 workers"} {
		if err == nil || !bytes.Contains([]byte(err.Error()), []byte(want)) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	if err := (&Config{}).Validate(); err == nil {
		t.Error("a server without a volume")
	}
	var _ blk.Device = disk{}
	var _ worker = (*virtioblk.Worker)(nil)
	_ = virtq.MaxSize
}
