package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vacate/test/daemon"
)

// stateOn makes a folder for --dev whose state folder is a file system of its
// own: mount is called with the folder's path, and returns the arguments of
// mount(8).
func stateOn(t *testing.T, mount func(state string) []string) (dir, state string) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("mounting needs root")
		}
		t.Skip("mounting needs root")
	}
	dir = filepath.Join(shortDir(t), "d")
	state = filepath.Join(dir, "state")
	must(t, os.MkdirAll(state, 0o700))
	command(t, "mount", mount(state)...)
	t.Cleanup(func() { // runs after the daemon, which is started later, has ended
		var out []byte
		var err error
		for range 1000 { // what was killed holds it until the kernel has taken all of it back
			if out, err = exec.Command("umount", state).CombinedOutput(); err == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Errorf("umount %s: %v: %s", state, err, out)
		exec.Command("umount", "-l", state).Run() //nolint:errcheck // the error above tells
	})
	return dir, state
}

func onTmpfs(options string) func(string) []string {
	return func(state string) []string {
		return []string{"-t", "tmpfs", "-o", "mode=0700," + options, "tmpfs", state}
	}
}

// A daemon is not started on a state folder that it could not write.
func TestStateFolderReadOnly(t *testing.T) {
	for name, used := range map[string]bool{"empty": false, "used": true} {
		t.Run(name, func(t *testing.T) {
			dir, state := stateOn(t, onTmpfs("size=4m"))
			if used {
				must(t, startIn(t, bin, dir, daemon.Options{}).Stop())
			}
			command(t, "mount", "-o", "remount,ro", state)
			out, err := try(bin, "serve", "--dev", dir)
			if exitCode(err) != 1 || !strings.Contains(out, "state folder cannot be written: "+state) || !strings.Contains(out, "mount it writable") {
				t.Errorf("started on a read-only state folder: exit code %d, want 1, the folder named, and what to do:\n%s", exitCode(err), out)
			}
			command(t, "mount", "-o", "remount,rw", state) // what it said
			usable(t, startIn(t, bin, dir, daemon.Options{}))
		})
	}
}

// With the state folder full no lease is opened, those that are open go on, and
// a key is destroyed when its tenant leaves, record or not (law L6): the record
// follows when there is room, and only then the space is free.
func TestStateFolderFull(t *testing.T) {
	dir, state := stateOn(t, onTmpfs("size=256k"))
	// A log that gets on would have the journal make room, and need it, by itself.
	_, full := stateOn(t, onTmpfs("size=64k"))
	must(t, os.Mkdir(filepath.Join(full, "log"), 0o700))
	fill(t, filepath.Join(full, "ballast"))
	d := startIn(t, bin, dir, daemon.Options{Env: []string{"VACATE_PROOF__LOG_DIR=" + filepath.Join(full, "log")}})
	drive := filepath.Join(dir, "drive.img")
	empty := showDrive(t, d, drive).FreeBytes
	leaver, stayer := open(t, d, "--size", "16MiB"), open(t, d, "--size", "16MiB")
	lc, sc := dial(t, leaver), dial(t, stayer)
	write(t, lc, 0, []byte("leaver"))
	write(t, sc, 0, []byte("stayer"))
	ballast := filepath.Join(state, "ballast")
	fill(t, ballast)
	var more []string // that the journal's file has room for
	for len(more) < 100 {
		l, err := d.Open("--size", "1MiB")
		if err != nil {
			break
		}
		more = append(more, l.ID)
	}
	before := showDrive(t, d, drive).FreeBytes
	refuseOpens(t, d, "no space left on device")
	if now := showDrive(t, d, drive).FreeBytes; now != before {
		t.Errorf("%d bytes are free, %d were before leases were refused", now, before)
	}
	goesOn(t, d, stayer, "stayer")
	erasedWithoutRecord(t, d, leaver)
	if now := showDrive(t, d, drive).FreeBytes; now != before {
		t.Errorf("%d bytes are free, %d were before the close that has no record", now, before)
	}

	must(t, os.Remove(ballast))
	eventually(t, "the CLOSE record", func() error {
		if s := show(t, d, leaver.ID); s.State != "closed" || s.Result != "ok" {
			return fmt.Errorf("state %s, result %s", s.State, s.Result)
		}
		return nil
	})
	goesOn(t, d, stayer, "stayer")
	if _, err := d.Run(append([]string{"lease", "close", stayer.ID}, more...)...); err != nil {
		t.Error(err)
	}
	if now := showDrive(t, d, drive).FreeBytes; now != empty {
		t.Errorf("%d bytes are free after all, want %d", now, empty)
	}
	usable(t, d)
}

