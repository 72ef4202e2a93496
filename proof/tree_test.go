package proof_test

import (
	"bytes"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"vacate/proof"
	"vacate/proof/prooftest"
)

// A hashStore is the memory of golang.org/x/mod/sumdb/tlog, which makes the proofs
// that are checked here.
type hashStore map[int64]tlog.Hash

func (s hashStore) ReadHashes(at []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(at))
	for i, x := range at {
		h, ok := s[x]
		if !ok {
			return nil, fmt.Errorf("no hash %d", x)
		}
		out[i] = h
	}
	return out, nil
}

func (s hashStore) add(t *testing.T, n int64, leaf []byte) {
	t.Helper()
	hs, err := tlog.StoredHashes(n, leaf, s)
	if err != nil {
		t.Fatal(err)
	}
	for i, h := range hs {
		s[tlog.StoredHashIndex(0, n)+int64(i)] = h
	}
}

func (s hashStore) checkpoint(t *testing.T, n int64) proof.Checkpoint {
	t.Helper()
	root, err := tlog.TreeHash(n, s)
	if err != nil {
		t.Fatal(err)
	}
	return proof.Checkpoint{Origin: prooftest.Origin, Size: uint64(n), Root: root}
}

func hashes(p []tlog.Hash) [][32]byte {
	var out [][32]byte
	for _, h := range p {
		out = append(out, h)
	}
	return out
}

// TestEveryTree proves every record of every tree of 1 to 300 leaves, and turns
// a bit of every hash of each proof; and the same of every older tree.
func TestEveryTree(t *testing.T) {
	size := int64(300)
	if testing.Short() || proof.RaceDetector {
		size = 70
	}
	s := hashStore{}
	var leaves []prooftest.Hash
	var older []proof.Checkpoint
	for n := int64(1); n <= size; n++ {
		leaf := fmt.Appendf(nil, "leaf %d", n-1)
		s.add(t, n-1, leaf)
		leaves = append(leaves, proof.LeafHash(leaf))
		c := s.checkpoint(t, n)
		if n <= 40 && c.Root != prooftest.Root(leaves) {
			t.Fatalf("size %d: two definitions of the root differ", n)
		}
		for m := range n {
			p, err := tlog.ProveRecord(n, m, s)
			if err != nil {
				t.Fatal(err)
			}
			path := hashes(p)
			if n <= 40 && !slices.Equal(path, prooftest.Path(int(m), leaves)) {
				t.Fatalf("record %d of %d: two definitions of the path differ", m, n)
			}
			everyHash(t, path, func(p [][32]byte) error { return proof.VerifyInclusion(c, uint64(m), leaves[m], p) })
		}
		for m := int64(1); m < n; m++ {
			p, err := tlog.ProveTree(n, m, s)
			if err != nil {
				t.Fatal(err)
			}
			everyHash(t, hashes(p), func(p [][32]byte) error { return proof.VerifyConsistency(older[m-1], c, p) })
		}
		older = append(older, c)
	}
}

// everyHash demands that a proof passes, and with a bit of any hash turned, a hash
// less or a hash more does not.
func everyHash(t *testing.T, path [][32]byte, verify func([][32]byte) error) {
	t.Helper()
	if err := verify(path); err != nil {
		t.Fatal(err)
	}
	for i := range path {
		bit := byte(1) << (i % 8)
		path[i][(7*i)%32] ^= bit
		if verify(path) == nil {
			t.Fatalf("hash %d was changed, and the proof passes", i)
		}
		path[i][(7*i)%32] ^= bit
	}
	if verify(append(path, [32]byte{})) == nil {
		t.Fatal("a hash was added, and the proof passes")
	}
	if len(path) > 0 && verify(path[:len(path)-1]) == nil {
		t.Fatal("a hash was cut off, and the proof passes")
	}
}

