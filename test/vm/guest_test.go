//go:build vm

package vm

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"vacate/test/vm/wire"
)

// tools are the programs of a guest that uses a disk.
var tools = []string{
	"usr/sbin/sfdisk", "usr/bin/partx", "usr/sbin/blkdiscard", "usr/sbin/fstrim",
	"usr/sbin/mkfs.ext4", "usr/sbin/e2fsck", "usr/sbin/resize2fs",
	"usr/sbin/mkfs.xfs", "usr/sbin/xfs_repair",
}

// A guest is a machine that uses volumes over vhost-user.
type guest struct {
	t   *testing.T
	ctx context.Context
	*VM

	mu     sync.Mutex
	rounds map[int]uint32 // of the stress: the last that each worker has begun
	wrong  []string
}

// startGuest starts a machine with a configuration that names its drives.
func startGuest(ctx context.Context, t *testing.T, cfg Config) *guest {
	t.Helper()
	g := &guest{t: t, ctx: ctx, rounds: map[int]uint32{}}
	g.boot(cfg)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the machine's console:\n%s", g.Console(40))
		}
		g.Kill()
	})
	return g
}

// boot starts the machine, up to three times.
func (g *guest) boot(cfg Config) {
	g.t.Helper()
	cfg.Event = g.event
	for try := 0; ; try++ {
		v, up, err := Boot(g.ctx, cfg)
		if err != nil && try < 2 && strings.Contains(err.Error(), "Kernel panic") {
			g.t.Logf("the emulated kernel failed, once more: %v", err)
			continue
		}
		must(g.t, err)
		g.VM = v
		g.t.Logf("linux %s is up after %v", up.Release, v.Age())
		return
	}
}

func (g *guest) event(m wire.Message) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var r wire.Round
	var e wire.LeaseEvent
	switch {
	case m.Kind == "round" && json.Unmarshal(m.Body, &r) == nil:
		g.rounds[r.Worker] = r.Round
	case m.Kind == "wrong" && json.Unmarshal(m.Body, &e) == nil:
		g.wrong = append(g.wrong, e.Text)
	default:
		g.wrong = append(g.wrong, "an unknown event: "+m.Kind)
	}
}

// begun returns the last round that each worker of a stress has begun, which are
// forgotten.
func (g *guest) begun(workers int) []uint32 {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := make([]uint32, workers)
	for n, r := range g.rounds {
		all[n] = r
	}
	clear(g.rounds)
	return all
}

// fine demands that no worker of a stress has found anything.
func (g *guest) fine() {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, w := range g.wrong {
		g.t.Error("the guest found:", w)
	}
	if len(g.wrong) > 0 {
		g.t.FailNow()
	}
}

// patience is how long a guest may take for anything: a request that is lost is
// waited for for ever.
const patience = time.Minute

// do asks the guest for something that must succeed.
func (g *guest) do(what string, body, reply any) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.ctx, patience)
	defer cancel()
	if err := g.Call(ctx, what, body, reply); err != nil {
		g.t.Fatal(err)
	}
}

// run runs a program in the guest that must succeed, and returns what it prints.
func (g *guest) run(args ...string) string {
	g.t.Helper()
	return g.feed("", args...)
}

// feed is run, with standard input.
func (g *guest) feed(stdin string, args ...string) string {
	g.t.Helper()
	var ran wire.Ran
	g.do("exec", wire.Exec{Args: args, Stdin: stdin}, &ran)
	if ran.Code != 0 {
		g.t.Fatalf("%s in the guest: exit code %d\n%s%s", strings.Join(args, " "), ran.Code, ran.Stdout, ran.Stderr)
	}
	return ran.Stdout
}

// disk waits for the volume's disk.
func (g *guest) disk(v *volume) (d wire.Disk) {
	g.t.Helper()
	g.do("disk", wire.Disk{Serial: v.serial}, &d)
	return d
}

// clean demands that the guest's kernel had nothing to complain of.
func (g *guest) clean() {
	g.t.Helper()
	var log string
	g.do("kernel-log", nil, &log)
	if !strings.Contains(log, "Linux version") {
		g.t.Errorf("the kernel's log lacks its beginning:\n%s", log)
	}
	for _, line := range complaints(log) {
		g.t.Errorf("the guest's kernel says: %s", line)
	}
}

// complaints are the lines of a kernel's log that report something bad.
func complaints(log string) (lines []string) {
	for line := range strings.Lines(log) {
		for _, bad := range []string{"I/O error", "critical ", "EXT4-fs error", "EXT4-fs warning", "XFS (", "blocked for more than", "Buffer I/O", "timeout"} {
			if strings.Contains(line, bad) && !harmless(line) {
				lines = append(lines, strings.TrimSpace(line))
				break
			}
		}
	}
	return lines
}

// harmless are lines of the kernel's log that report nothing.
func harmless(line string) bool {
	for _, known := range []string{"Mounting V5 Filesystem", "Ending clean mount", "Starting recovery", "Ending recovery", "Unmounting Filesystem", "clocksource"} {
		if strings.Contains(line, known) {
			return true
		}
	}
	return false
}

// off switches the machine off.
func (g *guest) off() {
	g.t.Helper()
	if err := g.Off(g.ctx); err != nil {
		g.t.Fatalf("switching off: %v", err)
	}
}

// shortDir is a temporary folder whose path leaves room for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// limit is the context of a test.
func limit(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
