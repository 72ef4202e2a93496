package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"vacate/internal/nbdclient"
	"vacate/test/daemon"
)

// reopen starts a daemon again on the folder of one that has ended.
func reopen(t *testing.T, d *daemon.Daemon) *daemon.Daemon {
	t.Helper()
	<-d.Done()
	return startIn(t, d.Bin, d.Dir, daemon.Options{Args: d.Args})
}

// TestLosing: whichever process dies, what is lost is recorded as lost, and
// what need not be lost is not.
func TestLosing(t *testing.T) {
	t.Run("keeper", func(t *testing.T) {
		d := start(t, daemon.Options{})
		l := open(t, d, "--size", "16MiB")
		d.Kill()
		d = reopen(t, d)
		if s := show(t, d, l.ID); s.State != "lost" || s.Result != "lost_keeper" {
			t.Errorf("after the keeper's end: %s, %s", s.State, s.Result)
		}
		usable(t, d)
	})
	t.Run("control", func(t *testing.T) {
		d := start(t, daemon.Options{})
		l := open(t, d, "--size", "16MiB")
		c := dial(t, l)
		write(t, c, 0, []byte("before"))
		kill(t, d, "control")
		write(t, c, 4096, []byte("meanwhile")) // the guest does not notice
		eventually(t, "control to return", func() error {
			var s leaseInfo
			if err := d.JSON(&s, "lease", "show", l.ID); err != nil {
				return err
			}
			if s.State != "open" {
				return fmt.Errorf("state %s", s.State)
			}
			return nil
		})
		got := make([]byte, 6)
		if _, err := c.ReadAt(got, 0); err != nil || string(got) != "before" {
			t.Errorf("after control's restart: %q, %v", got, err)
		}
		c.Close() //nolint:errcheck // done
		if _, err := d.Run("lease", "close", l.ID); err != nil {
			t.Error(err)
		}
		if s := show(t, d, l.ID); s.State != "closed" || s.Result != "ok" {
			t.Errorf("closed after control's restart: %+v", s)
		}
	})
}

// TestL8EngineDies: a lease outlives its engine, with every byte, and its clients
// need no more than to connect again.
func TestL8EngineDies(t *testing.T) {
	d := start(t, daemon.Options{})
	l := open(t, d, "--size", "16MiB")
	for n := range 5 {
		c := dialAgain(t, l)
		got := make([]byte, 4096*n)
		if _, err := c.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		for i := range got {
			if got[i] != byte(1+i/4096) {
				t.Fatalf("after %d engines byte %d is %d", n, i, got[i])
			}
		}
		write(t, c, int64(n)*4096, bytes.Repeat([]byte{byte(1 + n)}, 4096))
		kill(t, d, "engine")
		if _, err := c.ReadAt(make([]byte, 4096), 0); err == nil {
			t.Error("a connection to a dead engine answers")
		}
	}
	if s := show(t, d, l.ID); s.State != "open" {
		t.Errorf("state %s", s.State)
	}
	if _, err := d.Run("lease", "close", l.ID); err != nil {
		t.Error(err)
	}
}

// dialAgain connects as soon as an engine serves the lease.
func dialAgain(t *testing.T, l daemon.Lease) (c *nbdclient.Client) {
	t.Helper()
	eventually(t, "an engine to serve the lease", func() (err error) {
		c, err = nbdclient.Dial(l.URI(), nbdclient.Options{NoBlockSize: true})
		return err
	})
	return c
}

func kill(t *testing.T, d *daemon.Daemon, child string) {
	t.Helper()
	pid, err := d.Child(child)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// usable checks that new leases work, and read zeros.
func usable(t *testing.T, d *daemon.Daemon) {
	t.Helper()
	l := open(t, d, "--size", "16MiB")
	c := dial(t, l)
	defer c.Close() //nolint:errcheck // done
	got := make([]byte, 1<<20)
	if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, make([]byte, 1<<20)) {
		t.Errorf("a new lease does not read zeros (%v)", err)
	}
	write(t, c, 0, []byte("works"))
	if _, err := d.Run("lease", "close", l.ID); err != nil {
		t.Error(err)
	}
}

func TestStopIsRefusedWithLeasesOpen(t *testing.T) {
	d := start(t, daemon.Options{})
	l := open(t, d, "--size", "16MiB")
	if err := d.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the refusal to be logged", func() error {
		if !strings.Contains(d.Log(), "--erase") {
			return fmt.Errorf("the log does not say how to stop")
		}
		return nil
	})
	if _, err := d.Run("stop"); exitCode(err) != 4 || !strings.Contains(fmt.Sprint(err), "--erase") {
		t.Errorf("stop with a lease open: %v, want exit code 4 and what to do", err)
	}
	if s := show(t, d, l.ID); s.State != "open" {
		t.Fatalf("the lease is %s after a refused stop", s.State)
	}
	if _, err := d.Run("lease", "close", l.ID); err != nil {
		t.Fatal(err)
	}
	if err := d.Signal(syscall.SIGTERM); err != nil { // nothing is open: granted
		t.Fatal(err)
	}
	<-d.Done()
}

