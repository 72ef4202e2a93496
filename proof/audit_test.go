package proof_test

import (
	"crypto"
	"slices"
	"strings"
	"testing"

	"vacate/proof"
	"vacate/proof/prooftest"
)

// A history is a log in which things happen to leases of one drive.
type history struct {
	w    prooftest.World
	open map[string]prooftest.Logged
}

func newHistory() *history {
	h := &history{open: map[string]prooftest.Logged{}}
	h.log(proof.Record{Type: proof.ENROL, NodeID: prooftest.Node1, Bytes: 100 << 20,
		Space: []proof.Space{{Drive: prooftest.Drive1, Extents: []proof.Range{{First: 0, Count: 100}}}}})
	return h
}

func (h *history) log(r proof.Record, by ...string) prooftest.Logged {
	return h.logAs(h.w.Next(r), by...)
}

// logAs logs a record with the number that it has.
func (h *history) logAs(r proof.Record, by ...string) prooftest.Logged {
	r.V = proof.RecordVersion
	if by == nil {
		by = []string{"node1"}
	}
	var signers []crypto.Signer
	for _, name := range by {
		signers = append(signers, prooftest.Key(name))
	}
	return h.w.Log(r, signers...)
}

func id(name string) string { return strings.Repeat(name, 16) }

// opening is an OPEN of lease a, b, … with some extents.
func opening(name string, first, count uint32) proof.Record {
	r := prooftest.Opening(proof.ModeNode)
	r.LeaseID = id(name)
	r.Space = []proof.Space{{Drive: prooftest.Drive1, Extents: []proof.Range{{First: first, Count: count}}}}
	return r
}

func (h *history) opens(name string, first, count uint32) prooftest.Logged {
	l := h.log(opening(name, first, count))
	h.open[name] = l
	return l
}

func (h *history) closing(name string) proof.Record {
	l := h.open[name]
	return prooftest.Closing(l.Record, l.Index, proof.ResultOK)
}

func (h *history) closes(name string) prooftest.Logged { return h.log(h.closing(name)) }

func (h *history) resize(name string, first, count uint32) proof.Record {
	return proof.Record{Type: proof.RESIZE, NodeID: prooftest.Node1, LeaseID: id(name), OpenSeq: h.open[name].Record.NodeSeq, Bytes: 10 << 20,
		Space: []proof.Space{{Drive: prooftest.Drive1, Extents: []proof.Range{{First: first, Count: count}}}}}
}

func (h *history) auditor(t *testing.T) *proof.Auditor {
	t.Helper()
	p, err := proof.ParsePolicy(prooftest.Policy())
	if err != nil {
		t.Fatal(err)
	}
	return proof.NewAuditor(p)
}

// audit audits the whole log, long before any deadline.
func (h *history) audit(t *testing.T) ([]proof.Finding, proof.Summary) {
	t.Helper()
	a := h.auditor(t)
	for i, leaf := range h.w.Leaves {
		a.Add(uint64(i), leaf)
	}
	found := a.Finish([]byte(h.w.Checkpoint(len(h.w.Leaves), prooftest.Witnesses...)), prooftest.Start)
	return found, a.Summary()
}

func codes(found []proof.Finding) []string {
	out := []string{}
	for _, f := range found {
		out = append(out, f.Code)
	}
	return out
}

func operatorID(t *testing.T) string {
	t.Helper()
	k, err := proof.NewPublicKey(prooftest.Key("operator").Public())
	if err != nil {
		t.Fatal(err)
	}
	return proof.OperatorID(k)
}

// lostAfter is a NODE_LOST of node 1 whose last record this was.
func lostAfter(t *testing.T, l prooftest.Logged) proof.Record {
	return proof.Record{Type: proof.NodeLost, NodeID: operatorID(t), LostNode: &proof.LostNode{
		NodeID: prooftest.Node1, LastSeq: l.Record.NodeSeq, LastHash: proof.PayloadHash(l.Payload)}}
}

// TestAuditGood: a log in which everything is right.
func TestAuditGood(t *testing.T) {
	h := newHistory()
	h.opens("a", 0, 10)
	h.opens("b", 10, 10)
	h.closes("a")
	h.opens("c", 0, 10) // the space of a, after its CLOSE
	h.log(h.resize("b", 10, 20))
	r := h.closing("b")
	r.Bytes, r.Space = 10<<20, h.resize("b", 10, 20).Space
	h.log(r)
	h.log(proof.Record{Type: proof.KEYS, NodeID: prooftest.Node1, Keys: []proof.KeyChange{{Role: proof.RoleNode,
		Old: prooftest.Text(prooftest.Key("node1")), New: prooftest.Text(prooftest.Key("new"))}}}, "node1", "new")
	d := opening("d", 40, 1)
	d.Beacon = h.w.Beacon(5)
	last := h.log(d, "new")
	h.log(lostAfter(t, last), "operator")
	found, sum := h.audit(t)
	if len(found) != 0 {
		t.Errorf("found %+v", found)
	}
	want := proof.Summary{Leaves: 10, Nodes: 2, Opened: 4, Closed: 2, Lost: 2, DeadlinesMet: 4}
	if sum != want {
		t.Errorf("summary %+v, want %+v", sum, want)
	}
}

