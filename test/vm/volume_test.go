//go:build vm

package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"vacate/test/daemon"
)

// A volume is a lease of a daemon on the host that is exported over NBD and over
// vhost-user.
type volume struct {
	d      *daemon.Daemon
	id     string
	serial string // as guests see it
	socket string // of vhost-user
	uri    string // of NBD,
	nbd    string // and its socket

	// They belong to whoever kills.
	kills   int           // of its engine
	longest time.Duration // until the next one served
}

// built is the folder of the binary that all tests use, once one has built it.
var built string

// program builds vacate once.
var program = sync.OnceValues(func() (bin string, err error) {
	if built, err = os.MkdirTemp("", "vm"); err != nil {
		return "", err
	}
	return daemon.Build(built)
})

// TestMain ends the host that tests share, and removes what program has built.
func TestMain(m *testing.M) {
	code := m.Run()
	if err := closeHost(); err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		code = 1
	}
	if err := os.RemoveAll(built); err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		code = 1
	}
	os.Exit(code)
}

// openVolume opens a lease of a daemon that ends with the test.
func openVolume(t *testing.T, size int64) *volume {
	t.Helper()
	bin, err := program()
	if err != nil {
		t.Fatal(err)
	}
	d, err := daemon.Start(bin, filepath.Join(shortDir(t), "d"), daemon.Options{Args: []string{"--log-level", "debug"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(); err != nil && !t.Failed() {
			t.Errorf("stopping: %v", err)
		}
		d.Kill()
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", d.Log())
		}
	})
	return openLease(t, d, size)
}

// openLease opens a lease of a daemon.
func openLease(t *testing.T, d *daemon.Daemon, size int64, args ...string) *volume {
	t.Helper()
	l, err := d.Open(append([]string{"--size", fmt.Sprint(size), "--export", "nbd,vhost-user", "--queues", "2"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	v := &volume{d: d, id: l.ID, serial: l.ID}
	for _, e := range l.Exports {
		switch e.Kind {
		case "nbd":
			v.uri, v.nbd = e.URI, e.Socket
		case "vhost-user":
			v.socket = e.Socket
		}
	}
	if v.uri == "" || v.socket == "" {
		t.Fatalf("the lease shows %+v", l.Exports)
	}
	return v
}

// drive is the volume as a machine's.
func (v *volume) drive(name string) Drive { return Drive{Name: name, Socket: v.socket, Bus: VhostUser} }

// kill is killed, which must succeed.
func (v *volume) kill(t *testing.T) {
	t.Helper()
	must(t, v.killed(t.Context()))
}

// killed ends the engine with SIGKILL, and waits until the next one serves. (Ten
// that did not get so far would end the lease.)
func (v *volume) killed(ctx context.Context) error {
	pid, err := v.d.Child("engine")
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	start := time.Now()
	for deadline := start.Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		next, err := v.d.Child("engine")
		if err == nil && next != pid && v.d.Ready() == nil {
			v.kills++
			v.longest = max(v.longest, time.Since(start))
			return nil
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return fmt.Errorf("no engine follows that of pid %d: %w", pid, errors.Join(err, v.d.Ready(), ctx.Err()))
		}
	}
}

// killOften kills the engine again and again, until stop is called, which returns
// what went wrong.
func (v *volume) killOften(ctx context.Context, pause time.Duration) (stop func() error) {
	ended, result := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			if err := v.killed(ctx); err != nil {
				result <- err
				return
			}
			select {
			case <-ended:
				result <- nil
				return
			case <-time.After(pause):
			}
		}
	}()
	return func() error {
		close(ended)
		return <-result
	}
}

// upgrade has the program on the disk take the place of the one that runs.
func (v *volume) upgrade(t *testing.T) {
	t.Helper()
	if _, err := v.d.Run("upgrade"); err != nil {
		t.Fatal(err)
	}
}

// resize makes the volume larger.
func (v *volume) resize(t *testing.T, size int64) {
	t.Helper()
	if _, err := v.d.Run("lease", "resize", v.id, "--size", fmt.Sprint(size)); err != nil {
		t.Fatal(err)
	}
}

// open demands that the lease is as it was.
func (v *volume) open(t *testing.T) {
	t.Helper()
	var l daemon.Lease
	if err := v.d.JSON(&l, "lease", "show", v.id); err != nil {
		t.Fatal(err)
	}
	if l.State != "open" {
		t.Errorf("the lease is %s", l.State)
	}
	if v.kills > 0 {
		t.Logf("%d engines were killed, and the next served after %v at most", v.kills, v.longest)
	}
}