// With the log's folder full leases are opened and closed, records wait in the
// spool, and the daemon ends when it is told to, soon.
func TestLogFolderFull(t *testing.T) {
	_, full := stateOn(t, onTmpfs("size=1m"))
	d := start(t, daemon.Options{Env: []string{"VACATE_PROOF__LOG_DIR=" + filepath.Join(full, "log")}})
	usable(t, d)
	ballast := filepath.Join(full, "ballast")
	fill(t, ballast)
	usable(t, d)
	spooled(t, d, true)
	must(t, d.Stop())
	must(t, os.Remove(ballast))
	d = startIn(t, d.Bin, d.Dir, daemon.Options{Env: []string{"VACATE_PROOF__LOG_DIR=" + filepath.Join(full, "log")}})
	spooled(t, d, false)
}

// fill takes all room of a file system: that too which others, whose files replace
// each other, give back for some time.
func fill(t *testing.T, ballast string) {
	t.Helper()
	f, err := os.Create(ballast)
	must(t, err)
	defer f.Close() //nolint:errcheck // it is full
	for quiet := 0; quiet < 25; quiet++ {
		for n := 1; n > 0; {
			if n, err = f.Write(make([]byte, 4096)); !errors.Is(err, syscall.ENOSPC) {
				must(t, err)
			}
			if n > 0 {
				quiet = 0
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// spooled waits until records wait for the log, or none.
func spooled(t *testing.T, d *daemon.Daemon, some bool) {
	t.Helper()
	eventually(t, "records on their way to the log", func() error {
		var s struct{ Spool int }
		err := d.JSON(&s, "log", "status")
		if err == nil && (s.Spool > 0) != some {
			err = fmt.Errorf("%d wait", s.Spool)
		}
		return err
	})
}

// A file system that turns read-only after an error, as ext4 does by default on
// Debian (errors=remount-ro), refuses writes to files that are open. Nothing
// mends that but mounting it again: until then tenants go on, and can leave.
func TestStateFolderTurnsReadOnly(t *testing.T) {
	image := filepath.Join(shortDir(t), "image")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 16<<20))
	command(t, "mke2fs", "-q", "-F", "-t", "ext4", image)
	dir, state := stateOn(t, func(state string) []string { return []string{"-o", "loop,errors=remount-ro", image, state} })
	must(t, os.Chmod(state, 0o700))
	d := startIn(t, bin, dir, daemon.Options{})
	t.Cleanup(d.Kill) // it cannot record its end
	leaver, stayer := open(t, d, "--size", "16MiB"), open(t, d, "--size", "16MiB")
	sc := dial(t, stayer)
	write(t, sc, 0, []byte("stayer"))

	logged(t, d) // a folder that turns within a write to the log may end control (translog/writable.go)
	command(t, "mount", "-o", "remount,abort", state)
	if err := os.WriteFile(filepath.Join(state, "x"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Fatalf("writing to an aborted file system: %v, want EROFS", err)
	}
	refuseOpens(t, d, "read-only file system")
	goesOn(t, d, stayer, "stayer")
	erasedWithoutRecord(t, d, leaver)
	goesOn(t, d, stayer, "stayer")
	if strings.Contains(d.Log(), "control ended") {
		t.Error("control did not outlive its state folder's turn")
	}
}

// A control that dies while its state folder cannot be written comes back all the
// same: leases go on, and tenants can leave. When the folder is mended it makes
// place for another, which writes what it could not and has the whole sandbox.
func TestControlDiesOnReadOnlyStateFolder(t *testing.T) {
	image := filepath.Join(shortDir(t), "image")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 16<<20))
	command(t, "mke2fs", "-q", "-F", "-t", "ext4", image)
	mount := func(state string) []string { return []string{"-o", "loop,errors=remount-ro", image, state} }
	dir, state := stateOn(t, mount)
	must(t, os.Chmod(state, 0o700))
	d := startIn(t, bin, dir, daemon.Options{})
	leaver, stayer := open(t, d, "--size", "16MiB", "--tenant", "acme"), open(t, d, "--size", "16MiB")
	sc := dial(t, stayer)
	write(t, sc, 0, []byte("stayer"))
	before := showDrive(t, d, filepath.Join(dir, "drive.img")).FreeBytes

	logged(t, d) // as above
	old, err := d.Child("control")
	must(t, err)
	command(t, "mount", "-o", "remount,abort", state)
	must(t, syscall.Kill(old, syscall.SIGKILL))
	var control int
	eventually(t, "another control", func() error {
		if control, err = d.Child("control"); err == nil && control == old {
			err = errors.New("it is the old one")
		}
		return err
	})
	var status struct {
		Ready    bool   `json:"ready"`
		ReadyWhy string `json:"readyWhy"`
	}
	eventually(t, "control to say what it cannot do", func() error {
		err := d.JSON(&status, "status")
		if err == nil && (status.Ready || !strings.Contains(status.ReadyWhy, "can only be closed") || !strings.Contains(status.ReadyWhy, "read-only file system")) {
			err = fmt.Errorf("status %+v", status)
		}
		return err
	})
	eventually(t, "what the journal has of a lease", func() error {
		var s leaseInfo
		err := d.JSON(&s, "lease", "show", leaver.ID)
		if err == nil && (s.State != "open" || s.Tenant != "acme") {
			err = fmt.Errorf("it is shown as %+v", s)
		}
		return err
	})
	refuseOpens(t, d, "read-only file system")
	goesOn(t, d, stayer, "stayer")
	erasedWithoutRecord(t, d, leaver)

	// Below the mount is another folder, which can be written: control is not to see it.
	eventually(t, "the folder, which nobody holds", func() error {
		must(t, syscall.Kill(control, syscall.SIGSTOP))
		out, err := exec.Command("umount", state).CombinedOutput()
		if err == nil {
			out, err = exec.Command("mount", mount(state)...).CombinedOutput()
		}
		must(t, syscall.Kill(control, syscall.SIGCONT))
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	eventually(t, "the CLOSE record", func() error {
		var s leaseInfo // the control that cannot write ends now, maybe within the call
		err := d.JSON(&s, "lease", "show", leaver.ID)
		if err == nil && (s.State != "closed" || s.Result != "ok") {
			err = fmt.Errorf("state %s, result %s", s.State, s.Result)
		}
		return err
	})
	goesOn(t, d, stayer, "stayer")
	if now := showDrive(t, d, filepath.Join(dir, "drive.img")).FreeBytes; now != before+16<<20 {
		t.Errorf("%d bytes are free, want %d", now, before+16<<20)
	}
	logged(t, d)
	if out, err := d.Run("log", "audit", "--policy", filepath.Join(dir, "policy")); err != nil {
		t.Errorf("the log, with each record once and in order: %v\n%s", err, out)
	}
	if now, err := d.Child("control"); err != nil || now == control {
		t.Errorf("control is %d (%v), was %d", now, err, control)
	}
	var mended struct {
		Warnings []string `json:"warnings"`
	}
	must(t, d.JSON(&mended, "status"))
	for _, w := range mended.Warnings {
		if strings.Contains(w, "sandbox") || strings.Contains(w, "state folder") {
			t.Errorf("it still warns: %s", w)
		}
	}
	usable(t, d)
}

// logged waits until no record waits for the log.
func logged(t *testing.T, d *daemon.Daemon) {
	t.Helper()
	eventually(t, "the records to be in the log", func() error {
		if n := metric(t, d, "vacate_spool_records"); n != 0 {
			return fmt.Errorf("%v records wait", n)
		}
		return nil
	})
}

// refuseOpens wants each of a few openings to fail, to say why and what to do,
// and to leave nothing behind.
func refuseOpens(t *testing.T, d *daemon.Daemon, why string) {
	t.Helper()
	var before, after []daemon.Lease
	must(t, d.JSON(&before, "lease", "list", "--all"))
	for range 5 {
		l, err := d.Open("--size", "1MiB")
		if exitCode(err) != 1 || !strings.Contains(fmt.Sprint(err), why) || !strings.Contains(fmt.Sprint(err), "state folder has room and is writable") {
			t.Fatalf("opened %s: %v, want exit code 1, %q and what to do", l.ID, err, why)
		}
	}
	must(t, d.JSON(&after, "lease", "list", "--all"))
	if len(after) != len(before) {
		t.Errorf("%d leases are listed, %d were before openings were refused", len(after), len(before))
	}
}

// goesOn wants a lease to read and write as if nothing were.
func goesOn(t *testing.T, d *daemon.Daemon, l daemon.Lease, holds string) {
	t.Helper()
	c := dial(t, l)
	defer c.Close() //nolint:errcheck // done
	got := make([]byte, len(holds))
	if _, err := c.ReadAt(got, 0); err != nil || string(got) != holds {
		t.Errorf("lease %s reads %q (%v), want %q", l.ID, got, err, holds)
	}
	write(t, c, 1<<20, bytes.Repeat([]byte("on"), 2048))
	if s := show(t, d, l.ID); s.State != "open" {
		t.Errorf("lease %s is %s", l.ID, s.State)
	}
}

// erasedWithoutRecord wants a close to end at once, with the key destroyed, and
// to say that the record is still to be written.
func erasedWithoutRecord(t *testing.T, d *daemon.Daemon, l daemon.Lease) {
	t.Helper()
	began := time.Now()
	out, err := d.Run("lease", "close", l.ID)
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("the close took %v", took)
	}
	for _, want := range []string{"erased", "key destroyed", "read back as zeros", "record could not be written yet"} {
		if !strings.Contains(out, want) {
			t.Errorf("closing prints %q, which lacks %q", out, want)
		}
	}
	s := show(t, d, l.ID)
	if s.State != "erased" || s.Erasure == nil || !s.Erasure.ReadBack {
		t.Errorf("closed without room for the record: %+v, %+v", s.Lease, s.Erasure)
	}
	if _, err := try("nbdinfo", l.URI()); err == nil {
		t.Error("its export still answers")
	}
}
