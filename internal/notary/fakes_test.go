package notary

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"vacate/internal/journal"
	"vacate/internal/lease"
	"vacate/internal/translog"
	"vacate/proof"
)

const (
	nodeID = "0123456789abcdef0123456789abcdef"
	origin = "vacate/test"
)

// A spool is a journal in memory, with its rules.
type spool struct {
	t        *testing.T
	mu       sync.Mutex
	payloads [][]byte // of record i+1
	signed   [][]byte
	placed   []uint64
	leases   map[string]lease.Lease
	of       map[string][]uint64
	annexes  map[string][]byte
	done     map[string]bool
	appended chan struct{}
}

func newSpool(t *testing.T) *spool {
	return &spool{t: t, leases: map[string]lease.Lease{}, of: map[string][]uint64{}, annexes: map[string][]byte{},
		done: map[string]bool{}, appended: make(chan struct{}, 1)}
}

func (s *spool) NodeID() string { return nodeID }

// append writes a record, whose place in the chain it fills in.
func (s *spool) append(r proof.Record) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.NodeID, r.NodeSeq, r.PrevHash = nodeID, uint64(len(s.payloads)+1), proof.ZeroHash
	if len(s.payloads) > 0 {
		r.PrevHash = proof.PayloadHash(s.payloads[len(s.payloads)-1])
	}
	b, err := proof.EncodePayload(r)
	if err != nil {
		return 0, err
	}
	s.payloads = append(s.payloads, b)
	if r.LeaseID != "" {
		s.of[r.LeaseID] = append(s.of[r.LeaseID], r.NodeSeq)
	}
	wake(s.appended)
	return r.NodeSeq, nil
}

func (s *spool) Unsigned(limit int) (out []journal.Stored, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.signed); i < len(s.payloads) && len(out) < limit; i++ {
		out = append(out, journal.Stored{Seq: uint64(i + 1), JSON: s.payloads[i]})
	}
	return out, nil
}

func (s *spool) StoreEnvelopes(all []journal.Stored) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range all {
		if i := int(e.Seq) - 1; i < len(s.signed) {
			if !bytes.Equal(s.signed[i], e.Envelope) {
				return journal.ErrExists
			}
			continue
		}
		if int(e.Seq) != len(s.signed)+1 {
			return journal.ErrNotFound
		}
		s.signed = append(s.signed, e.Envelope)
	}
	return nil
}

func (s *spool) Unsent(limit int) (out []journal.Stored, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.placed); i < len(s.signed) && len(out) < limit; i++ {
		out = append(out, journal.Stored{Seq: uint64(i + 1), JSON: s.payloads[i], Envelope: s.signed[i]})
	}
	return out, nil
}

func (s *spool) Sent(all []journal.Placed) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range all {
		if int(p.Seq) != len(s.placed)+1 {
			return journal.ErrNotFound
		}
		s.placed = append(s.placed, p.Index)
	}
	return nil
}

func (s *spool) Placed(seq uint64) (p journal.Placed, envelope []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if int(seq) <= len(s.signed) {
		envelope = s.signed[seq-1]
	}
	if int(seq) > len(s.placed) {
		return p, envelope, journal.ErrNotFound
	}
	return journal.Placed{Seq: seq, Index: s.placed[seq-1]}, envelope, nil
}

func (s *spool) RecordsOf(id string) ([]uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.of[id]) == 0 {
		return nil, journal.ErrNotFound
	}
	return s.of[id], nil
}

func (s *spool) Annex(id string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a, ok := s.annexes[id]; ok && !s.done[id] {
		return a, nil
	}
	return nil, journal.ErrNotFound
}

func (s *spool) Lease(id string) (lease.Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.leases[id]
	if !ok {
		return l, journal.ErrNotFound
	}
	return l, nil
}

func (s *spool) Due(limit int) (ids []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.placed {
		r, err := proof.ParsePayload(s.payloads[i])
		if err != nil {
			return nil, err
		}
		if r.Type == proof.CLOSE && !s.done[r.LeaseID] && len(ids) < limit {
			ids = append(ids, r.LeaseID)
		}
	}
	return ids, nil
}

