package slow

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A raw is a descriptor.
type raw int

func (fd raw) ReadAt(p []byte, off int64) (n int, err error) { return syscall.Pread(int(fd), p, off) }

func (fd raw) WriteAt(p []byte, off int64) (n int, err error) { return syscall.Pwrite(int(fd), p, off) }

// TestFile: what is written is read back, from the file and from what is below,
// once it has landed; and not before.
func TestFile(t *testing.T) {
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatalf("a slow file needs root and /dev/fuse: uid %d, %v", os.Geteuid(), err)
		}
		t.Skipf("a slow file needs root and /dev/fuse: uid %d, %v", os.Geteuid(), err)
	}
	dir := t.TempDir()
	path, back := filepath.Join(dir, "slow"), filepath.Join(dir, "back")
	old := bytes.Repeat([]byte("old."), 1<<18) // 1 MiB
	if err := os.WriteFile(back, old, 0o600); err != nil {
		t.Fatal(err)
	}
	const most = 200 * time.Millisecond
	s, err := Open(path, back, most, 1)
	if err != nil {
		t.Fatal(err)
	}
	// Not through package os: its poller asks the file whether it can be polled,
	// with all of this program held up until this program answers.
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := raw(fd)
	got := make([]byte, len(old))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, old) {
		t.Fatalf("the file does not show what is below: %v", err)
	}
	want := bytes.Repeat([]byte("new!"), 1<<17)
	wrote := make(chan error)
	go func() {
		_, err := f.WriteAt(want, 4096)
		wrote <- err
	}()
	for start := time.Now(); s.Pending() == 0; time.Sleep(time.Millisecond) {
		if time.Since(start) > 5*time.Second {
			t.Fatal("no write is ever on its way")
		}
	}
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, old) {
		t.Errorf("a write on its way has landed: %v", err)
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	copy(old[4096:], want)
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, old) {
		t.Errorf("a write that was answered has not landed: %v", err)
	}
	if err := syscall.Close(fd); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(path); err != nil || st.Size() != 0 {
		t.Errorf("the mount is still there: %v", err)
	}
}
