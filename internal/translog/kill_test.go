package translog

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// childEnv makes the test binary add records to the log in this folder until it
// is killed.
const childEnv = "VACATE_TEST_LOG"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		addForEver(dir)
		os.Exit(1)
	}
	os.Exit(m.Run())
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
	for range kills {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		killed := time.AfterFunc(time.Duration(20+r.IntN(500))*time.Millisecond, func() { cmd.Process.Kill() })
		lines := bufio.NewScanner(out)
		for lines.Scan() {
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
