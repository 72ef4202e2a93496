package devices

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/nbdctl"
)

func TestNBDAttach(t *testing.T) {
	b := newNBDBench(t)
	b.attach()
	d := b.kernel.look(0)
	if d.size != nbdSize || d.block != 512 || d.flags != 0x10d || d.patience != nbdPatience || d.mark != nbdPrefix(b.RunDir)+nbdLease {
		t.Errorf("the device is %+v", d)
	}
	if b.owners["/dev/nbd0"] != 1001 {
		t.Errorf("the node's owner is %d", b.owners["/dev/nbd0"])
	}
	b.sure()
	all, err := b.list(t.Context())
	if err != nil || len(all) != 1 || all[0] != (ipc.Device{Lease: nbdLease, Kind: ipc.DeviceNBD, Node: "/dev/nbd0", SizeBytes: nbdSize, Live: true}) {
		t.Errorf("list: %+v, %v", all, err)
	}
	b.attach() // again, as after each new engine
	if len(b.kernel.all) != 1 {
		t.Errorf("there are %d devices", len(b.kernel.all))
	}
	if node, err := b.start(t.Context(), nbdLease, 1); node != "/dev/nbd0" || err != nil {
		t.Errorf("started again, and not made: %q, %v", node, err)
	}
}

// TestNBDEngineEnds: the device gets the next engine's connection, whenever that comes.
func TestNBDEngineEnds(t *testing.T) {
	b := newNBDBench(t)
	b.attach()
	b.sure()
	for range 3 {
		var before int
		b.kernel.set(func(k *nbdFake) { before = k.mended })
		b.export.set(func(e *nbdExport) { e.mute = true })
		b.kernel.cut(0)
		time.Sleep(20 * time.Millisecond)
		if b.live(0) {
			t.Fatal("a device is live without a connection")
		}
		b.export.set(func(e *nbdExport) { e.mute = false })
		b.export.hangUp() // whom nobody answered
		b.sure()
		b.kernel.set(func(k *nbdFake) {
			if k.mended != before+1 {
				t.Errorf("%d connections were mended", k.mended-before)
			}
		})
	}
}

// TestNBDAnew: another process takes over what is there, and finds what died meanwhile.
func TestNBDAnew(t *testing.T) {
	b := newNBDBench(t)
	b.attach()
	b.sure()
	if err := b.close(); err != nil {
		t.Fatal(err)
	}
	b.kernel.set(func(k *nbdFake) { k.dead = nil })
	b.kernel.cut(0)
	b.anew(b.RunDir)
	b.sure()
	if d := b.kernel.look(0); d.dead {
		t.Error("what died while nobody listened is dead still")
	}
	// Another run folder's devices are another's.
	other, err := newNBD(nbdConfig{RunDir: "/elsewhere", Log: b.Log, kernel: b.kernel, watch: b.kernel.watch, dev: "/dev", usage: b.usage, handOver: b.handOver})
	if err != nil {
		t.Fatal(err)
	}
	all, err := other.list(t.Context())
	if err = errors.Join(err, other.clear(t.Context()), other.close()); err != nil || len(all) != 0 || b.kernel.look(0).ended {
		t.Errorf("another run folder has %+v, %v", all, err)
	}
}

func TestNBDRemove(t *testing.T) {
	b := newNBDBench(t)
	b.attach()
	b.busy = refuse(ipc.CodeBusy, "/dev/nbd0 is mounted")
	b.refused(b.remove(t.Context(), nbdLease, false), ipc.CodeBusy, "mounted")
	if b.kernel.look(0).ended {
		t.Fatal("a device in use was removed")
	}
	b.busy = nil
	if err := b.remove(t.Context(), nbdLease, false); err != nil {
		t.Fatal(err)
	}
	if d := b.kernel.look(0); !d.ended || d.patience != nbdctl.DefaultPatience || b.owners["/dev/nbd0"] != 0 {
		t.Errorf("what is left: %+v, of user %d", d, b.owners["/dev/nbd0"])
	}
	if err := b.remove(t.Context(), nbdLease, false); !errors.Is(err, errNoDevice) {
		t.Errorf("removed twice: %v", err)
	}
	if _, err := b.start(t.Context(), nbdLease, 1); !errors.Is(err, errNoDevice) {
		t.Errorf("started without make: %v", err)
	}
}

// TestNBDForced: a device that is open stays the kernel's until it is closed, and is
// not ours any more, also for the next process.
func TestNBDForced(t *testing.T) {
	b := newNBDBench(t)
	b.attach()
	b.sure()
	b.kernel.set(func(k *nbdFake) { k.all[0].open = true })
	b.busy = refuse(ipc.CodeBusy, "/dev/nbd0 is mounted")
	if err := b.remove(t.Context(), nbdLease, true); err != nil {
		t.Fatal(err)
	}
	b.kernel.cut(0)
	b.anew(b.RunDir)
	if all, err := b.list(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("list: %+v, %v", all, err)
	}
	if _, _, err := b.make(t.Context(), b.request()); err != nil {
		t.Fatal(err)
	}
	if node, err := b.start(t.Context(), nbdLease, 1); node != "/dev/nbd1" || err != nil {
		t.Errorf("the next device is %q, %v", node, err)
	}
}

