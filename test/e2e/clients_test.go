package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"vacate/test/daemon"
)

// sourceImage makes an ext4 image of size bytes from a few thousand files of
// the Go toolchain's sources, and returns its path and the number of files.
func sourceImage(t testing.TB, size int64) (image string, files int) {
	t.Helper()
	root := filepath.Join(strings.TrimSpace(command(t, "go", "env", "GOROOT")), "src", "cmd")
	err := filepath.WalkDir(root, func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 2000 {
		t.Fatalf("%s has %d files, a few thousand are wanted", root, files)
	}
	image = filepath.Join(t.TempDir(), "source.img")
	command(t, "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", root, image, strconv.FormatInt(size>>10, 10)+"k")
	return image, files
}

func TestFileSystemThroughNBDCopy(t *testing.T) {
	const size = 384 << 20
	d := start(t, daemon.Options{})
	image, files := sourceImage(t, size)
	l := open(t, d, "--size", "384MiB", "--tenant", "acme")
	back := filepath.Join(t.TempDir(), "back.img")
	command(t, "nbdcopy", image, l.URI())
	command(t, "nbdcopy", l.URI(), back)
	sameFile(t, image, back)
	command(t, "e2fsck", "-f", "-n", back)
	t.Logf("%d files went in and came back", files)
}

func sameFile(t testing.TB, a, b string) {
	t.Helper()
	fa, err := os.Open(a)
	if err != nil {
		t.Fatal(err)
	}
	defer fa.Close() //nolint:errcheck // read only
	fb, err := os.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	defer fb.Close() //nolint:errcheck // read only
	ba, bb := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; off += int64(len(ba)) {
		na, erra := io.ReadFull(fa, ba)
		nb, errb := io.ReadFull(fb, bb)
		if na != nb || !bytes.Equal(ba[:na], bb[:nb]) {
			t.Fatalf("%s and %s differ in the MiB at %d", a, b, off)
		}
		if erra != nil || errb != nil {
			if !errors.Is(erra, io.EOF) && !errors.Is(erra, io.ErrUnexpectedEOF) {
				t.Fatal(erra)
			}
			return
		}
	}
}

// What was written, what was discarded and what never was must be told alike by
// two independent clients.
func TestMapAgrees(t *testing.T) {
	d := start(t, daemon.Options{})
	l := open(t, d, "--size", "64MiB")
	command(t, "qemu-io", "-f", "raw", l.URI(),
		"-c", "write -P 1 0 4k", "-c", "write -P 2 1M 1M", "-c", "write -P 3 40M 4k",
		"-c", "discard 1536k 64k", "-c", "write -z 40M 4k", "-c", "write -P 4 67104768 4096",
		"-c", "write -P 5 8389632 512") // sub-block: its whole block counts as written
	want := []run{
		{0, 4096, true}, {4096, 1<<20 - 4096, false}, {1 << 20, 512 << 10, true}, {1536 << 10, 64 << 10, false},
		{1600 << 10, 448 << 10, true}, {2 << 20, 6 << 20, false}, {8 << 20, 4096, true},
		{8<<20 + 4096, 67104768 - 8<<20 - 4096, false}, {67104768, 4096, true},
	}

	var info []struct {
		Offset, Length int64
		Type           int
	}
	decode(t, command(t, "nbdinfo", "--map", "--json", l.URI()), &info)
	var got []run
	for _, e := range info {
		got = append(got, run{e.Offset, e.Length, e.Type == 0})
	}
	compareRuns(t, "nbdinfo --map", merge(got), want)

	var img []struct {
		Start, Length int64
		Data, Zero    bool
	}
	decode(t, command(t, "qemu-img", "map", "--output=json", "-f", "raw", l.URI()), &img)
	got = nil
	for _, e := range img {
		if e.Data == e.Zero {
			t.Errorf("qemu-img map: extent at %d has data=%v zero=%v", e.Start, e.Data, e.Zero)
		}
		got = append(got, run{e.Start, e.Length, e.Data})
	}
	compareRuns(t, "qemu-img map", merge(got), want)
}

type run struct {
	off, n  int64
	written bool
}

func merge(in []run) (out []run) {
	for _, r := range in {
		if n := len(out); n > 0 && out[n-1].written == r.written {
			out[n-1].n += r.n
			continue
		}
		out = append(out, r)
	}
	return out
}

func compareRuns(t *testing.T, who string, got, want []run) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s:\n got %v\nwant %v", who, got, want)
	}
}

func decode(t *testing.T, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
}

func TestQemuIOPatterns(t *testing.T) {
	for _, logical := range []string{"512", "4096"} {
		t.Run(logical, func(t *testing.T) {
			d := start(t, daemon.Options{})
			l := open(t, d, "--size", "32MiB", "--logical-block", logical)
			io := func(cmds ...string) {
				t.Helper()
				args := []string{"-f", "raw", l.URI()}
				for _, c := range cmds {
					args = append(args, "-c", c)
				}
				out := command(t, "qemu-io", args...)
				if strings.Contains(out, "verification failed") || strings.Contains(strings.ToLower(out), "error") {
					t.Fatal(out)
				}
			}
			io("read -P 0 0 32M")
			io("write -P 0xa1 0 1M", "write -P 0xb2 512k 1536", "write -P 0xc3 1M 3M")
			io("read -P 0xa1 0 512k", "read -P 0xb2 512k 1536", "read -P 0xa1 525824 100k", "read -P 0xc3 1M 3M")
			io("write -z 1M 64k", "discard 2M 64k", "write -z 3148288 512")
			io("read -P 0 1M 64k", "read -P 0 2M 64k", "read -P 0 3148288 512", "read -P 0xc3 3147776 512", "read -P 0xc3 3148800 512")
			io("flush", "writev -P 0xd4 8M 4k 8k 512 64k", "aio_write -P 0xe5 16M 1M", "aio_flush")
			io("read -P 0xd4 8M 78336", "read -P 0xe5 16M 1M", "read -P 0 31M 1M")
		})
	}
}

// fio writes random sizes through two connections and verifies every checksum.
func TestFioVerify(t *testing.T) {
	d := start(t, daemon.Options{})
	l := open(t, d, "--size", "128MiB")
	out := command(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+l.URI(), "--rw=randwrite",
		"--bsrange=512-64k", "--bs_unaligned=0", "--blockalign=512", "--iodepth=16", "--size=48M", "--numjobs=2", "--offset_increment=64M",
		"--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--randrepeat=1", "--group_reporting", "--aux-path="+t.TempDir())
	if !strings.Contains(out, "err= 0") {
		t.Fatal(out)
	}
	var st struct {
		Stats struct{ WriteBytes, ReadBytes int64 }
	}
	if err := d.JSON(&st, "lease", "show", l.ID); err != nil {
		t.Fatal(err)
	}
	if st.Stats.WriteBytes < 96<<20 || st.Stats.ReadBytes < 96<<20 {
		t.Errorf("the volume counted %d bytes written and %d read: fio did not use it", st.Stats.WriteBytes, st.Stats.ReadBytes)
	}
}