func TestSecondDaemon(t *testing.T) {
	d, drive := fileDrive(t, bin)
	_, err := try(bin, "serve", "--dev", d.Dir)
	if exitCode(err) != 4 || !strings.Contains(err.Error(), d.Dir) {
		t.Errorf("a second daemon in one folder: %v, want exit code 4 and the folder named", err)
	}
	usable(t, d)

	other := start(t, daemon.Options{Args: driveDir(drive)})
	_, err = other.Run("drive", "enroll", drive)
	if exitCode(err) != 4 || !strings.Contains(fmt.Sprint(err), drive) {
		t.Errorf("a second daemon's claim to an enrolled drive: %v, want exit code 4 and the drive named", err)
	}
	_, err = other.Run("drive", "enroll", "--force", "--confirm", drive, drive)
	if exitCode(err) != 4 {
		t.Errorf("the same with force: %v, want exit code 4 while the first holds it", err)
	}
	usable(t, d)
}

// damage overwrites n bytes of a file at off.
func damage(t *testing.T, path string, off int64, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{0x5a}, n), off); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSuperblockDamage(t *testing.T) {
	for name, tt := range map[string]struct {
		offsets []int64
		state   string
	}{
		"first":  {[]int64{64}, "ready"},
		"second": {[]int64{driveSize - 4096 + 64}, "ready"},
		"both":   {[]int64{64, driveSize - 4096 + 64}, "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			d, drive := fileDrive(t, bin)
			if err := d.Stop(); err != nil {
				t.Fatal(err)
			}
			for _, off := range tt.offsets {
				damage(t, drive, off, 8)
			}
			d = reopen(t, d)
			info := showDrive(t, d, drive)
			if info.State != tt.state {
				t.Fatalf("the drive is %q, want %q", info.State, tt.state)
			}
			usable(t, d) // on the other drive, if need be
			if tt.state != "ready" {
				return
			}
			if err := d.Stop(); err != nil {
				t.Fatal(err)
			}
			for _, off := range tt.offsets { // the mended copy alone must do
				damage(t, drive, driveSize-4096-off+128, 8)
			}
			if again := showDrive(t, reopen(t, d), drive); again.State != "ready" {
				t.Errorf("with the other copy damaged next: %q, so nothing was mended", again.State)
			}
		})
	}
}

// A state folder that was put back from a backup does not know which space has
// been leased since: its drives are refused.
func TestEpochMismatch(t *testing.T) {
	d, drive := fileDrive(t, bin)
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	journal := filepath.Join(d.Dir, "state", "journal.db")
	old, err := os.ReadFile(journal)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		d = reopen(t, d)
		if err := d.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(journal, old, 0o600); err != nil {
		t.Fatal(err)
	}
	d = reopen(t, d)
	if info := showDrive(t, d, drive); info.State != "refused" {
		t.Errorf("the drive of a later epoch is %q, want refused", info.State)
	}
}

func TestTornJournal(t *testing.T) {
	for name, tear := range map[string]func(t *testing.T, path string){
		"cut":     func(t *testing.T, path string) { must(t, os.Truncate(path, 9000)) },
		"empty":   func(t *testing.T, path string) { must(t, os.Truncate(path, 10)) },
		"garbage": func(t *testing.T, path string) { damage(t, path, 0, 16384) },
	} {
		t.Run(name, func(t *testing.T) {
			d := start(t, daemon.Options{})
			must(t, d.Stop())
			journal := filepath.Join(d.Dir, "state", "journal.db")
			tear(t, journal)
			_, err := daemon.Start(bin, d.Dir, daemon.Options{})
			if err == nil || !strings.Contains(err.Error(), journal) || strings.Contains(err.Error(), "goroutine ") {
				t.Errorf("starting on a torn journal: %v, want it named, and no trace", err)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestDevPathTooLong(t *testing.T) {
	dir := filepath.Join(shortDir(t), strings.Repeat("long/", 20))
	_, err := daemon.Start(bin, dir, daemon.Options{})
	if err == nil || !strings.Contains(err.Error(), "107") {
		t.Errorf("a --dev path of %d bytes: %v, want the bound named", len(dir), err)
	}
}
