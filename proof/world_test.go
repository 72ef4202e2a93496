package proof

import (
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

// A small log with witnesses, a node and an operator, all with keys that never
// change: enough to make bundles of, and nothing of the code under test but its
// encoders.
const (
	testNode   = "07070707070707070707070707070707"
	testLease  = "aaaaaaaaaaaaaaaa"
	testDrive  = "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1"
	testBoot   = "6c7f4b0e-2a33-4d0c-9d0a-1f4bd6f6a001"
	testOrigin = "log.example/vacate"
	testTenant = "acme"
)

var testTime = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func testKey(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte("vacate test key " + name))
	return ed25519.NewKeyFromSeed(seed[:])
}

func publicKey(t testing.TB, s crypto.Signer) PublicKey {
	t.Helper()
	k, err := NewPublicKey(s.Public())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// salted are bytes that look random and are the same each time.
func salted(name string, n int) []byte {
	var out []byte
	for i := 0; len(out) < n; i++ {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", name, i))
		out = append(out, sum[:]...)
	}
	return out[:n]
}

type testLog struct {
	t      testing.TB
	leaves [][32]byte
}

func noteKeyOf(name string, alg byte, key string) noteKey {
	return newNoteKey(name, alg, testKey(key).Public().(ed25519.PublicKey))
}

func (l *testLog) root(leaves [][32]byte) [32]byte {
	switch len(leaves) {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return leaves[0]
	}
	k := split(len(leaves))
	return join2(l.root(leaves[:k]), l.root(leaves[k:]))
}

func split(n int) int {
	k := 1
	for k*2 < n {
		k *= 2
	}
	return k
}

func join2(a, b [32]byte) [32]byte {
	return sha256.Sum256(append(append([]byte{1}, a[:]...), b[:]...))
}

// path is RFC 6962's PATH(m, D[n]).
func (l *testLog) path(m int, leaves [][32]byte) [][32]byte {
	if len(leaves) == 1 {
		return nil
	}
	if k := split(len(leaves)); m < k {
		return append(l.path(m, leaves[:k]), l.root(leaves[k:]))
	} else {
		return append(l.path(m-k, leaves[k:]), l.root(leaves[:k]))
	}
}

// consistency is RFC 6962's SUBPROOF.
func (l *testLog) consistency(m int, leaves [][32]byte, whole bool) [][32]byte {
	if m == len(leaves) {
		if whole {
			return nil
		}
		return [][32]byte{l.root(leaves)}
	}
	if k := split(len(leaves)); m <= k {
		return append(l.consistency(m, leaves[:k], whole), l.root(leaves[k:]))
	} else {
		return append(l.consistency(m-k, leaves[k:], false), l.root(leaves[:k]))
	}
}

// checkpoint is the log's head with n leaves, cosigned at a time by witnesses.
func (l *testLog) checkpoint(n int, at time.Time, witnesses ...string) *SignedCheckpoint {
	root := l.root(l.leaves[:n])
	c := &SignedCheckpoint{Checkpoint: Checkpoint{Origin: testOrigin, Size: uint64(n), Root: root}}
	c.text = fmt.Appendf(nil, "%s\n%d\n%s\n", testOrigin, n, base64.StdEncoding.EncodeToString(root[:]))
	key := noteKeyOf(testOrigin, algEd25519, "log")
	c.sigs = append(c.sigs, noteSignature{testOrigin, key.id, ed25519.Sign(testKey("log"), c.text)})
	for _, w := range witnesses {
		k := noteKeyOf(w, algCosignature, w)
		sig := ed25519.Sign(testKey(w), cosigned(uint64(at.Unix()), c.text))
		c.sigs = append(c.sigs, noteSignature{w, k.id, append(binary.BigEndian.AppendUint64(nil, uint64(at.Unix())), sig...)})
	}
	return c
}

// A world has a log, and the records of node and operator in it.
type world struct {
	testLog
	seq      uint64
	prev     string
	envelope [][]byte
	index    []int
}

func newWorld(t testing.TB) *world {
	w := &world{testLog: testLog{t: t}, prev: ZeroHash}
	for i := range 5 { // somebody else's
		w.leaves = append(w.leaves, LeafHash(fmt.Appendf(nil, "another leaf %d", i)))
	}
	return w
}

func (w *world) policy() []byte {
	return fmt.Appendf(nil, "log %s\nwitness one %s\nwitness two %s\ngroup both all one two\nquorum both\nnode %s %s - -\noperator op %s - -\nperson ann %s - -\n",
		noteKeyOf(testOrigin, algEd25519, "log"), noteKeyOf("one", algCosignature, "one"), noteKeyOf("two", algCosignature, "two"),
		testNode, publicKey(w.t, testKey("node")), publicKey(w.t, testKey("op")), publicKey(w.t, testKey("ann")))
}

// add signs a record of the node, numbers it, and logs it.
func (w *world) add(r Record, signers ...crypto.Signer) {
	w.t.Helper()
	w.seq++
	r.NodeID, r.NodeSeq, r.PrevHash = testNode, w.seq, w.prev
	w.addAs(r, signers...)
	w.prev = PayloadHash(mustParse(w.t, w.envelope[len(w.envelope)-1]).Payload)
}

func (w *world) addAs(r Record, signers ...crypto.Signer) {
	w.t.Helper()
	payload, err := EncodePayload(r)
	if err != nil {
		w.t.Fatal(err)
	}
	if len(signers) == 0 {
		signers = []crypto.Signer{testKey("node")}
	}
	env, err := Sign(payload, signers...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.envelope = append(w.envelope, env)
	w.index = append(w.index, len(w.leaves))
	w.leaves = append(w.leaves, LeafHash(env))
}

func mustParse(t testing.TB, env []byte) Envelope {
	t.Helper()
	e, err := ParseEnvelope(env)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func b64s(hs [][32]byte) []string {
	out := []string{}
	for _, h := range hs {
		out = append(out, base64.StdEncoding.EncodeToString(h[:]))
	}
	return out
}

// bundle proves all of the world's records to its newest tree.
func (w *world) bundle(annex []byte, beacons map[int]time.Time) *Bundle {
	n := len(w.leaves)
	head := w.checkpoint(n, testTime.Add(time.Minute), "one", "two")
	b := &Bundle{Annex: annex}
	for i, env := range w.envelope {
		p := TlogProof{Index: uint64(w.index[i]), Path: w.path(w.index[i], w.leaves), Checkpoint: head}
		b.Records = append(b.Records, Entry{Envelope: env, Proof: string(p.Marshal())})
	}
	for size := range n {
		if at, ok := beacons[size]; ok {
			c := w.checkpoint(size, at, "one", "two")
			b.Beacons = append(b.Beacons, BeaconProof{Checkpoint: string(c.Marshal()), Consistency: b64s(w.consistency(size, w.leaves, true))})
		}
	}
	return b
}

func (w *world) beaconAt(size int, at time.Time) *Beacon {
	b := w.checkpoint(size, at, "one", "two").Beacon()
	return &b
}

var testSpace = []Space{{Drive: testDrive, Commit: DriveCommit(testDrive, salted("drive", SaltLen), "nvme", "M", "S-1"),
	Extents: []Range{{10, 5}, {0, 1}}}}

func testAnnex() Annex {
	f := Fact{Value: "v", Source: SourceObserved}
	return Annex{V: 1, NodeID: testNode, LeaseID: testLease, Tenant: testTenant,
		Salts: Salts{Key: hex.EncodeToString(salted("key", KeySaltLen)), Tenant: hex.EncodeToString(salted("tenant", SaltLen))},
		Media: []Medium{{Drive: testDrive, Salt: hex.EncodeToString(salted("drive", SaltLen)), Manufacturer: Human(), Model: Fact{"M", SourceDrive},
			Serial: Fact{"S-1", SourceDrive}, PropertyNumber: Human(), MediaType: Fact{"nvme", SourceObserved}, Source: f, Categorization: Human(),
			PriorPurge: f, EncryptedBelow: f}},
		Sanitize: Sanitize{Method: f, Technique: f, Tool: f, Version: f, VerificationMethod: f, Verification: f, Validation: Human(),
			Performed: Human(), Verified: Human(), Destination: Human()},
		CryptoErase: CryptoErase{f, f, f, f, f, f, f, f, f, f}, Module: Module{Name: "go", Version: "1.26"},
		Key: KeyEvidence{ReadBack: true}, Host: testHost(f),
		Device: []DeviceRun{}, Scan: []Scan{}, Limits: []string{}}
}

func encoded[T any](t testing.TB, v T) []byte {
	t.Helper()
	b, err := Encode(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func openRecord(w *world) Record {
	return Record{Type: OPEN, LeaseID: testLease, Bytes: 6 << 20, Space: testSpace, Cipher: CipherXTS, KeyBits: XTSBits, KeyMode: ModeNode,
		KeyCommit:    KeyCommit(testLease, salted("key", KeySaltLen), salted("secret", KeyLen)),
		TenantCommit: TenantCommit(testLease, salted("tenant", SaltLen), testTenant), Beacon: w.beaconAt(4, testTime),
		EraseBy: FormatTime(testTime.Add(time.Hour)), Events: []Event{{EventKeyGenerated, 5, testBoot}},
		Claims: []string{ClaimAsserted, ClaimKeyCommitted}, NotClaimed: []string{"device_purged"}}
}

func closeRecord(w *world, annex []byte) Record {
	r := openRecord(w)
	r.Type, r.OpenSeq, r.Result, r.Drained, r.Beacon = CLOSE, 1, ResultOK, true, w.beaconAt(len(w.leaves), testTime.Add(10*time.Second))
	r.Events = []Event{{EventKeyGenerated, 5, testBoot}, {EventGateClosed, 10, testBoot}, {EventKeyDestroyed, 12, testBoot}}
	r.AnnexDigest = PayloadHash(annex)
	return r
}

// goodBundle is a lease that was opened and closed.
func goodBundle(t testing.TB) (*world, *Bundle) {
	w := newWorld(t)
	w.add(openRecord(w))
	annex := encoded(t, testAnnex())
	size := len(w.leaves)
	w.add(closeRecord(w, annex))
	return w, w.bundle(annex, map[int]time.Time{4: testTime, size: testTime.Add(10 * time.Second)})
}

func marshalled(t testing.TB, b *Bundle) []byte {
	t.Helper()
	out, err := b.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func testReceipt(w *world) *Receipt {
	return &Receipt{V: 1, Envelope: json.RawMessage(w.envelope[0]), Salts: testAnnex().Salts, Tenant: testTenant}
}

// rejected demands that a bundle fails at a step, for a reason.
func rejected(t *testing.T, bundle, policy []byte, o Options, step Step, why string) {
	t.Helper()
	_, err := Verify(bundle, policy, o)
	var ve *VerifyError
	switch {
	case err == nil:
		t.Fatalf("it passed all steps; want step %d (%s) to say %q", step, step, why)
	case !errors.As(err, &ve):
		t.Fatalf("the error is no VerifyError: %v", err)
	case ve.Step != step || !strings.Contains(err.Error(), why):
		t.Fatalf("got %q, want step %d (%s) to say %q", err, step, step, why)
	}
}

// testHost has the fact in every field, however many there are.
func testHost(f Fact) (h Host) {
	walk(reflect.ValueOf(&h).Elem(), "", func(_ string, field *Fact) { *field = f })
	return h
}
