package cipheraudit

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"math"
	"testing"

	"vacate/internal/xts"
)

// A node is a volume of a lease, its drive, and what the node says of that.
type node struct {
	plain   []byte
	drive   []byte // ciphertext under key
	written []bool
	key     [KeySize]byte
	asked   int
	racing  int // so many blocks change between the two readings, the first time
	err     error
}

func newNode(t *testing.T, blocks int) *node {
	t.Helper()
	n := &node{plain: make([]byte, blocks*BlockSize), written: make([]bool, blocks)}
	n.drive = make([]byte, len(n.plain))
	rand.Read(n.key[:])
	rand.Read(n.drive) // what others left
	var s xts.Schedule
	if err := s.Expand(&n.key); err != nil {
		t.Fatal(err)
	}
	for i := range n.written {
		if n.written[i] = i%3 != 0; n.written[i] {
			at := i * BlockSize
			rand.Read(n.plain[at : at+BlockSize])
			s.Encrypt(n.drive[at:at+BlockSize], n.plain[at:at+BlockSize], BlockSize, uint64(i))
		}
	}
	return n
}

func (n *node) raw(_ context.Context, blocks []uint64) ([][]byte, error) {
	n.asked += len(blocks)
	out := make([][]byte, len(blocks))
	for i, b := range blocks {
		if n.written[b] {
			out[i] = bytes.Clone(n.drive[b*BlockSize:][:BlockSize])
			if n.racing > 0 {
				n.racing--
				out[i][0]++
			}
		}
	}
	return out, n.err
}

func (n *node) run(t *testing.T, sample int) (Report, error) {
	t.Helper()
	return Run(t.Context(), Config{Key: &n.key, Blocks: uint64(len(n.written)), Sample: sample, Plain: bytes.NewReader(n.plain), Raw: n.raw})
}

// TestAudit: a volume that is encrypted under the key passes, each written block of it,
// also where blocks were written in between.
func TestAudit(t *testing.T) {
	n := newNode(t, 300)
	n.racing = 5
	r, err := n.run(t, 1000) // more than there are: all
	if err != nil || r.Sampled != 200 || r.Matched != 200 || r.Unwritten != 100 || r.Of != 300 || r.Differ != nil {
		t.Errorf("%+v, %v", r, err)
	}
	r, err = n.run(t, 50)
	if err != nil || r.Sampled != 50 || r.Matched != 50 {
		t.Errorf("a sample of 50: %+v, %v", r, err)
	}
}

// TestAuditFinds: what is not encrypted under the key is found, and named.
func TestAuditFinds(t *testing.T) {
	for name, tamper := range map[string]func(n *node){
		"plaintext on the drive":      func(n *node) { copy(n.drive[4*BlockSize:5*BlockSize], n.plain[4*BlockSize:]) },
		"another key":                 func(n *node) { rand.Read(n.drive[4*BlockSize : 5*BlockSize]) },
		"another block's":             func(n *node) { copy(n.drive[4*BlockSize:5*BlockSize], n.drive[5*BlockSize:]) },
		"said to be unwritten":        func(n *node) { n.written[4] = false },
		"the volume reads other data": func(n *node) { n.plain[4*BlockSize+4095]++ },
	} {
		n := newNode(t, 9)
		tamper(n)
		r, err := n.run(t, 0)
		if err != nil || len(r.Differ) != 1 || r.Differ[0] != 4 || r.Matched != r.Sampled-1 {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	n := newNode(t, 9)
	n.key[0]++
	if r, err := n.run(t, 0); err != nil || r.Matched != 0 || r.Sampled != 6 {
		t.Errorf("with another key: %+v, %v", r, err)
	}
}

// TestAuditGivesUp: an answer that is none is an error, and no verdict.
func TestAuditGivesUp(t *testing.T) {
	n := newNode(t, 9)
	n.err = io.ErrUnexpectedEOF
	if _, err := n.run(t, 0); !errors.Is(err, n.err) {
		t.Errorf("an error of the node's: %v", err)
	}
	for name, answer := range map[string][][]byte{"none": nil, "short": {make([]byte, 512)}} {
		_, err := Run(t.Context(), Config{Key: &n.key, Blocks: 1, Plain: bytes.NewReader(n.plain),
			Raw: func(context.Context, []uint64) ([][]byte, error) { return answer, nil }})
		if err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := Run(t.Context(), Config{}); err == nil {
		t.Error("an audit of nothing")
	}
	n.key = [KeySize]byte{}
	if _, err := n.run(t, 0); err == nil {
		t.Error("a key of equal halves is taken")
	}
}

// TestDeck: each number comes once, whatever the parts in which they are drawn, and
// each is as likely to come first.
func TestDeck(t *testing.T) {
	first := map[uint64]int{}
	for range 2000 {
		d := newDeck(10, rand.Reader)
		seen := map[uint64]bool{}
		for _, n := range []int{1, 4, 5} {
			drawn, err := d.draw(n)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range drawn {
				if c >= 10 || seen[c] {
					t.Fatalf("%d came again, or is none", c)
				}
				seen[c] = true
				if len(seen) == 1 {
					first[c]++
				}
			}
		}
	}
	for c, n := range first {
		if math.Abs(float64(n)-200) > 100 { // seven standard deviations
			t.Errorf("%d came first %d times of 2000", c, n)
		}
	}
}

// TestOdds: the default sample is what the documents say of it.
func TestOdds(t *testing.T) {
	if p := (Report{Sampled: DefaultSample}).Odds(0.001); p < 0.99 || (Report{Sampled: DefaultSample - 1}).Odds(0.001) > 0.99 {
		t.Errorf("odds of %v", p)
	}
}
