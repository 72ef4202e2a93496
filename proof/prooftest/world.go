// Package prooftest makes certificates, receipts, policies and logs to test
// against: good ones of every kind, and bad ones, damaged before or after they
// were signed. Keys and times never change, so neither do its bytes.
//
// It encodes logs, checkpoints and proofs by itself, from their specifications, so
// that a mistake in package proof does not meet itself here.
package prooftest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"vacate/proof"
)

// Who and what there is.
const (
	Origin = "log.example/vacate"
	Node1  = "07070707070707070707070707070707"
	Node2  = "08080808080808080808080808080808"
	Lease1 = "aaaaaaaaaaaaaaaa"
	Lease2 = "bbbbbbbbbbbbbbbb"
	Drive1 = "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1"
	Boot1  = "6c7f4b0e-2a33-4d0c-9d0a-1f4bd6f6a001"
	Boot2  = "6c7f4b0e-2a33-4d0c-9d0a-1f4bd6f6a002"
	Tenant = "acme"
)

// Start is the time of the first checkpoint; each later one is a minute after the
// one before.
var Start = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// Key is the key of this name, the same each time: "log", "node1", "node2",
// "operator", "ann", or a witness's name.
func Key(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte("vacate/prooftest " + name))
	return ed25519.NewKeyFromSeed(seed[:])
}

// AK is the attestation key of node 1's TPM, which is none.
func AK() *ecdsa.PrivateKey {
	seed := sha256.Sum256([]byte("vacate/prooftest AK"))
	k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), seed[:])
	if err != nil {
		panic(err)
	}
	return k
}

// Text is the text form of a key's public half.
func Text(k crypto.Signer) string {
	p, err := proof.NewPublicKey(k.Public())
	if err != nil {
		panic(err)
	}
	return p.String()
}

// Bytes are n bytes that belong to name, and look random.
func Bytes(name string, n int) []byte {
	var out []byte
	for i := 0; len(out) < n; i++ {
		h := sha256.Sum256(fmt.Appendf(nil, "vacate/prooftest %s %d", name, i))
		out = append(out, h[:]...)
	}
	return out[:n]
}

// VKey is a key in the form of C2SP signed notes: of type 1, or 4 for a witness.
func VKey(name string, alg byte, k ed25519.PrivateKey) string {
	raw := append([]byte{alg}, k.Public().(ed25519.PublicKey)...)
	return fmt.Sprintf("%s+%08x+%s", name, KeyID(name, alg, k), base64.StdEncoding.EncodeToString(raw))
}

// KeyID is the id of such a key.
func KeyID(name string, alg byte, k ed25519.PrivateKey) uint32 {
	h := sha256.Sum256(append([]byte(name+"\n"+string(rune(alg))), k.Public().(ed25519.PublicKey)...))
	return binary.BigEndian.Uint32(h[:])
}

// NoteLine is a signature line: of type 1, or a cosignature of type 4 at a time.
func NoteLine(name string, alg byte, k ed25519.PrivateKey, text string, at time.Time) string {
	raw := binary.BigEndian.AppendUint32(nil, KeyID(name, alg, k))
	if alg == 4 {
		raw = binary.BigEndian.AppendUint64(raw, uint64(at.Unix()))
		text = fmt.Sprintf("cosignature/v1\ntime %d\n%s", at.Unix(), text)
	}
	raw = append(raw, ed25519.Sign(k, []byte(text))...)
	return fmt.Sprintf("— %s %s\n", name, base64.StdEncoding.EncodeToString(raw))
}

// Policy is what [World] satisfies: two of three witnesses have to cosign, and one
// of them is the tenant's own.
func Policy() []byte {
	ak := Text(AK())
	return []byte("# What a tenant pins before it opens a lease\n" +
		"log " + VKey(Origin, 1, Key("log")) + " https://log.example/vacate\n" +
		"witness provider " + VKey("witness.provider.example", 4, Key("witness.provider.example")) + "\n" +
		"witness tenant " + VKey("witness.tenant.example", 4, Key("witness.tenant.example")) + "\n" +
		"witness auditor " + VKey("witness.auditor.example", 4, Key("witness.auditor.example")) + "\n" +
		"group others any tenant auditor\n" +
		"group both all provider others\n" +
		"quorum both\n" +
		"node " + Node1 + " " + Text(Key("node1")) + " - -\n" +
		"node " + Node2 + " " + Text(Key("node2")) + " - -\n" +
		"operator ops " + Text(Key("operator")) + " - -\n" +
		"person ann " + Text(Key("ann")) + " - -\n" +
		"tpm " + Node1 + " " + ak + " -\n")
}

// Witnesses are all that the policy names.
var Witnesses = []string{"witness.auditor.example", "witness.provider.example", "witness.tenant.example"}

// A Logged is a record that is in the log.
type Logged struct {
	Record   proof.Record
	Payload  []byte
	Envelope []byte
	Index    int
}

// A World is a log, and who writes to it. Its zero value has an empty log.
type World struct {
	Leaves  [][]byte
	Records []Logged

	hashes []Hash
	chains map[string]*link
}