// foreign is a beacon of a tree that is nobody's.
func foreign(origin string, size uint64) *proof.Beacon {
	return &proof.Beacon{Origin: origin, Size: size, Root: prooftest.Base64(prooftest.Hash{}), Digest: proof.ZeroHash}
}

// TestAudit: what one bundle cannot show, each thing by its name.
func TestAudit(t *testing.T) {
	for _, tt := range []struct {
		name string
		want []string
		make func(h *history)
	}{
		{"a second CLOSE", []string{proof.FindTwoCloses}, func(h *history) { h.opens("a", 0, 1); h.closes("a"); h.closes("a") }},
		{"CLOSE without OPEN", []string{proof.FindNoOpen}, func(h *history) {
			h.opens("a", 0, 1)
			r := h.closing("a")
			r.LeaseID = id("b")
			h.log(r)
		}},
		{"two leases with one id", []string{proof.FindLeaseTwice}, func(h *history) { h.opens("a", 0, 1); h.closes("a"); h.opens("a", 0, 1) }},
		{"record after the CLOSE", []string{proof.FindTwoCloses}, func(h *history) { h.opens("a", 0, 1); h.closes("a"); h.log(h.resize("a", 0, 2)) }},
		{"gap", []string{proof.FindGap}, func(h *history) {
			r := h.w.Next(opening("a", 0, 1))
			r.NodeSeq++
			h.logAs(r)
		}},
		{"fork", []string{proof.FindFork}, func(h *history) {
			l := h.opens("a", 0, 1)
			r := opening("b", 1, 1)
			r.NodeID, r.NodeSeq, r.PrevHash = l.Record.NodeID, l.Record.NodeSeq, l.Record.PrevHash
			h.logAs(r)
		}},
		{"the same record again", []string{proof.FindTwice}, func(h *history) { h.w.Append(h.opens("a", 0, 1).Envelope) }},
		{"rollback", []string{proof.FindRollback}, func(h *history) {
			for range 70 {
				h.log(proof.Record{Type: proof.ENROL, NodeID: prooftest.Node1, Bytes: 100 << 20,
					Space: []proof.Space{{Drive: prooftest.Drive1, Extents: []proof.Range{{First: 0, Count: 100}}}}})
			}
			r := opening("a", 0, 1)
			r.NodeSeq, r.PrevHash = 2, strings.Repeat("1", 64)
			h.logAs(r)
		}},
		{"prevHash mismatch", []string{proof.FindChain}, func(h *history) {
			r := h.w.Next(opening("a", 0, 1))
			r.PrevHash = strings.Repeat("1", 64)
			h.logAs(r)
		}},
		{"overlap", []string{proof.FindOverlap}, func(h *history) { h.opens("a", 0, 10); h.opens("b", 9, 2) }},
		{"overlap by growing", []string{proof.FindOverlap}, func(h *history) { h.opens("a", 0, 5); h.opens("b", 5, 5); h.log(h.resize("a", 0, 6)) }},
		{"space leased again before its CLOSE", []string{proof.FindLeasedEarly}, func(h *history) {
			h.opens("a", 0, 10)
			h.opens("b", 0, 10)
			h.closes("a")
		}},
		{"RESIZE that loses space", []string{proof.FindSpace}, func(h *history) { h.opens("a", 0, 5); h.log(h.resize("a", 0, 4)) }},
		{"extents that the drive does not have", []string{proof.FindSpace}, func(h *history) { h.opens("a", 99, 2) }},
		{"drive retired with a lease on it", []string{proof.FindSpace}, func(h *history) {
			h.opens("a", 0, 1)
			h.log(proof.Record{Type: proof.RETIRE, NodeID: prooftest.Node1, Bytes: 100 << 20,
				Space: []proof.Space{{Drive: prooftest.Drive1, Extents: []proof.Range{{First: 0, Count: 100}}}}})
		}},
		{"CLOSE with another space", []string{proof.FindBinding}, func(h *history) {
			h.opens("a", 0, 5)
			r := h.closing("a")
			r.Space = opening("a", 0, 6).Space
			h.log(r)
		}},
		{"CLOSE with another key", []string{proof.FindBinding}, func(h *history) {
			h.opens("a", 0, 5)
			r := h.closing("a")
			r.KeyCommit = strings.Repeat("1", 64)
			h.log(r)
		}},
		{"CLOSE of another leaf", []string{proof.FindBinding}, func(h *history) {
			h.opens("a", 0, 5)
			r := h.closing("a")
			at := uint64(0)
			r.OpenLeafIndex = &at
			h.log(r)
		}},
		{"CLOSE of another number", []string{proof.FindBinding}, func(h *history) {
			h.opens("a", 0, 5)
			r := h.closing("a")
			r.OpenSeq = 1
			h.log(r)
		}},
		{"CLOSE on another boot", []string{proof.FindBinding}, func(h *history) {
			h.opens("a", 0, 5)
			r := h.closing("a")
			for i := range r.Events {
				r.Events[i].BootID = prooftest.Boot2
			}
			h.log(r)
		}},
		{"key that was released and is claimed", []string{proof.FindBinding}, func(h *history) {
			l := h.opens("a", 0, 5)
			h.log(proof.Record{Type: proof.KeyReleased, NodeID: prooftest.Node1, LeaseID: id("a"), OpenSeq: l.Record.NodeSeq})
			h.closes("a")
		}},
		{"CLOSE by another node", []string{proof.FindBinding}, func(h *history) {
			h.opens("a", 0, 5)
			r := h.closing("a")
			r.NodeID, r.NodeSeq, r.PrevHash = prooftest.Node2, 9, strings.Repeat("1", 64)
			h.logAs(r, "node2")
		}},
		{"not signed by its node", []string{proof.FindSignature}, func(h *history) { h.log(opening("a", 0, 1), "node2") }},
		{"node that nobody pinned", []string{proof.FindUnknownNode}, func(h *history) {
			r := opening("a", 0, 1)
			r.NodeID = strings.Repeat("09", 16)
			h.log(r, "node1")
		}},
		{"rotation that the new key did not sign", []string{proof.FindSignature}, func(h *history) {
			h.log(proof.Record{Type: proof.KEYS, NodeID: prooftest.Node1, Keys: []proof.KeyChange{{Role: proof.RoleNode,
				Old: prooftest.Text(prooftest.Key("node1")), New: prooftest.Text(prooftest.Key("new"))}}})
		}},
		{"key that was replaced", []string{proof.FindSignature}, func(h *history) {
			h.log(proof.Record{Type: proof.KEYS, NodeID: prooftest.Node1, Keys: []proof.KeyChange{{Role: proof.RoleNode,
				Old: prooftest.Text(prooftest.Key("node1")), New: prooftest.Text(prooftest.Key("new"))}}}, "node1", "new")
			h.opens("a", 0, 1)
		}},
		{"no envelope", []string{proof.FindMalformed}, func(h *history) { h.w.Append([]byte("{}")) }},
		{"no record", []string{proof.FindMalformed}, func(h *history) {
			h.w.LogPayload(proof.Record{NodeID: "nobody"}, []byte("{}"), prooftest.Key("node1"))
		}},
		{"beacon newer than the record", []string{proof.FindBeacon}, func(h *history) {
			r := opening("a", 0, 1)
			r.Beacon = foreign(prooftest.Origin, 2)
			h.log(r)
		}},
		{"beacon of another history", []string{proof.FindSplitView}, func(h *history) {
			r := opening("a", 0, 1)
			r.Beacon = foreign(prooftest.Origin, 1)
			h.log(r)
		}},
		{"beacon of a log that nobody pinned", []string{proof.FindBeacon}, func(h *history) {
			r := opening("a", 0, 1)
			r.Beacon = foreign("log.example/other", 1)
			h.log(r)
		}},
		{"NODE_LOST of a node that is not there", []string{proof.FindBinding}, func(h *history) {
			r := lostAfter(t, h.opens("a", 0, 1))
			r.LostNode.NodeID = prooftest.Node2
			h.log(r, "operator")
		}},
		{"NODE_LOST that knows another last record", []string{proof.FindBinding}, func(h *history) {
			l := h.opens("a", 0, 1)
			h.opens("b", 1, 1)
			h.log(lostAfter(t, l), "operator")
		}},
		{"NODE_LOST that knows another history", []string{proof.FindBinding}, func(h *history) {
			r := lostAfter(t, h.opens("a", 0, 1))
			r.LostNode.LastHash = strings.Repeat("1", 64)
			h.log(r, "operator")
		}},
		{"records of a lost node", []string{proof.FindAfterLost, proof.FindTwoCloses}, func(h *history) {
			h.log(lostAfter(t, h.opens("a", 0, 1)), "operator")
			h.closes("a")
		}},
		{"NODE_LOST that no operator signed", []string{proof.FindSignature}, func(h *history) {
			h.log(lostAfter(t, h.opens("a", 0, 1)), "node1")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHistory()
			tt.make(h)
			found, _ := h.audit(t)
			if !slices.Equal(codes(found), tt.want) {
				t.Errorf("found %+v, want %v", found, tt.want)
			}
			for _, f := range found {
				if f.Text == "" || f.Index >= uint64(len(h.w.Leaves)) {
					t.Errorf("finding %+v says nothing, or is about no leaf", f)
				}
			}
		})
	}
}

// TestAuditFirst: a log takes a node's first record at any number, and what it
// closes may be from before.
func TestAuditFirst(t *testing.T) {
	h := &history{open: map[string]prooftest.Logged{}}
	r := prooftest.Closing(opening("a", 0, 1), 0, proof.ResultOK)
	r.NodeSeq, r.PrevHash, r.OpenSeq, r.OpenLeafIndex = 41, strings.Repeat("1", 64), 40, nil
	h.logAs(r)
	found, _ := h.audit(t)
	if !slices.Equal(codes(found), []string{proof.FindOpenBefore}) {
		t.Errorf("found %+v", found)
	}
}
