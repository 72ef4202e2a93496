package attach

import (
	"context"
	"fmt"
	"testing"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/lease"
	"vacate/internal/node"
)

// TestWantedAgain: a device that is to be removed, since its attach has failed, stays
// where another attach has succeeded before it could be.
func TestWantedAgain(t *testing.T) {
	w := newWorld(t)
	w.run()
	l := w.set(id, lease.Open)
	for range 20 {
		w.a.look(id, true) // as undo does
		unlock, err := w.a.lock(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		w.start()
		attached := make(chan error, 1)
		go func() {
			_, err := w.a.Attach(t.Context(), l)
			attached <- err
		}()
		time.Sleep(time.Millisecond)
		unlock() // for either of the two
		if err := <-attached; err != nil {
			t.Fatal(err)
		}
		w.eventually("nobody looks after it any more", func() bool {
			w.a.mu.Lock()
			defer w.a.mu.Unlock()
			return len(w.a.looks) == 0
		})
		if _, live := w.has(); len(live) != 1 {
			t.Fatal("the device of the attach that succeeded was removed")
		}
		if err := w.a.Detach(t.Context(), id, false); err != nil {
			t.Fatal(err)
		}
		w.stop()
	}
}

// TestEngineBusy: after control, or the devices process, has ended between two steps the
// engine has not yet noticed that what it served has been discarded.
func TestEngineBusy(t *testing.T) {
	w := newWorld(t)
	w.start()
	l := w.set(id, lease.Open)
	w.failing(ipc.MethodDeviceServe, id, &ipc.RemoteError{Code: ipc.CodeBusy, Text: "it is served already"})
	if d, err := w.a.Attach(t.Context(), l); err != nil || !d.Live {
		t.Errorf("%+v, %v", d, err)
	}
}

// TestCutOff: control is killed before, or behind, any step of an attach. The next one
// has the device served, or there is none, and an attach that is asked again succeeds.
func TestCutOff(t *testing.T) {
	for _, step := range []string{ipc.MethodDeviceMake, ipc.MethodDeviceServe, ipc.MethodDeviceStart} {
		for _, ended := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, ended %v", step, ended), func(t *testing.T) {
				w := newWorld(t)
				w.start()
				l := w.set(id, lease.Open)
				cut, cancel := context.WithCancel(t.Context())
				w.before(step, id, func() {
					cancel()
					w.a.Close()
				})
				if _, err := w.a.Attach(cut, l); err == nil {
					t.Fatal("it was not cut off")
				}
				w.a = w.attacher()
				if ended {
					w.set(id, lease.Closed)
				}
				w.run()
				if ended {
					w.none()
					return
				}
				w.eventually("the next control looks", func() bool { return w.called(ipc.MethodDeviceList+" ") > 1 })
				w.eventually("what there is is served", func() bool { all, live := w.has(); return len(all) == len(live) })
				if d, err := w.a.Attach(t.Context(), l); err != nil || !d.Live {
					t.Errorf("%+v, %v", d, err)
				}
			})
		}
	}
}

// TestDevicesCutOff: the devices process is killed when the engine has the device, new or
// taken over, and the kernel is not told yet. The next one knows nothing of it, and
// nobody else can have the device any more.
func TestDevicesCutOff(t *testing.T) {
	for _, over := range []bool{false, true} {
		t.Run(fmt.Sprintf("taken over %v", over), func(t *testing.T) {
			w := newWorld(t)
			w.start()
			l := w.set(id, lease.Open)
			w.run()
			if over {
				if _, err := w.a.Attach(t.Context(), l); err != nil {
					t.Fatal(err)
				}
			}
			w.before(ipc.MethodDeviceServe, id, func() {
				w.stop()
				w.start()
			})
			if over {
				w.nextEngine()
				w.a.Recovered()
			} else if d, err := w.a.Attach(t.Context(), l); err != nil || !d.Live {
				t.Fatalf("%+v, %v", d, err)
			}
			w.eventually("it is served", func() bool { all, live := w.has(); return len(all) == 1 && len(live) == 1 })
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.kernel[id].pid != w.engine {
				t.Error("it is not served by the engine that there is")
			}
		})
	}
}

// TestUnlinked: the devices process ended between the start of a device and its link, so
// that the next one lists none. An attach succeeds all the same, with the device that
// there is; where none is there and none can be made, it says so at once.
func TestUnlinked(t *testing.T) {
	w := newWorld(t)
	w.start()
	l := w.set(id, lease.Open)
	if _, err := w.a.Attach(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.kernel[id].hidden = true
	w.mu.Unlock()
	if d, err := w.a.Attach(t.Context(), l); err != nil || !d.Live || w.called(ipc.MethodDeviceRemove+" "+id) > 0 {
		t.Errorf("%+v, %v", d, err)
	}
	other := w.set("bbbbbbbbbbbbbbbb", lease.Open)
	w.failing(ipc.MethodDeviceMake, other.ID, &ipc.RemoteError{Code: ipc.CodeBusy, Text: "there are as many as there can be"})
	_, err := w.a.Attach(t.Context(), other)
	wantKind(t, err, node.Refused, "as many as")
}
