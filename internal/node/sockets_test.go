package node

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"vacate/internal/lease"
)

const (
	idA = "aaaaaaaaaaaaaaaa"
	idB = "bbbbbbbbbbbbbbbb"
)

func folders(t *testing.T) *Folders {
	t.Helper()
	f, err := NewFolders(filepath.Join(t.TempDir(), "leases"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// mode returns type, permissions and owner of what is at a path.
func mode(t *testing.T, path string) (os.FileMode, uint32) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode(), info.Sys().(*syscall.Stat_t).Uid
}

// connects checks that who connects to path reaches l, which it closes.
func connects(t *testing.T, l *os.File, path string) {
	t.Helper()
	listener, err := net.FileListener(l)
	if err := errors.Join(err, l.Close()); err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
}

func TestFolders(t *testing.T) {
	old := syscall.Umask(0o077) // must not matter
	defer syscall.Umask(old)
	f := folders(t)
	self := uint32(os.Geteuid())
	l, err := f.Make(idA, self, lease.NBD, lease.VhostUser)
	if err != nil {
		t.Fatal(err)
	}
	path, second := f.Path(idA, lease.NBD), f.Path(idA, lease.VhostUser)
	for p, want := range map[string]os.FileMode{path: os.ModeSocket | 0o600, second: os.ModeSocket | 0o600,
		filepath.Dir(path): os.ModeDir | 0o711, f.path: os.ModeDir | 0o711} {
		if m, uid := mode(t, p); m != want || uid != self {
			t.Errorf("%s is %v of uid %d, want %v of %d", p, m, uid, want, self)
		}
	}
	if len(l) != 2 || filepath.Base(path) != "nbd.sock" || filepath.Base(second) != "vhost-user.sock" {
		t.Fatalf("%d listeners, %s, %s", len(l), path, second)
	}
	for i, path := range []string{path, second} { // in the order that was asked for
		connects(t, l[i], path)
	}

	for range 2 { // what is not there is removed
		if err := f.Remove(idA); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(filepath.Dir(path)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after Remove: %v", err)
		}
	}
	for _, bad := range []string{"", ".", "..", "../leases/" + idA, strings.Repeat("a", 15), idA + "/"} {
		if _, err := f.Make(bad, self); err == nil {
			t.Errorf("made %q", bad)
		}
		if err := f.Remove(bad); err == nil {
			t.Errorf("removed %q", bad)
		}
	}
}

// TestSocketOwner: only root can give a socket away; who it is given to can
// connect, others cannot.
func TestSocketOwner(t *testing.T) {
	f := folders(t)
	other := uint32(os.Geteuid()) + 54321
	l, err := f.Make(idA, other, lease.VhostUser)
	if os.Geteuid() != 0 {
		if e := kind(t, err, Refused); !strings.Contains(e.Next, "run the daemon as root") {
			t.Error(e)
		}
		if _, err := os.Lstat(filepath.Join(f.path, idA)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("left behind: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(l)
	if m, uid := mode(t, f.Path(idA, lease.VhostUser)); m != os.ModeSocket|0o600 || uid != other {
		t.Errorf("the socket is %v of uid %d", m, uid)
	}
	// The folders that testing made are private: those two, and no other.
	for _, dir := range []string{filepath.Dir(f.path), filepath.Dir(filepath.Dir(f.path))} {
		if !strings.Contains(dir, t.Name()) {
			t.Fatalf("%s is not a folder of this test", dir)
		}
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	program := helper(t)
	for uid, want := range map[uint32]string{other: "connected", other + 1: "permission denied"} {
		cmd := exec.Command(program, "-test.run=^TestConnectHelper$", "-test.v")
		cmd.Env = append(os.Environ(), "NODE_TEST_CONNECT="+f.Path(idA, lease.VhostUser))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		if !strings.Contains(string(out), want) {
			t.Errorf("uid %d: %v\n%s", uid, err, out)
		}
	}
}

// helper is a copy of this test's program that any uid can run.
func helper(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vacate-node-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "helper")
	if err := errors.Join(os.WriteFile(path, data, 0o755), os.Chmod(path, 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestConnectHelper runs as another uid, for TestSocketOwner.
func TestConnectHelper(t *testing.T) {
	path := os.Getenv("NODE_TEST_CONNECT")
	if path == "" {
		return
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Log(err)
		return
	}
	c.Close()
	t.Log("connected")
}

// TestNothingElseIsRemoved: Remove and Clean take a lease's socket and folder,
// never what else is there, and follow no link.
func TestNothingElseIsRemoved(t *testing.T) {
	f := folders(t)
	outside := filepath.Join(t.TempDir(), "outside")
	keepsake := filepath.Join(outside, socketName(lease.NBD))
	write := func(path string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	write(keepsake)
	if err := os.Symlink(outside, filepath.Join(f.path, idA)); err != nil {
		t.Fatal(err)
	}
	if err := f.Remove(idA); err == nil {
		t.Error("a link that leads outside went unnoticed")
	}
	write(filepath.Join(f.path, idB, "precious"))
	write(filepath.Join(f.path, "README", "x"))
	write(filepath.Join(f.path, strings.Repeat("c", 16), socketName(lease.NBD)))
	write(filepath.Join(f.path, strings.Repeat("c", 16), socketName(lease.VhostUser)))
	write(filepath.Join(f.path, strings.Repeat("d", 16), socketName(lease.VhostUser)))
	err := f.Clean(func(id string) bool { return id[0] == 'd' })
	if err == nil {
		t.Error("a folder that is not empty went unnoticed")
	}
	for path, there := range map[string]bool{keepsake: true, filepath.Join(f.path, idB, "precious"): true, filepath.Join(f.path, "README", "x"): true,
		filepath.Join(f.path, strings.Repeat("c", 16)): false, filepath.Join(f.path, strings.Repeat("d", 16), socketName(lease.VhostUser)): true} {
		if _, err := os.Lstat(path); (err == nil) != there {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestFoldersRefuse(t *testing.T) {
	base := t.TempDir()
	pad := func(n int) string { // a path of n bytes
		p := base
		for len(p) < n {
			p += "/" + strings.Repeat("x", min(n-len(p)-1, 30))
		}
		return p
	}
	if len(base) < 75 {
		fits := pad(socketPathMax - len("/"+idA+"/"+socketName(lease.NBD)))
		if err := os.MkdirAll(filepath.Dir(fits), 0o700); err != nil {
			t.Fatal(err)
		}
		f, err := NewFolders(fits)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		l, err := f.Make(idA, uint32(os.Geteuid()), lease.NBD)
		if err != nil {
			t.Fatal(err)
		}
		connects(t, l[0], f.Path(idA, lease.NBD)) // the hint is right
		_, err = NewFolders(fits + "xyz")
		if e := kind(t, err, Invalid); !strings.Contains(e.Text, "110 bytes") || !strings.Contains(e.Next, "3 bytes shorter") {
			t.Error(e)
		}
	}
	open := filepath.Join(base, "open")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o777)); err != nil {
		t.Fatal(err)
	}
	_, err := NewFolders(open)
	kind(t, err, Refused)
	link := filepath.Join(base, "link")
	if err := os.Symlink(base, link); err != nil {
		t.Fatal(err)
	}
	_, err = NewFolders(link)
	kind(t, err, Refused)
	if _, err := NewFolders(filepath.Join(base, "no", "such")); err == nil {
		t.Error("the parents were made")
	}
}

// TestStaleSocket: what a start that was cut off left behind is replaced.
func TestStaleSocket(t *testing.T) {
	f := folders(t)
	for range 2 {
		l, err := f.Make(idA, uint32(os.Geteuid()), lease.NBD, lease.VhostUser)
		if err != nil {
			t.Fatal(err)
		}
		closeAll(l)
	}
}
