package translog

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"vacate/proof"
)

func TestAdd(t *testing.T) {
	l := openLog(t, testConfig(t, t.TempDir()))
	if got := mustAdd(t, l, run(t, 1, 7, 10)...); !slices.Equal(got, []uint64{0, 1, 2}) {
		t.Fatalf("indices %v", got)
	}
	if got := mustAdd(t, l, leaf(t, 2, 1, 0), leaf(t, 1, 10, 0), leaf(t, 2, 2, 0)); !slices.Equal(got, []uint64{3, 4, 5}) {
		t.Fatalf("indices %v", got)
	}
	a := leaf(t, 3, 1, 0)
	twisted := a
	twisted.Envelope = slices.Clone(a.Envelope)
	twisted.Envelope[len(a.Envelope)/2] ^= 1
	tests := []struct {
		name   string
		leaves []Leaf
		want   []uint64
		err    error
	}{
		{"again", run(t, 1, 7, 11), []uint64{0, 1, 2, 4}, nil},
		{"again, and more", []Leaf{leaf(t, 2, 2, 0), leaf(t, 2, 3, 0)}, []uint64{5, 6}, nil},
		{"twice in one call", []Leaf{leaf(t, 2, 4, 0), leaf(t, 2, 4, 0)}, []uint64{7, 7}, nil},
		{"another record of the number", []Leaf{leaf(t, 1, 8, 1)}, nil, ErrFork},
		{"two records of one number", []Leaf{leaf(t, 2, 5, 0), leaf(t, 2, 5, 1)}, nil, ErrFork},
		{"a number is missing", []Leaf{leaf(t, 1, 12, 0)}, nil, ErrGap},
		{"a number is missing within", []Leaf{leaf(t, 1, 11, 0), leaf(t, 1, 13, 0)}, nil, ErrGap},
		{"before the first", []Leaf{leaf(t, 1, 6, 0)}, nil, ErrGap},
		{"good, and then bad", []Leaf{leaf(t, 4, 1, 0), leaf(t, 1, 8, 1)}, nil, ErrFork},
		{"of another node than it says", []Leaf{{nodeID(5), 1, a.Envelope}}, nil, ErrRefused},
		{"of another number than it says", []Leaf{{nodeID(3), 2, a.Envelope}}, nil, ErrRefused},
		{"no record", []Leaf{{nodeID(3), 1, []byte("{}")}}, nil, ErrRefused},
		{"not to the byte", []Leaf{twisted}, nil, ErrRefused},
		{"a line's end more", []Leaf{{nodeID(3), 1, append(slices.Clone(a.Envelope), '\n')}}, nil, ErrRefused},
		{"nothing", nil, nil, nil},
	}
	size := uint64(6)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := l.Add(t.Context(), tt.leaves)
			if !errors.Is(err, tt.err) || !slices.Equal(got, tt.want) {
				t.Errorf("Add = %v, %v; want %v, %v", got, err, tt.want, tt.err)
			}
			for _, at := range got {
				size = max(size, at+1)
			}
			if l.Size() != size { // a call that is refused leaves no trace
				t.Errorf("the log has %d records, want %d", l.Size(), size)
			}
		})
	}
	var gap *GapError
	if _, err := l.Add(t.Context(), []Leaf{leaf(t, 1, 20, 0)}); !errors.As(err, &gap) || gap.Want != 11 {
		t.Errorf("%v, want record 11", err)
	}
	var fork *ForkError
	if _, err := l.Add(t.Context(), []Leaf{leaf(t, 1, 10, 1)}); !errors.As(err, &fork) || fork.Index != 4 {
		t.Errorf("%v, want index 4", err)
	}
	if next, ok := l.Next(nodeID(1)); next != 11 || !ok {
		t.Errorf("Next = %d, %v", next, ok)
	}
	if _, ok := l.Next(nodeID(9)); ok {
		t.Error("a node that sent nothing has a next record")
	}
	if _, err := l.Add(t.Context(), make([]Leaf, MaxAdd+1)); err == nil {
		t.Error("too many leaves were taken")
	}
}

// TestConcurrent: many nodes send at once, each some records twice, from two
// goroutines. Every record is there once, in order, and all answers agree.
func TestConcurrent(t *testing.T) {
	const nodes, records = 6, 120
	l := openLog(t, testConfig(t, t.TempDir()))
	var mu sync.Mutex
	where := map[string]uint64{}
	var all sync.WaitGroup
	for n := range byte(nodes) {
		leaves := run(t, n+1, 1, records+1)
		for g := range 2 {
			all.Go(func() {
				r := rand.New(rand.NewPCG(uint64(n), uint64(g)))
				for at := 0; at < records; {
					end := min(at+1+r.IntN(20), records)
					from := max(0, at-r.IntN(5))
					got, err := l.Add(t.Context(), leaves[from:end])
					if err != nil {
						t.Errorf("node %d, records %d to %d: %v", n, from, end, err)
						return
					}
					mu.Lock()
					for i, index := range got {
						key := place(leaves[from+i].NodeID, leaves[from+i].NodeSeq)
						if was, ok := where[key]; ok && was != index {
							t.Errorf("record %d of node %d is at %d and at %d", from+i+1, n, was, index)
						}
						where[key] = index
					}
					mu.Unlock()
					at = end
				}
			})
		}
	}
	all.Wait()
	checkLog(t, l, where, nodes*records)
}

