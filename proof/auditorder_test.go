package proof_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"vacate/proof"
	"vacate/proof/prooftest"
)

// stored is a history whose leaves stand in the log in another order: by their
// indices in the order in which they were made.
func (h *history) stored(order ...int) *history {
	out := &history{open: h.open}
	for _, i := range order {
		out.w.Append(h.w.Leaves[i])
	}
	return out
}

// numbered is an OPEN of one of 400 leases.
func numbered(i int) proof.Record {
	r := opening("a", uint32(i%100), 1)
	r.LeaseID = strings.Repeat(fmt.Sprintf("%c%c", 'a'+i/20, 'a'+i%20), 8)
	return r
}

// TestAuditOrder: a log that stored a node's records in another order than they were
// made is told from a node that lost some, or that tells two histories.
func TestAuditOrder(t *testing.T) {
	opened := func() *history { // numbers 1 to 6 of one node
		h := newHistory()
		h.opens("a", 0, 1)
		h.opens("b", 1, 1)
		h.opens("c", 2, 1)
		h.opens("d", 3, 1)
		h.opens("e", 4, 1)
		return h
	}
	other := func(number int, change func(r *proof.Record)) *history { // another record has this number
		h := opened()
		r := opening("f", 9, 1)
		r.NodeID, r.NodeSeq, r.PrevHash = prooftest.Node1, uint64(number), h.w.Records[number-1].Record.PrevHash
		if change != nil {
			change(&r)
		}
		h.logAs(r)
		return h
	}
	order, gap := proof.FindOrder, proof.FindGap
	for _, tt := range []struct {
		name string
		log  *history
		want []string
	}{
		{"in order", opened().stored(0, 1, 2, 3, 4, 5), nil},
		{"a batch in two parts, the later one first", opened().stored(0, 3, 4, 5, 1, 2), []string{order, order}},
		{"backwards", opened().stored(0, 5, 4, 3, 2, 1), []string{order, order, order, order}},
		{"backwards from the node's first on", opened().stored(5, 4, 3, 2, 1, 0), []string{order, order, order, order, order}},
		{"part of it never comes", opened().stored(0, 5, 2), []string{gap, gap, order}},
		{"all of it never comes", opened().stored(0, 1, 5), []string{gap}},
		{"late, and again", opened().stored(0, 2, 1, 1), []string{order, proof.FindTwice}},
		{"late, and another record", other(2, nil).stored(0, 2, 6), []string{proof.FindFork, order}},
		{"late, and it follows another record", other(3, func(r *proof.Record) { r.PrevHash = strings.Repeat("1", 64) }).stored(0, 1, 4, 6),
			[]string{gap, proof.FindChain, order}},
		{"late, beside the right one", other(2, nil).stored(0, 2, 1, 6), []string{order, proof.FindFork}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			found, _ := tt.log.audit(t)
			got := codes(found)
			slices.Sort(got)
			want := slices.Sorted(slices.Values(tt.want))
			if !slices.Equal(got, append([]string{}, want...)) {
				t.Errorf("found %+v, want %v", found, want)
			}
		})
	}
}

// TestAuditLateCounts: what comes late counts from there on: a lease that was closed
// before its OPEN was stored is open after it.
func TestAuditLateCounts(t *testing.T) {
	h := newHistory()
	h.opens("a", 0, 1)
	h.opens("b", 1, 1)
	h.closes("b")
	found, sum := h.stored(0, 2, 1, 3).audit(t)
	if !slices.Equal(codes(found), []string{proof.FindOrder, proof.FindBinding}) {
		t.Errorf("found %+v", found) // the CLOSE names the leaf that its OPEN had
	}
	if sum.Opened != 2 || sum.Closed != 1 || sum.Open != 1 {
		t.Errorf("summary %+v", sum)
	}
	found, sum = h.stored(0, 1, 3, 2).audit(t)
	if got := codes(found); !slices.Equal(got, []string{proof.FindNoOpen, proof.FindOrder}) || sum.Open != 2 {
		t.Errorf("found %+v, %+v", found, sum)
	}
}

// TestAuditHoles: an audit waits for so many missing records and no more.
func TestAuditHoles(t *testing.T) {
	h := newHistory()
	for i := range 140 {
		h.log(numbered(i))
	}
	var odd []int
	for i := 0; i <= 140; i += 2 {
		odd = append(odd, i)
	}
	found, _ := h.stored(append(odd, 1, 139)...).audit(t)
	count := map[string]int{}
	for _, f := range found {
		count[f.Code]++
	}
	if count[proof.FindGap] != 69 || count[proof.FindRollback] != 1 || count[proof.FindOrder] != 1 {
		t.Errorf("found %v", count)
	}
}

// TestAuditRetired: a drive that retires under many leases is told of with some.
func TestAuditRetired(t *testing.T) {
	h := newHistory()
	for i := range 90 {
		h.log(numbered(i))
	}
	h.log(proof.Record{Type: proof.RETIRE, NodeID: prooftest.Node1, Bytes: 100 << 20,
		Space: []proof.Space{{Drive: prooftest.Drive1, Extents: []proof.Range{{First: 0, Count: 100}}}}})
	found, _ := h.audit(t)
	if len(found) != 64 || found[0].Code != proof.FindSpace {
		t.Errorf("%d findings", len(found))
	}
}
