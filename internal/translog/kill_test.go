package translog

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/transparency-dev/tessera"
)

// childEnv makes the test binary add records to the log in this folder until it
// is killed; panicEnv so many while the folder turns bad beneath them.
const (
	childEnv = "VACATE_TEST_LOG"
	panicEnv = "VACATE_TEST_LOG_PANIC"
)

func TestMain(m *testing.M) {
	dir := os.Getenv(childEnv)
	if n, err := strconv.ParseUint(os.Getenv(panicEnv), 10, 64); dir != "" && err == nil {
		addAndPanic(dir, n)
	} else if dir != "" {
		addForEver(dir)
	} else {
		os.Exit(m.Run())
	}
	os.Exit(1)
}

const killNodes = 4

// addForEver sends the records of some nodes, each from some before the one that
// the log wants next, and says of each where it is.
func addForEver(dir string) {
	t := &testing.T{}
	cfg := testConfig(t, dir)
	cfg.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	l, err := Open(context.Background(), cfg)
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	for n := range byte(killNodes) {
		all.Go(func() {
			next, ok := l.Next(nodeID(n + 1))
			next = max(next, 4) - 3
			if !ok {
				next = 1
			}
			for seq := next; ; {
				leaves := run(t, n+1, seq, seq+1+uint64(rand.IntN(12)))
				at, err := l.Add(context.Background(), leaves)
				mu.Lock()
				if err != nil {
					fmt.Println("error:", err)
					mu.Unlock()
					return
				}
				for i, leaf := range leaves {
					fmt.Println("at", n+1, leaf.NodeSeq, at[i], ".")
				}
				mu.Unlock()
				seq += uint64(len(leaves))
			}
		})
	}
	all.Wait()
}

// TestKill: a process that adds is killed again and again, and its index is
// lost or set back in between. No record that was said to be in the log is lost,
// none is there twice, each node's are in order, and no index ever changes.
func TestKill(t *testing.T) {
	const kills = 15
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	index := filepath.Join(dir, indexFile)
	where := map[string]uint64{}
	var old []byte
	for kill := range kills {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var killed *time.Timer
		soon := func() {
			if killed == nil {
				killed = time.AfterFunc(time.Duration(20+r.IntN(500))*time.Millisecond, func() { cmd.Process.Kill() })
			}
		}
		if kill%3 > 0 { // else it is left until it has added something, however slow the machine is
			soon()
		}
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			soon()
			var n byte
			var seq, at uint64
			if _, err := fmt.Sscanf(lines.Text(), "at %d %d %d .", &n, &seq, &at); err != nil {
				if strings.HasPrefix(lines.Text(), "error:") {
					t.Errorf("the child says: %s", lines.Text())
				}
				continue // the line that it was killed in
			}
			key := place(nodeID(n), seq)
			if was, ok := where[key]; ok && was != at {
				t.Fatalf("record %d of node %d was at %d and is at %d", seq, n, was, at)
			}
			where[key] = at
		}
		if killed == nil {
			t.Fatal("the child ended by itself")
		}
		killed.Stop()
		cmd.Wait() //nolint:errcheck // it was killed
		switch r.IntN(5) {
		case 0:
			if err := removeIndex(index); err != nil {
				t.Fatal(err)
			}
		case 1:
			if old != nil {
				if err := os.WriteFile(index, old, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		case 2:
			if old, err = os.ReadFile(index); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
		}
	}
	if len(where) == 0 {
		t.Fatal("no record was ever added")
	}
	l := openLog(t, testConfig(t, dir))
	checkLog(t, l, where, 0)
	t.Logf("%d records were acknowledged, %d are in the log", len(where), l.Size())
}

// lockIn is what tessera opens before it writes to the log in a folder, or panics.
func lockIn(dir string) string { return filepath.Join(dir, treeDir, stateDir, "treeState.lock") }

// addAndPanic adds n records to a log that has three, after the folder was found to be
// writable and before tessera opens its lock there.
func addAndPanic(dir string, n uint64) {
	t := &testing.T{}
	l, err := Open(context.Background(), testConfig(t, dir))
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	turn := func(add tessera.AddFn) tessera.AddFn {
		return func(ctx context.Context, e *tessera.Entry) tessera.IndexFuture {
			if err := errors.Join(os.Remove(lockIn(dir)), os.Mkdir(lockIn(dir), 0o700)); err != nil && !errors.Is(err, fs.ErrExist) {
				fmt.Println("error:", err)
			}
			return add(ctx, e)
		}
	}
	l.driver, l.publisher = wrapped{l.driver, turn}, &tessera.Appender{Add: turn(l.publisher.Add)}
	at, err := l.Add(context.Background(), run(t, 1, 4, 4+n))
	fmt.Println("error: added to a folder that cannot be written:", at, err)
}

// TestPanic: the folder turns bad in the moment that writable cannot see, and tessera
// ends the process. Nothing that was in the log is lost, and what was on its way is
// there once after it was sent again.
func TestPanic(t *testing.T) {
	for _, n := range []uint64{1, 5} {
		dir := t.TempDir()
		l, err := Open(t.Context(), testConfig(t, dir))
		if err != nil {
			t.Fatal(err)
		}
		mustAdd(t, l, run(t, 1, 1, 4)...)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir, panicEnv+"="+strconv.FormatUint(n, 10))
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "panic: open ") || strings.Contains(string(out), "error:") {
			t.Fatalf("%v, want tessera's panic:\n%s", err, out)
		}
		if err := os.Remove(lockIn(dir)); err != nil {
			t.Fatal(err)
		}
		l = openLog(t, testConfig(t, dir))
		want := []uint64{0, 1, 2, 3, 4, 5, 6, 7}[:3+n]
		if got := mustAdd(t, l, run(t, 1, 1, 4+n)...); !slices.Equal(got, want) {
			t.Errorf("sent again: indices %v, want %v", got, want)
		}
		checkLog(t, l, nil, 3+n)
	}
}
