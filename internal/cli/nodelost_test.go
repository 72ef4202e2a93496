package cli

import (
	"context"
	"strings"
	"testing"

	"vacate/internal/translog"
	"vacate/proof"
	"vacate/proof/prooftest"
)

// TestLostReader: what a NODE_LOST has to say of a node is read from records that
// its keys signed, those of a rotation too; nobody else's count, and nothing counts
// that came after it.
func TestLostReader(t *testing.T) {
	w := &prooftest.World{}
	w.Fill(2) // leaves that are no records
	prooftest.Story{Rotated: true}.In(w)
	closed := w.Records[len(w.Records)-1]
	next := prooftest.Opening(proof.ModeNode)
	next.LeaseID, next.Beacon, next.EraseBy = prooftest.Lease2, nil, ""
	policy, err := proof.ParsePolicy(prooftest.Policy())
	if err != nil {
		t.Fatal(err)
	}
	operator, err := proof.NewPublicKey(prooftest.Key("operator").Public())
	if err != nil {
		t.Fatal(err)
	}
	read := func() *lostReader {
		l := &lostReader{node: prooftest.Node1, operator: proof.OperatorID(operator), policy: policy, open: map[string]lostLease{}}
		for i, leaf := range w.Leaves {
			l.add(uint64(i), leaf)
		}
		return l
	}
	l := read()
	if l.last.seq != closed.Record.NodeSeq || l.last.hash != proof.PayloadHash(closed.Payload) || len(l.open) != 0 || len(l.rotations) != 1 {
		t.Errorf("read %+v of %d open leases and %d rotations, want number %d", l.last, len(l.open), len(l.rotations), closed.Record.NodeSeq)
	}
	w.Log(w.Next(next), prooftest.Key("stranger"))
	if got := read(); got.last != l.last || len(got.open) != 0 {
		t.Errorf("a stranger's record counts: %+v", got.last)
	}
	opened := w.Log(w.Next(next), prooftest.Key("node1"))
	l = read()
	if o := l.open[prooftest.Lease2]; l.last.seq != opened.Record.NodeSeq || o.Index != uint64(opened.Index) || o.Bytes != next.Bytes || len(o.pieces) != 1 {
		t.Errorf("read %+v, %+v", l.last, l.open)
	}
	w.Log(w.Next(proof.Record{V: proof.RecordVersion, Type: proof.NodeLost, NodeID: l.operator,
		LostNode: &proof.LostNode{NodeID: prooftest.Node1, LastSeq: l.last.seq, LastHash: l.last.hash}}), prooftest.Key("operator"))
	next.LeaseID = strings.Repeat("c", 16)
	w.Log(w.Next(next), prooftest.Key("node1"))
	if got := read(); got.gone == nil || got.last != l.last || len(got.open) != 1 || got.own.seq != 1 {
		t.Errorf("after it was declared lost: %+v, %d open", got.last, len(got.open))
	}
}

// checkpoints is a log that publishes one checkpoint after the other; the last one stays.
type checkpoints struct {
	translog.Reader
	notes []string
	asked int
}

func (c *checkpoints) Checkpoint(context.Context) ([]byte, error) {
	note := c.notes[min(c.asked, len(c.notes)-1)]
	c.asked++
	return []byte(note), nil
}

// TestAwaitQuorum: a checkpoint that has the record, and not the witnesses, is not enough.
func TestAwaitQuorum(t *testing.T) {
	w := &prooftest.World{}
	w.Fill(3)
	policy, err := proof.ParsePolicy(prooftest.Policy())
	if err != nil {
		t.Fatal(err)
	}
	log := &checkpoints{notes: []string{w.Checkpoint(2, prooftest.Witnesses...), w.Checkpoint(3, prooftest.Witnesses[:1]...), w.Checkpoint(3, prooftest.Witnesses...)}}
	if err := awaitQuorum(t.Context(), log, policy, 2); err != nil || log.asked != 3 {
		t.Errorf("after %d checkpoints: %v", log.asked, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	log = &checkpoints{notes: []string{w.Checkpoint(3)}}
	if err := awaitQuorum(ctx, log, policy, 2); err == nil || !strings.Contains(err.Error(), "quorum of witnesses is missing") {
		t.Errorf("without witnesses: %v", err)
	}
}
