package drive

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"vacate/internal/blk"
	"vacate/internal/blk/blktest"
	"vacate/internal/sys"
	"vacate/test/slow"
)

// TestL1FenceOutlivesItsProcess: a process is killed with writes in flight, and
// is gone before they have landed. Whoever opens the drive next waits for them.
func TestL1FenceOutlivesItsProcess(t *testing.T) {
	const env, writes = "DRIVE_TEST_WRITE", 32
	if path := os.Getenv(env); path != "" {
		fmt.Println(writeLate(path, writes))
		select {} // until it is killed
	}
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatalf("a slow file needs root and /dev/fuse: uid %d, %v", os.Geteuid(), err)
		}
		t.Skipf("a slow file needs root and /dev/fuse: uid %d, %v", os.Geteuid(), err)
	}
	back := enrolled(t, sparse(t, "back.img", 32<<20))
	path := filepath.Join(t.TempDir(), "drive.img")
	s, err := slow.Open(path, back, 400*time.Millisecond, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	s.Hang()       // until the next process waits: a machine may be slower than any time
	defer s.GoOn() // before Close, which waits for what hangs
	cmd := exec.Command(os.Args[0], "-test.run=^TestL1FenceOutlivesItsProcess$")
	cmd.Env = append(os.Environ(), env+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 200)
	n, _ := out.Read(buf)
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	if string(buf[:n]) != "writing\n" {
		t.Fatalf("the other process said %q", buf[:n])
	}
	before := s.Pending()
	if before == 0 {
		t.Fatal("no write outlived its process: this test can find nothing")
	}
	time.AfterFunc(300*time.Millisecond, s.GoOn)
	d, err := Open(context.Background(), path, usual)
	if err != nil {
		t.Fatal(err)
	}
	after, info := s.Pending(), d.Info()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	t.Logf("%d writes were on their way; the fence was refused %d times, for %v", before, info.FenceRefused, info.FenceWaited)
	if after > 0 || info.FenceRefused == 0 {
		t.Errorf("the drive was opened, having been refused %d times, with %d of a dead process' writes on their way to it", info.FenceRefused, after)
	}
}

// writeLate puts as many writes in flight, and says so.
func writeLate(path string, writes int) string {
	runtime.LockOSThread()
	d, err := Open(context.Background(), path, usual)
	if err != nil {
		return err.Error()
	}
	if d.info.Engine != EngineRing {
		return d.info.EngineWhy
	}
	q, err := d.NewQueue(writes)
	if err != nil {
		return err.Error()
	}
	var done tally
	var batch []*blk.Request
	for i := range writes {
		batch = append(batch, &blk.Request{Op: blk.OpWrite, Off: int64(i) << 16, Len: 1 << 16, Buf: blktest.Buffer(1 << 16), Done: &done})
	}
	q.Submit(batch)
	q.Reap(false)
	return "writing"
}

// TestL1MappingHoldsFence: the mapping holds the fence by itself, and nothing is
// stored through it once another has the fence.
func TestL1MappingHoldsFence(t *testing.T) {
	const env, cells = "DRIVE_TEST_STORE", 4
	if path := os.Getenv(env); path != "" {
		fmt.Println(storeOn(path, cells))
		select {} // until it is killed
	}
	path := enrolled(t, onTmpfs(t, 32<<20))
	cmd := exec.Command(os.Args[0], "-test.run=^TestL1MappingHoldsFence$")
	cmd.Env = append(os.Environ(), env+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	}()
	buf := make([]byte, 200)
	if n, _ := out.Read(buf); string(buf[:n]) != "storing\n" {
		t.Fatalf("the other process said %q", buf[:n])
	}
	soon := usual
	soon.FenceWait = 20 * time.Millisecond
	if d, err := Open(t.Context(), path, soon); !errors.Is(err, ErrFenced) {
		if err == nil {
			_ = d.Close()
		}
		t.Fatalf("opened while another process has it mapped: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	d := open(t, path) // at once: it may not have ended
	var first [cells]uint64
	for i := range first {
		first[i] = cell(d, i).Load()
	}
	time.Sleep(20 * time.Millisecond)
	for i, was := range first {
		if now := cell(d, i).Load(); now != was || was == 0 {
			t.Errorf("cell %d was %d when the fence was had, and is %d", i, was, now)
		}
	}
}

func cell(d *Drive, i int) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&d.area[i*blk.BlockSize]))
}

// storeOn stores through a drive's mapping until the process ends. Nothing else
// holds the drive.
func storeOn(path string, cells int) string {
	d, err := Open(context.Background(), path, usual)
	if err != nil {
		return err.Error()
	}
	if d.area == nil {
		return d.info.EngineWhy
	}
	if err := sys.CloseFD(d.t.fd); err != nil {
		return err.Error()
	}
	for i := range cells {
		c := cell(d, i)
		c.Store(1)
		go func() {
			for {
				c.Add(1)
			}
		}()
	}
	return "storing"
}
