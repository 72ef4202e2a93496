package drive

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/blk/blktest"
)

// enrolled enrolls path for node A, as drive 1, with epoch 5.
func enrolled(t testing.TB, path string) string {
	t.Helper()
	if _, err := Enroll(path, EnrollOptions{Node: nodeA, UUID: uuid1, Epoch: 5}); err != nil {
		t.Fatal(err)
	}
	return path
}

var usual = OpenOptions{Node: nodeA, UUID: uuid1, Epoch: 5, NewEpoch: 5, FenceWait: time.Minute}

// open opens what enrolled made; it is closed with the test, after the queues
// that it makes.
func open(t testing.TB, path string) *Drive {
	t.Helper()
	d, err := Open(context.Background(), path, usual)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestOpen(t *testing.T) {
	path := enrolled(t, sparse(t, "drive.img", 32<<20))
	o := usual
	for i, want := range []uint64{5, 6, 7, 7} {
		o.Epoch = max(5, want-1)
		o.NewEpoch = want
		if i == 3 {
			o.Epoch = 8 // the state folder is one ahead
			o.NewEpoch = 8
			want = 8
		}
		d, err := Open(context.Background(), path, o)
		if err != nil {
			t.Fatal(err)
		}
		info := d.Info()
		if info.Epoch != want || info.UUID != uuid1 || len(info.Repaired) != 0 || d.Geometry().Size != 30<<20 || d.Geometry().Logical != blk.BlockSize {
			t.Errorf("Info = %+v, Geometry = %+v", info, d.Geometry())
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Errorf("closed twice: %v", err)
		}
		if _, err := d.NewQueue(1); !errors.Is(err, syscall.EBADF) {
			t.Errorf("a queue of a closed drive: %v", err)
		}
		ins, err := Inspect(path)
		if err != nil || ins.Info.Epoch != want {
			t.Errorf("the superblock has epoch %d, %v, want %d", ins.Info.Epoch, err, want)
		}
	}
}

// superblocks returns both copies.
func superblocks(t *testing.T, path string) (bs [2][]byte) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	for which := range bs {
		off := offsetOf(which, st.Size())
		bs[which] = patch(t, path, off, make([]byte, superblockSize))
		patch(t, path, off, bs[which])
	}
	return bs
}

func encoded(sb Superblock, which int) []byte {
	b := make([]byte, superblockSize)
	sb.encode(b, which)
	return b
}