func (s *spool) Certified(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done[id] = true
	return nil
}

func (s *spool) SpoolStats() (journal.Stats, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return journal.Stats{First: 1, Last: uint64(len(s.payloads)), Signed: uint64(len(s.signed)), Sent: uint64(len(s.placed))}, nil
}

func (s *spool) Appended() <-chan struct{} { return s.appended }

// A treeLog is a log in memory. One witness cosigns while it is there.
type treeLog struct {
	mu      sync.Mutex
	signer  note.Signer
	witness ed25519.PrivateKey
	away    bool  // the witness
	broken  error // what Add answers
	twisted bool  // proofs of inclusion do not hold
	hashes  []tlog.Hash
	leaves  [][]byte
	clock   func() time.Time
}

// ReadHashes implements [tlog.HashReader].
func (l *treeLog) ReadHashes(at []int64) ([]tlog.Hash, error) {
	var out []tlog.Hash
	for _, i := range at {
		out = append(out, l.hashes[i])
	}
	return out, nil
}

func (l *treeLog) Add(_ context.Context, leaves []translog.Leaf) (out []uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken != nil {
		return nil, l.broken
	}
next:
	for _, leaf := range leaves {
		for i, have := range l.leaves {
			if bytes.Equal(have, leaf.Envelope) {
				out = append(out, uint64(i))
				continue next
			}
		}
		more, err := tlog.StoredHashes(int64(len(l.leaves)), leaf.Envelope, l)
		if err != nil {
			return nil, err
		}
		l.hashes = append(l.hashes, more...)
		out = append(out, uint64(len(l.leaves)))
		l.leaves = append(l.leaves, leaf.Envelope)
	}
	return out, nil
}

const witnessName = "witness.test"

func witnessID(pub ed25519.PublicKey) uint32 {
	h := sha256.New()
	h.Write([]byte(witnessName + "\n\x04"))
	h.Write(pub)
	return binary.BigEndian.Uint32(h.Sum(nil))
}

// policyLines are how a policy names the witness.
func (l *treeLog) policyLines() []byte {
	pub := l.witness.Public().(ed25519.PublicKey)
	key := base64.StdEncoding.EncodeToString(append([]byte{4}, pub...))
	return fmt.Appendf(nil, "witness w %s+%08x+%s\nquorum w\n", witnessName, witnessID(pub), key)
}

func (l *treeLog) Checkpoint(context.Context) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.leaves) == 0 {
		return nil, translog.ErrNotFound
	}
	root, err := tlog.TreeHash(int64(len(l.leaves)), l)
	if err != nil {
		return nil, err
	}
	text := fmt.Sprintf("%s\n%d\n%s\n", origin, len(l.leaves), root)
	b, err := note.Sign(&note.Note{Text: text}, l.signer)
	if err != nil || l.away || l.witness == nil {
		return b, err
	}
	at := l.clock().Unix()
	sig := binary.BigEndian.AppendUint32(nil, witnessID(l.witness.Public().(ed25519.PublicKey)))
	sig = binary.BigEndian.AppendUint64(sig, uint64(at))
	sig = append(sig, ed25519.Sign(l.witness, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", at, text))...)
	return fmt.Appendf(b, "— %s %s\n", witnessName, base64.StdEncoding.EncodeToString(sig)), nil
}

func (l *treeLog) Proof(_ context.Context, index, size uint64) (out [][32]byte, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p, err := tlog.ProveRecord(int64(size), int64(index), l)
	for _, h := range p {
		if l.twisted {
			h[0] ^= 1
		}
		out = append(out, h)
	}
	return out, err
}

func (l *treeLog) Consistency(_ context.Context, from, to uint64) (out [][32]byte, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p, err := tlog.ProveTree(int64(to), int64(from), l)
	for _, h := range p {
		out = append(out, h)
	}
	return out, err
}

func (l *treeLog) Leaf(_ context.Context, index uint64) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leaves[index], nil
}

func (l *treeLog) Leaves(context.Context, uint64, uint64, func(uint64, []byte) error) error {
	return errors.ErrUnsupported
}

var bootID = strings.Repeat("b", 32)