// TestVerifyInclusionEdges: what has no place in a tree is in none.
func TestVerifyInclusionEdges(t *testing.T) {
	leaf := proof.LeafHash(nil)
	for _, tt := range []struct{ size, index uint64 }{{0, 0}, {1, 1}, {5, 5}, {5, 1 << 62}} {
		c := proof.Checkpoint{Origin: prooftest.Origin, Size: tt.size, Root: leaf}
		if err := proof.VerifyInclusion(c, tt.index, leaf, nil); err == nil {
			t.Errorf("leaf %d is in a tree of %d", tt.index, tt.size)
		}
	}
	empty := proof.Checkpoint{Origin: prooftest.Origin}
	one := proof.Checkpoint{Origin: prooftest.Origin, Size: 1, Root: leaf}
	other := proof.Checkpoint{Origin: "log.example/other", Size: 1, Root: leaf}
	for name, err := range map[string]error{
		"the empty tree as older": proof.VerifyConsistency(empty, one, nil),
		"a larger tree as older":  proof.VerifyConsistency(one, empty, nil),
		"another log's tree":      proof.VerifyConsistency(other, one, nil),
	} {
		if err == nil {
			t.Errorf("%s is consistent", name)
		}
	}
	if err := proof.VerifyConsistency(one, one, nil); err != nil {
		t.Errorf("a tree is not consistent with itself: %v", err)
	}
}

// TestBundleSize: a certificate of a log with ten million records is computed, not
// logged: its proofs have as many hashes as the tree is deep, and the longest beacon's
// proof is as long as one can be.
func TestBundleSize(t *testing.T) {
	const records, bar = 10_000_000, 32 << 10
	for name, story := range prooftest.Kinds() {
		c := prooftest.Tell(story)
		extra := 0
		for _, e := range c.Bundle.Records {
			p, err := proof.ParseTlogProof([]byte(e.Proof))
			if err != nil {
				t.Fatal(err)
			}
			// A line of base64, and \n in JSON. The index and the size get 8 digits.
			extra += (bits.Len64(records-1)-len(p.Path))*(44+2) + 2*8
		}
		for _, b := range c.Bundle.Beacons {
			extra += (2*bits.Len64(records)-len(b.Consistency))*(44+3) + 8
		}
		if got := len(c.Bytes()) + extra; got > bar {
			t.Errorf("%s: %d bytes at %d records, at most %d are allowed", name, got, records, bar)
		} else {
			t.Logf("%s: %d bytes at %d records", name, got, records)
		}
	}
}

// TestDeepProof verifies a proof in a tree of ten million leaves, whose other
// branches are made up: the deepest leaf, the last, and one between.
func TestDeepProof(t *testing.T) {
	const records = 10_000_000
	leaf := proof.LeafHash([]byte("leaf"))
	for _, index := range []uint64{0, 4_194_304, records - 1} {
		root, path := leaf, [][32]byte(nil)
		for at, last := index, uint64(records-1); last > 0; at, last = at/2, last/2 {
			other := prooftest.Leaf(fmt.Appendf(nil, "branch %d at %d", at, last))
			switch {
			case at%2 == 1:
				root = prooftest.Node(other, root)
			case at < last:
				root = prooftest.Node(root, other)
			default:
				continue // it has no sibling at this height
			}
			path = append(path, other)
		}
		c := proof.Checkpoint{Origin: prooftest.Origin, Size: records, Root: root}
		everyHash(t, path, func(p [][32]byte) error { return proof.VerifyInclusion(c, index, leaf, p) })
	}
}

// TestTlogProofForm: what is read is written again as it was, and a proof that x/mod
// made is read.
func TestTlogProofForm(t *testing.T) {
	c := prooftest.Tell(prooftest.Story{})
	text := c.Bundle.Records[1].Proof
	p, err := proof.ParseTlogProof([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p.Marshal(), []byte(text)) || p.Index != 6 || p.Checkpoint.Size != 7 || p.Checkpoint.Origin != prooftest.Origin {
		t.Errorf("read %+v", p)
	}
	for _, bad := range []string{"", "\n\n", text[1:], strings.TrimSuffix(text, "\n"), text + "\n", text + "x", strings.Repeat(text, 30)} {
		if _, err := proof.ParseTlogProof([]byte(bad)); err == nil {
			t.Errorf("%.80q… is a proof", bad)
		}
	}
}