// TestOpenDamage opens every mixture of copies that a crash, a fault or a person
// can leave, and sees that what was mended stays mended.
func TestOpenDamage(t *testing.T) {
	const size = 32 << 20
	base, _ := layout(size)
	base.Node, base.UUID, base.Epoch = nodeA, uuid1, 5
	with := func(change func(sb *Superblock)) Superblock { sb := base; change(&sb); return sb }
	newer := with(func(sb *Superblock) { sb.Epoch = 6 })
	other := with(func(sb *Superblock) { sb.UUID = uuid2 })
	foreign := with(func(sb *Superblock) { sb.Node = nodeB })
	old := with(func(sb *Superblock) { sb.Epoch = 4 })
	older := with(func(sb *Superblock) { sb.Epoch = 3 })
	zero := make([]byte, superblockSize)
	torn := func(sb Superblock, which int) []byte { // half new, half old
		b := encoded(base, which)
		copy(b, encoded(sb, which)[:512])
		return b
	}
	for _, tt := range []struct {
		name string
		a, b []byte
		want error
		mend string // what Repaired says, "" if nothing
	}{
		{"both", encoded(base, 0), encoded(base, 1), nil, ""},
		{"A gone", zero, encoded(base, 1), nil, "copy A"},
		{"B gone", encoded(base, 0), zero, nil, "copy B"},
		{"A torn", torn(newer, 0), encoded(newer, 1), nil, "copy A"},
		{"B torn", encoded(base, 0), torn(newer, 1), nil, "copy B"},
		{"B ahead", encoded(base, 0), encoded(newer, 1), nil, "copy A (at the drive's start): epoch 5, behind 6"},
		{"A ahead", encoded(newer, 0), encoded(base, 1), nil, "copy B"},
		{"A in B's place", encoded(base, 0), encoded(base, 0), nil, "copy B"},
		{"one behind the state folder", encoded(old, 0), encoded(old, 1), nil, ""},
		{"both gone", zero, zero, ErrNotEnrolled, ""},
		{"both torn", torn(newer, 0), torn(newer, 1), ErrDamaged, ""},
		{"one gone, one torn", zero, torn(newer, 1), ErrDamaged, ""},
		{"copies of two drives", encoded(base, 0), encoded(other, 1), ErrDamaged, ""},
		{"another drive", encoded(other, 0), encoded(other, 1), ErrForeign, ""},
		{"another node", encoded(foreign, 0), encoded(foreign, 1), ErrForeign, ""},
		{"two behind the state folder", encoded(older, 0), encoded(older, 1), ErrEpoch, ""},
		{"ahead of the state folder", encoded(with(func(sb *Superblock) { sb.Epoch = 7 }), 0), zero, ErrEpoch, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := sparse(t, "drive.img", size)
			patch(t, path, 0, tt.a)
			patch(t, path, offsetOf(copyB, size), tt.b)
			o := usual
			if strings.Contains(tt.mend, "6") || tt.name == "A torn" || tt.name == "A ahead" {
				o.Epoch, o.NewEpoch = 6, 6
			}
			d, err := Open(context.Background(), path, o)
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Fatalf("Open: %v, want %v", err, tt.want)
			}
			if err != nil {
				if bs := superblocks(t, path); string(bs[0]) != string(tt.a) || string(bs[1]) != string(tt.b) {
					t.Error("a drive that was refused was changed")
				}
				if !strings.Contains(err.Error(), path) {
					t.Errorf("%v does not name the drive", err)
				}
				return
			}
			if got := strings.Join(d.Info().Repaired, "; "); (got == "") != (tt.mend == "") || !strings.Contains(got, tt.mend) {
				t.Errorf("Repaired = %q, want %q", got, tt.mend)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			again, err := Open(context.Background(), path, o)
			if err != nil {
				t.Fatal(err)
			}
			if r := again.Info().Repaired; len(r) != 0 {
				t.Errorf("mended again: %q", r)
			}
			_ = again.Close()
		})
	}
}

// TestUpdateCrash stops an update of the epoch after each sector of each write:
// the drive always opens, with the old epoch or the new.
func TestUpdateCrash(t *testing.T) {
	const size = 16 << 20
	before, _ := layout(size)
	before.Node, before.UUID, before.Epoch = nodeA, uuid1, 5
	after := before
	after.Epoch = 6
	for damaged := -1; damaged < 2; damaged++ { // a copy that was damaged before
		order := []int{copyB, copyA}
		state := [2][]byte{encoded(before, 0), encoded(before, 1)}
		if damaged >= 0 {
			state[damaged] = make([]byte, superblockSize)
			order = []int{damaged, 1 - damaged}
		}
		for _, which := range order {
			for n := 0; n <= superblockSize; n += 512 {
				now := state
				now[which] = append(append([]byte{}, encoded(after, which)[:n]...), state[which][n:]...)
				p, err := readPair(func(off int64) ([]byte, error) {
					if off == 0 {
						return now[copyA], nil
					}
					return now[copyB], nil
				}, size)
				if err != nil {
					t.Fatal(err)
				}
				if i := p.newest(); i < 0 || p.sb[i] != before && p.sb[i] != after {
					t.Fatalf("damaged copy %d, %d bytes of copy %d written: %v, %v", damaged, n, which, p.err[0], p.err[1])
				}
			}
			state[which] = encoded(after, which)
		}
	}
}

