package translog

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/mod/sumdb/note"
)

// A wrapped driver makes appenders whose Add is another.
type wrapped struct {
	driver
	add func(tessera.AddFn) tessera.AddFn
}

func (w wrapped) Appender(ctx context.Context, o *tessera.AppendOptions) (*tessera.Appender, tessera.LogReader, error) {
	a, r, err := w.driver.Appender(ctx, o)
	if err == nil {
		a.Add = w.add(a.Add)
	}
	return a, r, err
}

// failing makes the log's batches fail, with or without their effect ("done" and
// "lost").
func failing(l *Log, done bool) (restore func()) {
	broken := errors.New("the disk is broken")
	add := func(add tessera.AddFn) tessera.AddFn {
		return func(ctx context.Context, e *tessera.Entry) tessera.IndexFuture {
			if !done {
				return func() (tessera.Index, error) { return tessera.Index{}, broken }
			}
			f := add(ctx, e)
			return func() (tessera.Index, error) {
				_, err := f()
				return tessera.Index{}, errors.Join(err, broken)
			}
		}
	}
	driver, publisher := l.driver, l.publisher
	l.driver, l.publisher = wrapped{driver, add}, &tessera.Appender{Add: add(publisher.Add)}
	return func() { l.driver, l.publisher = driver, publisher }
}

// TestFaults: a batch of one record or of some fails, with and without its effect.
// The sender sends the same again, and more: all is there once, at the place that is
// said, in order.
func TestFaults(t *testing.T) {
	for _, done := range []bool{false, true} {
		l := openLog(t, testConfig(t, t.TempDir()))
		where := map[string]uint64{}
		next := uint64(1)
		for size := uint64(1); size <= 5; size++ {
			restore := failing(l, done)
			for range 2 { // a sender that does not know sends it again
				if _, err := l.Add(t.Context(), run(t, 1, next, next+size)); err == nil && !done {
					t.Fatalf("a batch of %d failed and Add did not", size)
				}
			}
			restore()
			if !done && next > 1 {
				if _, err := l.Add(t.Context(), run(t, 1, next+size, next+size+1)); !errors.Is(err, ErrGap) {
					t.Errorf("what comes after a batch that failed: %v, want a gap", err)
				}
			}
			leaves := run(t, 1, 1, next+size+2)
			for i, at := range mustAdd(t, l, leaves...) {
				where[place(leaves[i].NodeID, leaves[i].NodeSeq)] = at
			}
			next += size + 2
		}
		checkLog(t, l, where, next-1)
	}
}

// TestWholeBatch: nothing of a batch is in the tree before its last record was given
// to tessera, however long that takes.
func TestWholeBatch(t *testing.T) {
	const records = 5
	l := openLog(t, testConfig(t, t.TempDir()))
	mustAdd(t, l, leaf(t, 1, 1, 0))
	given := uint64(0)
	driver := l.driver
	l.driver = wrapped{driver, func(add tessera.AddFn) tessera.AddFn {
		return func(ctx context.Context, e *tessera.Entry) tessera.IndexFuture {
			if n, err := l.reader.IntegratedSize(t.Context()); err != nil || n != 1 {
				t.Errorf("after %d records of %d were given the tree has %d (%v), want 1", given, records, n, err)
			}
			given++
			time.Sleep(60 * time.Millisecond)
			return add(ctx, e)
		}
	}}
	if got := mustAdd(t, l, run(t, 1, 2, 2+records)...); !slices.Equal(got, []uint64{1, 2, 3, 4, 5}) || given != records {
		t.Errorf("indices %v, %d records given", got, given)
	}
}

