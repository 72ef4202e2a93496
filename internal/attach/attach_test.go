package attach

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/lease"
	"vacate/internal/node"
)

const id = "aaaaaaaaaaaaaaaa"

func contains(s, part string) bool { return strings.Contains(s, part) }

// TestAttach: the three steps in their order, once, and the way back.
func TestAttach(t *testing.T) {
	w := newWorld(t)
	w.start()
	l := w.set(id, lease.Open)
	if err := w.a.Ready(t.Context(), l.Exports); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		d, err := w.a.Attach(t.Context(), l)
		if err != nil || d.Path != "/dev/vacate/"+id || d.Kind != ipc.DeviceUblk || !d.Live {
			t.Fatalf("%+v, %v", d, err)
		}
	}
	var steps []string
	for _, c := range w.all() {
		if strings.HasSuffix(c, id) {
			steps = append(steps, strings.TrimSuffix(c, " "+id))
		}
	}
	if want := []string{ipc.MethodDeviceMake, ipc.MethodDeviceServe, ipc.MethodDeviceStart}; !slices.Equal(steps, want) {
		t.Errorf("steps %v, want %v", steps, want)
	}
	if d, ok := w.a.Device(id); !ok || d.SizeBytes != 1<<20 {
		t.Errorf("%+v, %v", d, ok)
	}
	if h, n := w.a.Status(t.Context()); h.Kind != ipc.DeviceUblk || n != 1 {
		t.Errorf("%+v, %d devices", h, n)
	}
	w.a.Resized(t.Context(), id, 2<<20)
	if d, _ := w.a.Device(id); d.SizeBytes != 2<<20 || w.called(ipc.MethodDeviceResize+" "+id) != 1 {
		t.Errorf("after a resize %+v", d)
	}
	for range 2 {
		if err := w.a.Detach(t.Context(), id, false); err != nil {
			t.Fatal(err)
		}
	}
	w.none()
	if d, ok := w.a.Device(id); ok {
		t.Errorf("it is still shown: %+v", d)
	}
}

