package prooftest

import (
	"crypto/sha256"
	"encoding/base64"
)

// The tree of RFC 6962, section 2.1, as its formulas define it: slow, and written
// without looking at how package proof checks it.

// A Hash is a node of a log's tree.
type Hash = [32]byte

// Leaf is the hash of a leaf.
func Leaf(b []byte) Hash { return sha256.Sum256(append([]byte{0}, b...)) }

// Node is the hash of two children.
func Node(l, r Hash) Hash { return sha256.Sum256(append(append([]byte{1}, l[:]...), r[:]...)) }

// Root is MTH(D).
func Root(d []Hash) Hash {
	switch len(d) {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return d[0]
	}
	k := split(len(d))
	return Node(Root(d[:k]), Root(d[k:]))
}

// Path is PATH(m, D): the inclusion proof of leaf m.
func Path(m int, d []Hash) []Hash {
	if len(d) == 1 {
		return nil
	}
	k := split(len(d))
	if m < k {
		return append(Path(m, d[:k]), Root(d[k:]))
	}
	return append(Path(m-k, d[k:]), Root(d[:k]))
}

// Consistency is PROOF(m, D): the tree of the first m leaves is the beginning of D.
func Consistency(m int, d []Hash) []Hash { return subproof(m, d, true) }

func subproof(m int, d []Hash, whole bool) []Hash {
	if m == len(d) {
		if whole {
			return nil
		}
		return []Hash{Root(d)}
	}
	k := split(len(d))
	if m <= k {
		return append(subproof(m, d[:k], whole), Root(d[k:]))
	}
	return append(subproof(m-k, d[k:], false), Root(d[:k]))
}

// split is the largest power of two below n.
func split(n int) int {
	k := 1
	for 2*k < n {
		k *= 2
	}
	return k
}

// Base64 is the text of a hash in proofs and checkpoints.
func Base64(h Hash) string { return base64.StdEncoding.EncodeToString(h[:]) }
