package nbd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/nbdclient"
)

// tool runs a client and returns what it printed.
func tool(t *testing.T, pkg, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is not installed: make test installs it, or apt-get install %s", name, pkg)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = t.TempDir()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, &stdout, &stderr)
	}
	return stdout.String()
}

func uri(path string) string { return "nbd+unix:///?socket=" + path }

// pattern fills the volume at path with random data in some places and writes the same to a file.
func pattern(t *testing.T, path string) (file string) {
	t.Helper()
	c, err := nbdclient.Dial(path, nbdclient.Options{})
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	image := make([]byte, c.Size())
	for _, e := range [][2]int64{{0, 4096}, {64 << 10, 1 << 20}, {5<<20 + 4096, 3 << 20}, {c.Size() - 8192, 4096}} {
		for i := e[0]; i < e[0]+e[1]; i++ {
			image[i] = byte(rng.Uint32())
		}
		if _, err := c.WriteAt(image[e[0]:e[0]+e[1]], e[0]); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, image, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func sameAs(t *testing.T, m *memory, file string) {
	t.Helper()
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m.with(func() {
		if !bytes.Equal(m.data, want) {
			t.Errorf("the volume differs from %s", filepath.Base(file))
		}
	})
}

// writtenRanges is what clients must see as data: [offset, length] pairs.
func (m *memory) writtenRanges() (all [][2]int64) {
	m.extents(0, int64(len(m.data)), func(off, n int64, written bool) bool {
		if last := len(all) - 1; written && last >= 0 && all[last][0]+all[last][1] == off {
			all[last][1] += n
		} else if written {
			all = append(all, [2]int64{off, n})
		}
		return true
	})
	return all
}

func TestNbdinfo(t *testing.T) {
	m := newMemory(16 << 20)
	_, path := serve(t, m.config())
	pattern(t, path)
	var info struct {
		Protocol string `json:"protocol"`
		Exports  []struct {
			Name       string   `json:"export-name"`
			Size       int64    `json:"export-size"`
			ReadOnly   bool     `json:"is_read_only"`
			CanTrim    bool     `json:"can_trim"`
			CanZero    bool     `json:"can_zero"`
			CanFast    bool     `json:"can_fast_zero"`
			CanFlush   bool     `json:"can_flush"`
			CanFUA     bool     `json:"can_fua"`
			CanDF      bool     `json:"can_df"`
			CanCache   bool     `json:"can_cache"`
			MultiConn  bool     `json:"can_multi_conn"`
			Contexts   []string `json:"contexts"`
			Minimum    int      `json:"block_size_minimum"`
			Preferred  int      `json:"block_size_preferred"`
			Maximum    int      `json:"block_size_maximum"`
			Rotational bool     `json:"is_rotational"`
		} `json:"exports"`
	}
	for _, args := range [][]string{{"--json", uri(path)}, {"--list", "--json", uri(path)}} {
		out := tool(t, "libnbd-bin", "nbdinfo", args...)
		if err := json.Unmarshal([]byte(out), &info); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		if info.Protocol != "newstyle-fixed" || len(info.Exports) != 1 {
			t.Fatalf("nbdinfo %v = %s", args, out)
		}
		e := info.Exports[0]
		if e.Name != "" || e.Size != 16<<20 || e.ReadOnly || e.Rotational ||
			!e.CanTrim || !e.CanZero || !e.CanFast || !e.CanFlush || !e.CanFUA || !e.CanDF || !e.CanCache || !e.MultiConn ||
			fmt.Sprint(e.Contexts) != "[base:allocation]" || e.Minimum != 512 || e.Preferred != 4096 || e.Maximum != 32<<20 {
			t.Errorf("nbdinfo %v = %s", args, out)
		}
	}

	var ranges []struct {
		Offset, Length int64
		Type           int
		Description    string
	}
	out := tool(t, "libnbd-bin", "nbdinfo", "--map", "--json", uri(path))
	if err := json.Unmarshal([]byte(out), &ranges); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	var data [][2]int64
	for _, r := range ranges {
		switch r.Type {
		case 0:
			data = append(data, [2]int64{r.Offset, r.Length})
		case 3:
		default:
			t.Errorf("range %+v, want data or a hole that reads as zeros", r)
		}
	}
	if want := m.writtenRanges(); fmt.Sprint(data) != fmt.Sprint(want) {
		t.Errorf("nbdinfo --map tells data at %v, want %v", data, want)
	}
}

func TestNbdcopy(t *testing.T) {
	for _, async := range []bool{false, true} {
		from, to := newMemory(16<<20), newMemory(16<<20)
		from.async, to.async = async, async
		_, fromPath := serve(t, from.config())
		toServer, toPath := serve(t, to.config())
		file := pattern(t, fromPath)
		out := filepath.Join(t.TempDir(), "out")
		tool(t, "libnbd-bin", "nbdcopy", uri(fromPath), out)
		sameAs(t, from, out)
		tool(t, "libnbd-bin", "nbdcopy", "--flush", file, uri(toPath))
		sameAs(t, to, file)
		tool(t, "libnbd-bin", "nbdcopy", "--request-size=33554432", uri(toPath), out)
		sameAs(t, to, out)
		tool(t, "libnbd-bin", "nbdcopy", "--destination-is-zero", "--request-size=4194304", uri(fromPath), uri(toPath))
		sameAs(t, to, file)
		if n := toServer.Stats().Accepted; n < 2 {
			t.Errorf("nbdcopy opened %d connections, want several (multi-conn)", n)
		}
	}
}

func TestQemuImg(t *testing.T) {
	m := newMemory(16 << 20)
	_, path := serve(t, m.config())
	file := pattern(t, path)
	if out := tool(t, "qemu-utils", "qemu-img", "info", "--output=json", uri(path)); !strings.Contains(out, `"virtual-size": 16777216`) {
		t.Errorf("qemu-img info = %s", out)
	}
	var ranges []struct {
		Start, Length int64
		Zero, Data    bool
	}
	out := tool(t, "qemu-utils", "qemu-img", "map", "--output=json", uri(path))
	if err := json.Unmarshal([]byte(out), &ranges); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	var data [][2]int64
	for _, r := range ranges {
		if r.Data == r.Zero {
			t.Errorf("qemu-img map tells %+v", r)
		}
		if r.Data {
			data = append(data, [2]int64{r.Start, r.Length})
		}
	}
	if want := m.writtenRanges(); fmt.Sprint(data) != fmt.Sprint(want) {
		t.Errorf("qemu-img map tells data at %v, want %v", data, want)
	}

	qcow := filepath.Join(t.TempDir(), "image.qcow2")
	tool(t, "qemu-utils", "qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri(path), qcow)
	other := newMemory(16 << 20)
	_, otherPath := serve(t, other.config())
	tool(t, "qemu-utils", "qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", qcow, uri(otherPath))
	sameAs(t, other, file)
	tool(t, "qemu-utils", "qemu-img", "compare", "-f", "raw", "-F", "raw", uri(path), uri(otherPath))
}

func TestQemuIO(t *testing.T) {
	for _, logical := range []int{512, 4096} {
		m := newMemory(16 << 20)
		m.logical = logical
		_, path := serve(t, m.config())
		var args []string
		for _, c := range []string{
			"write -P 0xab 0 1M",
			"write -P 0xcd 4096 4096",
			"write -P 0xef 1234567 89",
			"read -P 0xab 0 4096", "read -P 0xcd 4096 4096", "read -P 0xab 8192 1040384",
			"read -P 0xef 1234567 89", "read -P 0 1234656 100000", "read -P 0 1048576 185991",
			"write -z 8192 64k", "read -P 0 8192 64k", "read -P 0xab 73728 4096",
			"write -P 0x11 8M 8M", "read -P 0x11 8M 8M",
			"write -z -u 9M 1M", "read -P 0 9M 1M",
			"discard 10M 1M", "read -P 0 10M 1M",
			"write -f -P 0x22 15M 1M", "read -P 0x22 15M 1M",
			"aio_write -P 0x33 2M 64k", "aio_write -P 0x44 3M 64k", "aio_flush",
			"read -P 0x33 2M 64k", "read -P 0x44 3M 64k",
			"flush",
		} {
			args = append(args, "-c", c)
		}
		out := tool(t, "qemu-utils", "qemu-io", append(args, "-f", "raw", uri(path))...)
		if strings.Contains(out, "verification failed") || strings.Contains(out, "failed:") {
			t.Errorf("qemu-io with logical blocks of %d:\n%s", logical, out)
		}
		m.with(func() {
			if m.flushes == 0 || m.fua == 0 {
				t.Errorf("%d flushes and %d writes with FUA reached the volume, want some of each", m.flushes, m.fua)
			}
			if m.written[9<<20/blk.BlockSize] || m.written[10<<20/blk.BlockSize] || !m.written[8<<20/blk.BlockSize] {
				t.Error("write zeroes or discard did not reach the volume as what they are")
			}
		})
	}
}

func TestFio(t *testing.T) {
	m := newMemory(64 << 20)
	s, path := serve(t, m.config())
	tool(t, "fio", "fio", "--name=verify", "--ioengine=nbd", "--uri="+uri(path), "--rw=randwrite", "--verify=crc32c",
		"--verify_fatal=1", "--bsrange=512-300k", "--bs_unaligned=0", "--blockalign=512", "--iodepth=32", "--size=32M",
		"--numjobs=2", "--offset_increment=32M", "--randseed=7", "--fsync=64")
	if st := s.Stats(); st.WriteBytes != 64<<20 || st.ReadBytes < 64<<20 || st.Errors != 0 || st.Flushes == 0 {
		t.Errorf("stats after fio: %+v", st)
	}
}

// TestRefusalText: a person who runs a client over the budget reads why.
func TestRefusalText(t *testing.T) {
	const text = "this host serves at most 0 connections: close one, or raise max_connections"
	cfg := newMemory(1 << 20).config()
	cfg.Admit = func() (func(), error) { return nil, errors.New(text) }
	_, path := serve(t, cfg)
	// libnbd prints its own words for the refusal, and the server's when debugging.
	t.Setenv("LIBNBD_DEBUG", "1")
	for _, args := range [][]string{{"nbdinfo", uri(path)}, {"qemu-img", "info", uri(path)}} {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), text) {
			t.Errorf("%v prints %q, %v; want %q in it", args, out, err, text)
		}
	}
}