// TestAtOnce: of many attaches and detaches at once, one has a lease at a time, and
// attaches alone make one device.
func TestAtOnce(t *testing.T) {
	w := newWorld(t)
	w.start()
	l := w.set(id, lease.Open)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if d, err := w.a.Attach(t.Context(), l); err != nil || !d.Live {
				t.Errorf("%+v, %v", d, err)
			}
		})
	}
	wg.Wait()
	if n := w.called(ipc.MethodDeviceMake + " " + id); n != 1 {
		t.Errorf("it was made %d times", n)
	}
	for i := range 16 {
		wg.Go(func() {
			var err error
			if i%2 == 0 {
				_, err = w.a.Attach(t.Context(), l)
			} else {
				err = w.a.Detach(t.Context(), id, false)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(w.a.locks) != 0 {
		t.Errorf("locks are left: %v", w.a.locks)
	}
}

// TestAbsent: without a devices process callers are told so, and what to do.
func TestAbsent(t *testing.T) {
	w := newWorld(t)
	l := w.set(id, lease.Open)
	stop := w.run()
	wantKind(t, w.a.Ready(t.Context(), l.Exports), node.Unsupported, "`vacate devices` does not run", "start the daemon as root", "NBD")
	_, err := w.a.Attach(t.Context(), l)
	wantKind(t, err, node.Unsupported, "vacate-devices.service")
	if err := w.a.Detach(t.Context(), id, false); err != nil {
		t.Errorf("detaching what cannot be there: %v", err)
	}
	w.link(id, true) // of a device that an earlier control knew of
	wantKind(t, w.a.Detach(t.Context(), id, false), node.Unsupported, "does not run")
	w.link(id, false)
	if h, n := w.a.Status(t.Context()); h.Kind != "" || n != 0 || !contains(h.Why, "does not run") {
		t.Errorf("%+v, %d", h, n)
	}
	w.a.Ended(id) // nobody is asked for a lease that never had one
	w.start()     // it comes later
	w.eventually("it is found", func() bool { return w.called(ipc.MethodDeviceList+" ") > 0 })
	if _, err := w.a.Attach(t.Context(), l); err != nil {
		t.Error(err)
	}
	stop()
}

// TestKinds: what a host cannot do is said before anything is opened.
func TestKinds(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.can("")
	wantKind(t, w.a.Ready(t.Context(), lease.Exports{}), node.Unsupported, "as the test says")
	w.can(ipc.DeviceNBD)
	only := lease.Exports{NoNBD: true, VhostUser: true}
	wantKind(t, w.a.Ready(t.Context(), only), node.Refused, "--export nbd")
	l := w.set(id, lease.Open)
	l.Exports = only
	_, err := w.a.Attach(t.Context(), l)
	wantKind(t, err, node.Refused, "--export nbd")
	w.none()
	l.Exports = lease.Exports{}
	if d, err := w.a.Attach(t.Context(), l); err != nil || d.Kind != ipc.DeviceNBD || w.called(ipc.MethodDeviceServe+" "+id) != 0 {
		t.Errorf("%+v, %v", d, err)
	}
}

// TestFaults: an attach goes on over an engine or a devices process that ends at any
// step, and leaves nothing behind where a step is refused.
func TestFaults(t *testing.T) {
	steps := []string{ipc.MethodDeviceMake, ipc.MethodDeviceServe, ipc.MethodDeviceStart}
	for _, step := range steps {
		t.Run("engine ends at "+step, func(t *testing.T) {
			w := newWorld(t)
			w.start()
			l := w.set(id, lease.Open)
			w.before(step, id, w.nextEngine)
			d, err := w.a.Attach(t.Context(), l)
			if _, live := w.has(); err != nil || len(live) != 1 {
				t.Errorf("%+v, %v, live %v", d, err, live)
			}
		})
		t.Run("refused at "+step, func(t *testing.T) {
			w := newWorld(t)
			w.start()
			l := w.set(id, lease.Open)
			w.failing(step, id, &ipc.RemoteError{Code: ipc.CodeUnsupported, Text: "it takes Linux 6.4"})
			_, err := w.a.Attach(t.Context(), l)
			wantKind(t, err, node.Unsupported, "Linux 6.4")
			w.none()
			if _, ok := w.a.Device(id); ok {
				t.Error("a device is shown")
			}
		})
	}
	for _, step := range []string{ipc.MethodDeviceServe, ipc.MethodDeviceStart} {
		t.Run("devices process ends at "+step, func(t *testing.T) {
			w := newWorld(t)
			w.start()
			l := w.set(id, lease.Open)
			old, back := w.end, make(chan struct{})
			w.before(step, id, func() {
				go func() { // it waits for this call
					defer close(back)
					old()
					w.start()
				}()
				time.Sleep(20 * time.Millisecond)
			})
			defer func() { <-back }()
			if _, err := w.a.Attach(t.Context(), l); err != nil {
				t.Error(err)
			}
			if _, live := w.has(); len(live) != 1 {
				t.Errorf("live: %v", live)
			}
		})
	}
}

// TestBusy: a device in use is not taken away, and who uses it is said.
func TestBusy(t *testing.T) {
	w := newWorld(t)
	w.start()
	l := w.set(id, lease.Open)
	if _, err := w.a.Attach(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	w.mount(id)
	wantKind(t, w.a.Detach(t.Context(), id, false), node.Refused, "mounted at /srv", "when nothing uses it")
	if _, ok := w.a.Device(id); !ok {
		t.Error("it is not shown any more")
	}
	if err := w.a.Detach(t.Context(), id, true); err != nil {
		t.Error(err)
	}
	w.none()
}

// TestNotOpen: a lease that is not open gets no device.
func TestNotOpen(t *testing.T) {
	w := newWorld(t)
	w.start()
	for _, s := range lease.States {
		l := w.set(id, s)
		_, err := w.a.Attach(t.Context(), l)
		if mayHave(s) {
			if err != nil {
				t.Errorf("%s: %v", s, err)
			}
			if err := w.a.Detach(t.Context(), id, false); err != nil {
				t.Error(err)
			}
			continue
		}
		wantKind(t, err, node.Refused, string(s), "--attach")
	}
	w.none()
}

// TestClosedMeanwhile (A1, A2): a lease that is closed at any step of its attach keeps
// no device, and the attach fails.
func TestClosedMeanwhile(t *testing.T) {
	for _, step := range []string{ipc.MethodDeviceMake, ipc.MethodDeviceServe, ipc.MethodDeviceStart} {
		for _, after := range []lease.State{lease.Closing, lease.Erased, lease.Closed, lease.Lost} {
			t.Run(step+" "+string(after), func(t *testing.T) {
				w := newWorld(t)
				w.start()
				w.run()
				l := w.set(id, lease.Open)
				w.before(step, id, func() {
					w.set(id, after)
					w.a.Ended(id)
				})
				_, err := w.a.Attach(t.Context(), l)
				wantKind(t, err, node.Refused, "only an open lease")
				w.none()
			})
		}
	}
}

// TestEnded (A2): the device of a lease that ends is removed by force, also when the
// devices process is away then.
func TestEnded(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.run()
	attach := func() {
		if _, err := w.a.Attach(t.Context(), w.set(id, lease.Open)); err != nil {
			t.Fatal(err)
		}
		w.mount(id)
	}
	attach()
	w.set(id, lease.Closed)
	w.a.Ended(id)
	w.none()
	attach()
	w.set(id, lease.Lost)
	w.a.EndedSince()
	w.none()
	attach()
	w.stop()
	w.set(id, lease.Closed)
	w.a.Ended(id)
	time.Sleep(20 * time.Millisecond)
	if all, _ := w.has(); len(all) != 1 {
		t.Fatal("who removed it?")
	}
	w.start()
	w.none()
}

// TestRecovered: what another engine served is served by the one that took over, all
// at once; devices of leases that have ended go.
func TestRecovered(t *testing.T) {
	w := newWorld(t)
	w.start()
	stop := w.run()
	var open []string
	for i := range 100 {
		one := fmt.Sprintf("%016d", i)
		if _, err := w.a.Attach(t.Context(), w.set(one, lease.Open)); err != nil {
			t.Fatal(err)
		}
		if i%5 == 0 {
			w.set(one, lease.Closed) // and nobody said so
			continue
		}
		open = append(open, one)
	}
	recovered := func() bool {
		all, live := w.has()
		return slices.Equal(all, open) && slices.Equal(live, open)
	}
	for range 3 {
		w.nextEngine()
		w.a.Recovered()
		w.eventually("all are served by the next engine", recovered)
	}
	w.before(ipc.MethodDeviceServe, open[7], func() { w.nextEngine(); w.a.Recovered() }) // one ends while they are
	w.nextEngine()
	w.a.Recovered()
	w.eventually("all are served by the one after", recovered)
	w.stop() // both are away
	w.nextEngine()
	w.a.Recovered()
	w.start()
	w.eventually("all are served when the devices process is back", recovered)

	// Another control knows nothing, and finds all: the second with an engine that took over.
	for range 2 {
		stop()
		w.a = w.attacher()
		stop = w.run()
		w.eventually("the next control shows them", func() bool { _, n := w.a.Status(t.Context()); return n == len(open) && recovered() })
		w.nextEngine()
		w.a.Recovered()
		w.eventually("they are served after that, too", recovered)
	}
	stop()
	w.nextEngine()
	w.a = w.attacher()
	stop = w.run()
	w.eventually("they are served by an engine that came with control", recovered)
	stop()
}

// TestStale: a device whose server has just ended is said to be served for a moment,
// and is given to the engine that there is when the kernel has noticed.
func TestStale(t *testing.T) {
	w := newWorld(t)
	w.start()
	l := w.set(id, lease.Open)
	if _, err := w.a.Attach(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	w.a = w.attacher() // it does not know who served it
	w.run()
	w.eventually("it was looked at", func() bool { return w.called(ipc.MethodDeviceList+" ") > 3 })
	w.nextEngine()
	w.eventually("it is served", func() bool { _, live := w.has(); return len(live) == 1 })
}

// TestWaits: a lease that is not decided yet keeps its device, and one that cannot be
// had from the engine is asked for again.
func TestWaits(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.run()
	l := w.set(id, lease.Open)
	if _, err := w.a.Attach(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	w.set(id, lease.Opening)
	w.nextEngine()
	w.a.Recovered()
	time.Sleep(20 * time.Millisecond)
	if all, live := w.has(); len(all) != 1 || len(live) != 0 {
		t.Fatalf("devices %v, live %v while it is not known whether the lease is open", all, live)
	}
	w.failing(ipc.MethodDeviceServe, id, &ipc.RemoteError{Code: ipc.CodeNotFound, Text: "no such lease yet"})
	w.set(id, lease.Open)
	w.eventually("it is served", func() bool { _, live := w.has(); return len(live) == 1 })
	if err := w.a.Detach(t.Context(), id, false); err != nil {
		t.Error(err)
	}
	w.none()
}