// TestNBDCutOff: what start began and did not end is not listed, and is tidied up.
func TestNBDCutOff(t *testing.T) {
	b := newNBDBench(t)
	b.kernel.set(func(k *nbdFake) { k.all[0] = &nbdDevice{mark: b.prefix + nbdLease, patience: nbdctl.DefaultPatience} })
	if all, err := b.list(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("list: %+v, %v", all, err)
	}
	if err := b.tidy(t.Context()); err != nil || !b.kernel.look(0).ended {
		t.Errorf("tidied up: %v, %+v", err, b.kernel.look(0))
	}
	b.kernel.set(func(k *nbdFake) { k.fail["patience"] = errors.New("no patience") })
	if _, _, err := b.make(t.Context(), b.request()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.start(t.Context(), nbdLease, 1); err == nil || !strings.Contains(err.Error(), "no patience") || !b.kernel.look(1).ended {
		t.Errorf("a start that failed: %v, %+v", err, b.kernel.look(1))
	}
}

func TestNBDRefusals(t *testing.T) {
	b := newNBDBench(t)
	r := b.request()
	r.Socket = ""
	_, _, err := b.make(t.Context(), r)
	b.refused(err, ipc.CodeUnsupported, nbdLease, "--export nbd")
	r.Socket = "/nonexistent"
	_, _, err = b.make(t.Context(), r)
	b.refused(err, ipc.CodeNotFound, nbdLease, "/nonexistent", "--export nbd")
	b.export.set(func(e *nbdExport) { e.min = 4096 })
	_, _, err = b.make(t.Context(), b.request())
	b.refused(err, ipc.CodeInvalid, "512", "4096")
	b.export.set(func(e *nbdExport) { e.min, e.size = 512, 4096 })
	if _, _, err = b.make(t.Context(), b.request()); err == nil || !strings.Contains(err.Error(), "its NBD export 4096") {
		t.Errorf("an export of another size: %v", err)
	}
	b.export.set(func(e *nbdExport) { e.size = nbdSize })
	for why, want := range map[error]string{
		nbdctl.ErrFull: ipc.CodeBusy, nbdctl.ErrNoPermission: ipc.CodeUnsupported, nbdctl.ErrTooOld: ipc.CodeUnsupported,
	} {
		b.kernel.set(func(k *nbdFake) { k.fail["connect"] = fmt.Errorf("connect: %w", why) })
		if _, _, err := b.make(t.Context(), b.request()); err != nil {
			t.Fatal(err)
		}
		_, err := b.start(t.Context(), nbdLease, 1)
		b.refused(err, want, why.Error())
	}
	b.kernel.set(func(k *nbdFake) { delete(k.fail, "connect") })
	b.handOver = func(node string, _ uint32) error {
		return &fs.PathError{Op: "open", Path: node, Err: syscall.ENOENT}
	}
	if _, _, err := b.make(t.Context(), b.request()); err != nil {
		t.Fatal(err)
	}
	_, err = b.start(t.Context(), nbdLease, 1)
	b.refused(err, ipc.CodeUnsupported, "/dev/nbd0", "container")
}

func TestNBDResize(t *testing.T) {
	b := newNBDBench(t)
	b.attach()
	b.busy = refuse(ipc.CodeBusy, "/dev/nbd0 is mounted at /mnt")
	b.refused(b.resize(t.Context(), nbdLease, 2*nbdSize), ipc.CodeUnsupported, "/mnt", "attach")
	b.busy = nil
	// The engine has ended its connections, and is not back yet.
	b.export.set(func(e *nbdExport) { e.size, e.mute = 2*nbdSize, true })
	b.kernel.cut(0)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := b.resize(ctx, nbdLease, 2*nbdSize); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a resize without an engine: %v", err)
	}
	b.export.set(func(e *nbdExport) { e.mute = false })
	b.export.hangUp()
	if err := b.resize(t.Context(), nbdLease, 2*nbdSize); err != nil || b.kernel.look(0).size != 2*nbdSize {
		t.Errorf("resized: %v, %+v", err, b.kernel.look(0))
	}
	if err := b.resize(t.Context(), nbdLease, 2*nbdSize); err != nil {
		t.Errorf("again: %v", err)
	}
	b.refused(b.resize(t.Context(), nbdLease, nbdSize), ipc.CodeInvalid, "less")
	if err := b.resize(t.Context(), "another234567234", nbdSize); !errors.Is(err, errNoDevice) {
		t.Errorf("of another lease: %v", err)
	}
}

// TestNBDGuard: a command that the kernel does not end ends the process.
func TestNBDGuard(t *testing.T) {
	said := make(chan string, 1)
	g := nbdGuarded{fatal: func(what string) { said <- what }, after: 10 * time.Millisecond}
	done := g.guard("ending an nbd device", 3)
	if what := <-said; !strings.Contains(what, "/dev/nbd3") {
		t.Errorf("%q does not name the device", what)
	}
	done()
	g.after = time.Hour
	g.guard("x", 1)()
	select {
	case what := <-said:
		t.Errorf("a command that ended ends the process: %s", what)
	default:
	}
}
