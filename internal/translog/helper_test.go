package translog

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"vacate/proof"
)

const testOrigin = "log.example/test"

// testKey is the key of a number.
func testKey(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed([]byte(strings.Repeat(string(rune('A'+n)), 32)))
}

// logKey returns the key of the tests' log, as signer and in text.
func logKey(t testing.TB) (note.Signer, string) {
	t.Helper()
	key := testKey(0)
	pub := append([]byte{1}, key.Public().(ed25519.PublicKey)...)
	sum := sha256.Sum256(append([]byte(testOrigin+"\n"), pub...))
	id := fmt.Sprintf("%s+%08x+", testOrigin, binary.BigEndian.Uint32(sum[:]))
	s, err := note.NewSigner("PRIVATE+KEY+" + id + base64.StdEncoding.EncodeToString(append([]byte{1}, key.Seed()...)))
	if err != nil {
		t.Fatal(err)
	}
	return s, id + base64.StdEncoding.EncodeToString(pub)
}

func testConfig(t testing.TB, dir string) Config {
	s, _ := logKey(t)
	return Config{Dir: dir, Origin: testOrigin, Signer: s, Interval: minInterval, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
}

func openLog(t testing.TB, cfg Config) *Log {
	t.Helper()
	l, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	return l
}

// nodeID is the id of the node of a number.
func nodeID(n byte) string { return hex.EncodeToString([]byte(strings.Repeat(string(rune(n)), 16))) }

// leaf makes the record seq of node n; salt makes it another one.
func leaf(t testing.TB, n byte, seq uint64, salt byte) Leaf {
	t.Helper()
	r := proof.Record{Type: proof.ENROL, NodeID: nodeID(n), NodeSeq: seq, PrevHash: proof.ZeroHash, Bytes: 64 << 20,
		Space: []proof.Space{{Drive: nodeID(100 + salt), Extents: []proof.Range{{First: 0, Count: 1}}}}}
	payload, err := proof.EncodePayload(r)
	if err != nil {
		t.Fatal(err)
	}
	env, err := proof.Sign(payload, testKey(n))
	if err != nil {
		t.Fatal(err)
	}
	return Leaf{r.NodeID, seq, env}
}

// run makes the records from ≤ seq < to of node n.
func run(t testing.TB, n byte, from, to uint64) []Leaf {
	t.Helper()
	var out []Leaf
	for seq := from; seq < to; seq++ {
		out = append(out, leaf(t, n, seq, 0))
	}
	return out
}

func mustAdd(t testing.TB, a Adder, leaves ...Leaf) []uint64 {
	t.Helper()
	out, err := a.Add(t.Context(), leaves)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// opened returns the newest checkpoint that holds at least size records.
func opened(t testing.TB, r Reader, size uint64) proof.Checkpoint {
	t.Helper()
	var cp []byte
	var err error
	if size == 0 {
		cp, err = r.Checkpoint(t.Context())
	} else {
		cp, err = Await(t.Context(), r, size-1, 10*time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	_, vkey := logKey(t)
	p, err := proof.ParsePolicy([]byte("log " + vkey + "\nquorum none\n"))
	if err != nil {
		t.Fatal(err)
	}
	c, _, err := p.OpenCheckpoint(cp)
	if err != nil {
		t.Fatalf("%v in\n%s", err, cp)
	}
	return c
}
