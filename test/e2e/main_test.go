// Package e2e uses real daemons through real clients: what a user of the
// README would do, and what would go wrong for them.
package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vacate/test/daemon"
	"vacate/test/search"
)

var (
	bin     string // vacate as it is released
	planted string // vacate that can hold planted bugs
)

// tools are the clients that the tests use, and the Debian package of each.
var tools = map[string]string{
	"nbdcopy": "libnbd-bin", "nbdinfo": "libnbd-bin", "nbdfuse": "libnbd-bin", "nbdkit": "nbdkit",
	"qemu-img": "qemu-utils", "qemu-io": "qemu-utils", "fio": "fio", "mke2fs": "e2fsprogs", "e2fsck": "e2fsprogs",
}

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == search.RegistersCommand {
		if err := search.RegistersMain(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code, err := setUp(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func setUp(m *testing.M) (code int, err error) {
	// Debian keeps mke2fs and its like where only root's PATH looks.
	if err := os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin"); err != nil {
		return 1, err
	}
	for tool, pkg := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			return 1, fmt.Errorf("%w: install it with `apt-get install %s`, or run `make test`, which does", err, pkg)
		}
	}
	dir, err := os.MkdirTemp("", "vacate-e2e-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if bin, err = daemon.Build(dir); err != nil {
		return 1, err
	}
	if planted, err = daemon.Build(dir, "planted"); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// shortDir is a temporary folder whose path leaves room for sockets.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("cleaning up: %v", err)
		}
	})
	return dir
}

// start starts a daemon in a folder of its own, and ends it with the test.
func start(t testing.TB, o daemon.Options) *daemon.Daemon {
	t.Helper()
	return startIn(t, bin, filepath.Join(shortDir(t), "d"), o)
}

func startIn(t testing.TB, bin, dir string, o daemon.Options) *daemon.Daemon {
	t.Helper()
	d, err := daemon.Start(bin, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		select {
		case <-d.Done():
		default:
			if err := d.Stop(); err != nil && !t.Failed() {
				t.Errorf("stopping: %v", err)
			}
			d.Kill()
		}
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", d.Log())
		}
	})
	return d
}

func open(t testing.TB, d *daemon.Daemon, args ...string) daemon.Lease {
	t.Helper()
	l, err := d.Open(args...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// command runs a client and fails the test when it fails.
func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := try(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// try runs a client, at most three minutes long.
func try(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return "", err
	}
	timer := time.AfterFunc(3*time.Minute, func() { cmd.Process.Kill() }) //nolint:errcheck // it may have ended
	defer timer.Stop()
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out.String())
	}
	return out.String(), nil
}

// exitCode is the exit code of a command line that failed, or 0.
func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// eventually waits until check returns nil.
func eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