func TestOpenSize(t *testing.T) {
	path := enrolled(t, sparse(t, "drive.img", 32<<20))
	if err := os.Truncate(path, 48<<20); err != nil { // grown: as it was
		t.Fatal(err)
	}
	d := open(t, path)
	if d.Geometry().Size != 30<<20 || len(d.Info().Repaired) != 0 {
		t.Errorf("a drive that grew: %+v, repaired %q", d.Geometry(), d.Info().Repaired)
	}
	_ = d.Close()
	for _, size := range []int64{31 << 20, 1 << 20, 0} {
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(context.Background(), path, usual); !errors.Is(err, ErrShrunk) {
			t.Errorf("a drive of %d bytes: %v, want ErrShrunk", size, err)
		}
	}
	if _, err := Open(context.Background(), path+"x", usual); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no drive: %v", err)
	}
	if _, err := Open(context.Background(), t.TempDir(), usual); !errors.Is(err, syscall.ENOTBLK) {
		t.Errorf("a folder: %v", err)
	}
	o := usual
	o.NewEpoch = 7
	if _, err := Open(context.Background(), path, o); err == nil {
		t.Error("an epoch that skips one was accepted")
	}
}

// TestFence: of two, one waits, and gets the drive when the other lets go.
func TestFence(t *testing.T) {
	path := enrolled(t, sparse(t, "drive.img", 32<<20))
	d := open(t, path)
	o := usual
	o.FenceWait = 30 * time.Millisecond
	_, err := Open(context.Background(), path, o)
	var fe *FenceError
	if !errors.As(err, &fe) || !errors.Is(err, ErrFenced) || fe.Waited < o.FenceWait {
		t.Fatalf("a second Open: %v", err)
	}
	if len(fe.Holders) != 1 || !strings.Contains(err.Error(), "process") || !strings.Contains(err.Error(), path) {
		t.Errorf("%v does not name the holder and the drive", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	o.FenceWait = time.Minute
	if _, err := Open(ctx, path, o); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Open with a context that ends: %v", err)
	}
	go func() {
		time.Sleep(20 * time.Millisecond)
		_ = d.Close()
	}()
	second, err := Open(context.Background(), path, usual)
	if err != nil {
		t.Fatal(err)
	}
	_ = second.Close()
}

// TestFenceDeath: a process that is killed gives up its fence.
func TestFenceDeath(t *testing.T) {
	const env = "DRIVE_TEST_HOLD"
	if path := os.Getenv(env); path != "" {
		if _, err := Open(context.Background(), path, usual); err != nil {
			os.Stdout.WriteString(err.Error())
			return
		}
		os.Stdout.WriteString("held\n")
		select {}
	}
	path := enrolled(t, sparse(t, "drive.img", 32<<20))
	cmd := exec.Command(os.Args[0], "-test.run=^TestFenceDeath$")
	cmd.Env = append(os.Environ(), env+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() })
	buf := make([]byte, 100)
	if n, _ := out.Read(buf); string(buf[:n]) != "held\n" {
		t.Fatalf("the other process said %q", buf[:n])
	}
	o := usual
	o.FenceWait = time.Millisecond
	if _, err := Open(context.Background(), path, o); !errors.Is(err, ErrFenced) {
		t.Errorf("while it lives: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	open(t, path)
}

// TestL1DriveFence: nothing is written, and no superblock believed, without the
// fence; and Close keeps it while a queue may have I/O in flight.
func TestL1DriveFence(t *testing.T) {
	path := enrolled(t, sparse(t, "drive.img", 32<<20))
	d := open(t, path)
	q, err := d.NewQueue(1)
	if err != nil {
		t.Fatal(err)
	}
	before := superblocks(t, path)
	o := usual
	o.NewEpoch, o.FenceWait = 6, time.Millisecond
	if _, err := Open(context.Background(), path, o); !errors.Is(err, ErrFenced) {
		t.Errorf("Open without the fence: %v", err)
	}
	if after := superblocks(t, path); string(after[0]) != string(before[0]) || string(after[1]) != string(before[1]) {
		t.Error("the superblocks were written without the fence")
	}
	if err := d.Close(); !errors.Is(err, ErrQueues) {
		t.Fatalf("Close with a queue open: %v, want ErrQueues: it gives up the fence", err)
	}
	buf := blktest.Buffer(blk.BlockSize)
	if err := blk.Do(q, &blk.Request{Op: blk.OpRead, Len: blk.BlockSize, Buf: buf}); err != nil {
		t.Errorf("after a Close that was refused: %v", err)
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if err := q.Close(); err == nil {
		t.Error("a queue was closed twice")
	}
}