// checkLog reads all of a log: it has size records, those of where at their
// places, each once, each node's in order without a gap, and each proven.
func checkLog(t testing.TB, l *Log, where map[string]uint64, size uint64) {
	t.Helper()
	if got := l.Size(); size != 0 && got != size {
		t.Fatalf("the log has %d records, want %d", got, size)
	}
	size = l.Size()
	cp := opened(t, l, size)
	seen, last := map[string]uint64{}, map[string]uint64{}
	err := l.Leaves(t.Context(), 0, size, func(i uint64, env []byte) error {
		node, seq, err := identity(env)
		if err != nil {
			return err
		}
		key := place(node, seq)
		if at, twice := seen[key]; twice {
			t.Errorf("record %d of node %s is at %d and at %d", seq, node, at, i)
		}
		if before, ok := last[node]; ok && before+1 != seq {
			t.Errorf("record %d of node %s follows record %d", seq, node, before)
		}
		seen[key], last[node] = i, seq
		if i%7 != 0 && i+20 < size {
			return nil
		}
		path, err := l.Proof(t.Context(), i, cp.Size)
		if err != nil {
			return err
		}
		return proof.VerifyInclusion(cp, i, proof.LeafHash(env), path)
	})
	if err != nil {
		t.Fatal(err)
	}
	for key, at := range where {
		if got, ok := seen[key]; !ok || got != at {
			t.Errorf("record %q was said to be at %d, and is at %d (%v)", key, at, got, ok)
		}
	}
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	where := map[string]uint64{}
	add := func(l *Log, leaves []Leaf) {
		t.Helper()
		for i, at := range mustAdd(t, l, leaves...) {
			where[place(leaves[i].NodeID, leaves[i].NodeSeq)] = at
		}
	}
	session := func(from, to uint64) {
		t.Helper()
		l, err := Open(t.Context(), testConfig(t, dir))
		if err != nil {
			t.Fatal(err)
		}
		add(l, run(t, 1, max(4, from)-3, to))
		if _, err := l.Add(t.Context(), []Leaf{leaf(t, 1, 2, 1)}); !errors.Is(err, ErrFork) {
			t.Errorf("a fork after a restart: %v", err)
		}
		if _, err := Open(t.Context(), testConfig(t, dir)); err == nil || !strings.Contains(err.Error(), "another process") {
			t.Errorf("the folder was opened twice: %v", err)
		}
		checkLog(t, l, where, to-1)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Add(t.Context(), run(t, 1, to, to+1)); !errors.Is(err, ErrClosed) {
			t.Errorf("Add after Close: %v", err)
		}
	}
	path := filepath.Join(dir, indexFile)
	session(1, 300)
	session(300, 310)
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	session(310, 700)
	newer, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(old) // the index is behind the tree
	session(700, 705)
	write([]byte("no database")) // damaged
	session(705, 710)
	write(nil) // empty
	session(710, 715)
	if err := os.Remove(path); err != nil { // gone
		t.Fatal(err)
	}
	session(715, 720)

	other := t.TempDir() // of another, longer log
	l, err := Open(t.Context(), testConfig(t, other))
	if err != nil {
		t.Fatal(err)
	}
	mustAdd(t, l, run(t, 9, 1, 6)...)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(other, indexFile), newer, 0o600); err != nil {
		t.Fatal(err)
	}
	l = openLog(t, testConfig(t, other))
	if next, ok := l.Next(nodeID(9)); next != 6 || !ok {
		t.Errorf("after an index of another log: Next = %d, %v", next, ok)
	}
	if _, ok := l.Next(nodeID(1)); ok {
		t.Error("after an index of another log: its nodes are known")
	}
}

func TestContext(t *testing.T) {
	l := openLog(t, testConfig(t, t.TempDir()))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Add(ctx, run(t, 1, 1, 3)); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if got := mustAdd(t, l, run(t, 1, 1, 4)...); !slices.Equal(got, []uint64{0, 1, 2}) {
		t.Errorf("indices %v", got)
	}
	if _, err := Await(ctx, l, 1000, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("Await: %v", err)
	}
}

func TestValidate(t *testing.T) {
	good := testConfig(t, "x")
	_, vkey := logKey(t)
	for _, tt := range []struct {
		name string
		edit func(*Config)
		want string
	}{
		{"good", func(*Config) {}, ""},
		{"no folder", func(c *Config) { c.Dir = "" }, "Dir"},
		{"no signer", func(c *Config) { c.Signer = nil }, "Signer"},
		{"another origin", func(c *Config) { c.Origin = "other" }, "origin"},
		{"too often", func(c *Config) { c.Interval = 1 }, "Interval"},
		{"a log's key as a witness's", func(c *Config) { c.Witnesses = []byte("witness w " + vkey + " http://h/\nquorum w\n") }, "cosignature/v1"},
	} {
		c := good
		tt.edit(&c)
		err := c.Validate()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}