type link struct {
	seq  uint64
	prev string
}

// Append adds a leaf and returns its index.
func (w *World) Append(leaf []byte) int {
	w.Leaves = append(w.Leaves, leaf)
	w.hashes = append(w.hashes, Leaf(leaf))
	return len(w.Leaves) - 1
}

// Fill appends leaves that are nobody's.
func (w *World) Fill(n int) {
	for range n {
		w.Append(fmt.Appendf(nil, "leaf %d", len(w.Leaves)))
	}
}

// Root is the root of the tree of the first n leaves.
func (w *World) Root(n int) Hash { return Root(w.hashes[:n]) }

// Next numbers a record: it becomes the next of its node.
func (w *World) Next(r proof.Record) proof.Record {
	c := w.chain(r.NodeID)
	r.NodeSeq, r.PrevHash = c.seq+1, c.prev
	return r
}

func (w *World) chain(id string) *link {
	if w.chains == nil {
		w.chains = map[string]*link{}
	}
	if w.chains[id] == nil {
		w.chains[id] = &link{prev: strings.Repeat("0", 64)}
	}
	return w.chains[id]
}

// Log signs a numbered record and appends it. It panics where package proof
// refuses the record.
func (w *World) Log(r proof.Record, by ...crypto.Signer) Logged {
	payload, err := proof.EncodePayload(r)
	if err != nil {
		panic(err)
	}
	return w.LogPayload(r, payload, by...)
}

// LogPayload signs a payload, whatever is in it, and appends it as record r.
func (w *World) LogPayload(r proof.Record, payload []byte, by ...crypto.Signer) Logged {
	env, err := proof.Sign(payload, by...)
	if err != nil {
		panic(err)
	}
	h := sha256.Sum256(payload)
	c := w.chain(r.NodeID)
	c.seq, c.prev = r.NodeSeq, fmt.Sprintf("%x", h)
	l := Logged{Record: r, Payload: payload, Envelope: env, Index: w.Append(env)}
	w.Records = append(w.Records, l)
	return l
}

// Time is when the checkpoint of n leaves is cosigned.
func Time(n int) time.Time { return Start.Add(time.Duration(n) * time.Minute) }

// Text is the text of the checkpoint of n leaves.
func (w *World) Text(n int) string {
	return fmt.Sprintf("%s\n%d\n%s\n", Origin, n, Base64(w.Root(n)))
}

// Checkpoint is the signed checkpoint of n leaves, cosigned by these witnesses
// at its time.
func (w *World) Checkpoint(n int, witnesses ...string) string {
	text := w.Text(n)
	out := text + "\n" + NoteLine(Origin, 1, Key("log"), text, time.Time{})
	for _, name := range witnesses {
		out += NoteLine(name, 4, Key(name), text, Time(n))
	}
	return out
}

// Beacon names the checkpoint of n leaves, as these witnesses cosigned it; without any
// named, as all did.
func (w *World) Beacon(n int, witnesses ...string) *proof.Beacon {
	if len(witnesses) == 0 {
		witnesses = Witnesses
	}
	return BeaconOf(w.Checkpoint(n, witnesses...))
}

// BeaconOf names a signed checkpoint.
func BeaconOf(note string) *proof.Beacon {
	lines := strings.SplitN(note, "\n", 4)
	size, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil {
		panic(err)
	}
	h := sha256.Sum256([]byte(note))
	return &proof.Beacon{Origin: lines[0], Size: size, Root: lines[2], Digest: hex.EncodeToString(h[:])}
}

// Proof is the C2SP tlog-proof of a leaf, to a checkpoint of n leaves.
func (w *World) Proof(index, n int, checkpoint string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "c2sp.org/tlog-proof@v1\nindex %d\n", index)
	for _, h := range Path(index, w.hashes[:n]) {
		b.WriteString(Base64(h) + "\n")
	}
	return b.String() + "\n" + checkpoint
}

// Consistency is the proof between the trees of m and n leaves.
func (w *World) Consistency(m, n int) []string {
	out := []string{}
	for _, h := range Consistency(m, w.hashes[:n]) {
		out = append(out, Base64(h))
	}
	return out
}

// Bundle proves the records of the log to its newest tree. beacons are the sizes
// of the checkpoints that they name.
func (w *World) Bundle(records []Logged, annex []byte, beacons ...int) *proof.Bundle {
	n := len(w.Leaves)
	head := w.Checkpoint(n, Witnesses...)
	b := &proof.Bundle{V: proof.BundleVersion, Annex: annex, Beacons: []proof.BeaconProof{}, Quotes: []proof.Quote{}, Completions: []json.RawMessage{}}
	for _, l := range records {
		b.Records = append(b.Records, proof.Entry{Envelope: l.Envelope, Proof: w.Proof(l.Index, n, head)})
	}
	for _, m := range beacons {
		b.Beacons = append(b.Beacons, proof.BeaconProof{Checkpoint: w.Checkpoint(m, Witnesses...), Consistency: w.Consistency(m, n)})
	}
	return b
}