// TestBatchesEnd: nothing of a batch's appender is left when the batch is in the log.
func TestBatchesEnd(t *testing.T) {
	l := openLog(t, testConfig(t, t.TempDir()))
	before := runtime.NumGoroutine()
	for n := range uint64(40) {
		mustAdd(t, l, run(t, 1, 1+2*n, 3+2*n)...)
	}
	end := time.Now().Add(time.Minute)
	for runtime.NumGoroutine() >= before+40 {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, %d before 40 batches", runtime.NumGoroutine(), before)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestBrokenWrite: the disk fails at one of the files of a batch, the ones before it
// were written. None of the batch is in the log: no record stands there without those
// before it, and after the batch was sent again all are in order.
func TestBrokenWrite(t *testing.T) {
	var leaves []Leaf // of two nodes by turns: every part of the batch has records of both
	for seq := uint64(1); seq <= 300; seq++ {
		leaves = append(leaves, leaf(t, 1, seq, 0), leaf(t, 2, seq, 0))
	}
	for name, broken := range map[string]string{ // a file that stands where its folder is to be
		"entries":       filepath.Dir(layout.EntriesPath(0, 0)),
		"third entries": filepath.Dir(layout.EntriesPath(2, 88)),
		"hashes":        filepath.Dir(layout.TilePath(0, 2, 88)),
		"higher hashes": filepath.Dir(layout.TilePath(1, 0, 2)),
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t, t.TempDir())
			l := openLog(t, cfg)
			path := filepath.Join(cfg.Dir, treeDir, broken)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			if _, err := l.Add(t.Context(), leaves); err == nil {
				t.Fatal("a file could not be written, and Add did not fail")
			}
			if n, err := l.reader.IntegratedSize(t.Context()); err != nil || n != 0 {
				t.Fatalf("%d records of a batch that failed are in the log (%v)", n, err)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			where := map[string]uint64{}
			for i, at := range mustAdd(t, l, leaves...) {
				where[place(leaves[i].NodeID, leaves[i].NodeSeq)] = at
			}
			checkLog(t, l, where, uint64(len(leaves)))
		})
	}
}

// TestSetBack: a log whose folder was put together from copies is not opened: it would
// sign a second history.
func TestSetBack(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	tree := filepath.Join(cfg.Dir, treeDir)
	session := func(from, to uint64) (state []byte) {
		t.Helper()
		l, err := Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		mustAdd(t, l, run(t, 1, from, to)...)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		state, err = os.ReadFile(filepath.Join(tree, treeStateFile))
		if err != nil {
			t.Fatal(err)
		}
		return state
	}
	old := session(1, 3)
	now := session(3, 5)
	published, err := os.ReadFile(filepath.Join(tree, layout.CheckpointPath))
	if err != nil {
		t.Fatal(err)
	}
	for name, state := range map[string][]byte{"older": old, "gone": nil, "another root": bytes.Replace(now, []byte(`"root":"`), []byte(`"root":"AAAA`), 1), "damaged": now[1:]} {
		if err := os.Remove(filepath.Join(tree, treeStateFile)); err != nil {
			t.Fatal(err)
		}
		if state != nil {
			if err := os.WriteFile(filepath.Join(tree, treeStateFile), state, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if l, err := Open(t.Context(), cfg); err == nil {
			t.Errorf("%s: the log was opened with %d records", name, l.Size())
			l.Close() //nolint:errcheck // it should not be open
		}
		if cp, err := os.ReadFile(filepath.Join(tree, layout.CheckpointPath)); err != nil || !bytes.Equal(cp, published) {
			t.Errorf("%s: the checkpoint is now %q (%v)", name, cp, err)
		}
		if err := os.WriteFile(filepath.Join(tree, treeStateFile), now, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	other := cfg
	other.Signer = otherKey{cfg.Signer}
	if l, err := Open(t.Context(), other); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("with another key: %v", err)
		if err == nil {
			l.Close() //nolint:errcheck // it should not be open
		}
	}
	session(1, 6)
}

type otherKey struct{ note.Signer }

func (k otherKey) KeyHash() uint32 { return k.Signer.KeyHash() + 1 }
