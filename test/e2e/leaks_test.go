package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"vacate/internal/vhostclient"
	"vacate/test/daemon"
)

// A holding is what a process has of others.
type holding struct {
	fds  int
	maps []string // what its mappings of files are of
}

func holdingOf(t *testing.T, pid int) (h holding) {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	must(t, err)
	h.fds = len(fds)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	must(t, err)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 5 && !strings.HasPrefix(f[5], "[") {
			h.maps = append(h.maps, strings.Join(f[5:], " "))
		}
	}
	return h
}

// TestSessionsLeaveNothing: whatever frontends there were, and however they and the
// engines ended, keeper and engine have what they had before.
func TestSessionsLeaveNothing(t *testing.T) {
	d := start(t, daemon.Options{})
	target := openVhost(t, d, "--queues", "2")
	stays, err := vhostclient.Dial(openVhost(t, d, "--queues", "2"), vhostclient.Options{Queues: 2, Memory: 1 << 20})
	must(t, err)
	defer stays.Close() //nolint:errcheck // the daemon ends
	block := bytes.Repeat([]byte{0xa5}, 4096)
	alive := func() {
		t.Helper()
		_, err := stays.WriteAt(block, 0)
		must(t, err)
		got := make([]byte, len(block))
		_, err = stays.ReadAt(got, 0)
		must(t, err)
		if !bytes.Equal(got, block) {
			t.Fatal("wrong bytes")
		}
	}
	round := func(kill bool) {
		t.Helper()
		for i, s := range vhostclient.Sequences {
			c, err := vhostclient.Dial(target, vhostclient.Options{Sequence: s, Memory: 1 << 20, Regions: 1 + i, Inflight: s.Protocol>>vhostclient.ProtocolInflightShmFD&1 == 1})
			must(t, err)
			_, err = c.WriteAt(block, 4096)
			must(t, err)
			if kill && i%2 == 0 {
				killEngine(t, d)
				alive()
				_, err := c.WriteAt(block, 8192)
				must(t, err)
			}
			if i == 1 {
				must(t, c.Restart())
			}
			must(t, c.Close())
		}
		for i := range 20 {
			rude(t, target, i)
		}
	}
	now := func() (h [2]holding) {
		engine, err := d.Child("engine")
		must(t, err)
		return [2]holding{holdingOf(t, d.PID()), holdingOf(t, engine)}
	}
	round(true)
	alive()
	before := now()
	for same := 0; same < 50; same++ { // the last frontends may not be forgotten yet
		time.Sleep(20 * time.Millisecond)
		if h := now(); !reflect.DeepEqual(h, before) {
			before, same = h, 0
		}
	}
	for i := range 12 {
		round(i%4 == 3)
	}
	alive()
	eventually(t, "what there was before", func() error {
		for i, h := range now() {
			was := before[i]
			if h.fds > was.fds || len(h.maps) > len(was.maps) {
				return fmt.Errorf("%s: %d descriptors, were %d; mapped %q, was %q", [2]string{"keeper", "engine"}[i], h.fds, was.fds, h.maps, was.maps)
			}
		}
		return nil
	})
	// The control: what a session has is seen.
	c, err := vhostclient.Dial(target, vhostclient.Options{Memory: 1 << 20})
	must(t, err)
	defer c.Close() //nolint:errcheck // the daemon ends
	eventually(t, "a session more", func() error {
		for i, h := range now() {
			if h.fds <= before[i].fds || i == 1 && len(h.maps) <= len(before[i].maps) {
				return fmt.Errorf("%+v with a session more, %+v without", h, before[i])
			}
		}
		return nil
	})
}

func killEngine(t *testing.T, d *daemon.Daemon) {
	t.Helper()
	pid, err := d.Child("engine")
	must(t, err)
	must(t, syscall.Kill(pid, syscall.SIGKILL))
}

// rude is a frontend that ends in some way that no frontend should.
func rude(t *testing.T, target string, how int) {
	t.Helper()
	nc, err := net.Dial("unix", target)
	must(t, err)
	c := nc.(*net.UnixConn)
	defer c.Close() //nolint:errcheck // it is meant to end
	null, err := os.Open(os.DevNull)
	must(t, err)
	defer null.Close() //nolint:errcheck // only read
	files := make([]int, 1+how*12)
	for i := range files {
		files[i] = int(null.Fd())
	}
	memTable := []byte{5, 0, 0, 0, 1, 0, 0, 0, 40, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}
	part := memTable[:1+how%len(memTable)]
	_, _, err = c.WriteMsgUnix(part, syscall.UnixRights(files...), nil)
	if err != nil && !strings.Contains(err.Error(), "pipe") && !strings.Contains(err.Error(), "reset") { // refused: the last one is not forgotten yet
		t.Fatal(err)
	}
}
