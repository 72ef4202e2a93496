package proof_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"vacate/proof"
	"vacate/proof/prooftest"
)

// TestAuditTree: the leaves, the checkpoint and what was kept from before have to be
// one log.
func TestAuditTree(t *testing.T) {
	h := newHistory()
	h.opens("a", 0, 1)
	h.opens("b", 1, 1)
	n := len(h.w.Leaves)
	good := h.w.Checkpoint(n, prooftest.Witnesses...)
	other := newHistory()
	other.w.Fill(n - 1)
	for name, tt := range map[string]struct {
		checkpoint string
		leaves     [][]byte
		kept       string
		want       []string
	}{
		"all is well":                    {good, h.w.Leaves, "", nil},
		"checkpoint of another tree":     {other.w.Checkpoint(n, prooftest.Witnesses...), h.w.Leaves, "", []string{proof.FindRoot}},
		"a leaf too few":                 {good, h.w.Leaves[:n-1], "", []string{proof.FindRoot}},
		"too few witnesses":              {h.w.Checkpoint(n, prooftest.Witnesses[0]), h.w.Leaves, "", []string{proof.FindQuorum}},
		"no checkpoint":                  {"", h.w.Leaves, "", []string{proof.FindCheckpoint}},
		"a checkpoint that was kept":     {good, h.w.Leaves, h.w.Checkpoint(2, prooftest.Witnesses...), nil},
		"another history that was kept":  {good, h.w.Leaves, other.w.Checkpoint(2, prooftest.Witnesses...), []string{proof.FindSplitView}},
		"a longer history that was kept": {good, h.w.Leaves, other.w.Checkpoint(n, prooftest.Witnesses...), []string{proof.FindSplitView}},
	} {
		t.Run(name, func(t *testing.T) {
			a := h.auditor(t)
			if tt.kept != "" {
				if err := a.AddCheckpoint([]byte(tt.kept)); err != nil {
					t.Fatal(err)
				}
			}
			for i, leaf := range tt.leaves {
				a.Add(uint64(i), leaf)
			}
			found := a.Finish([]byte(tt.checkpoint), prooftest.Start)
			if got := codes(found); !slices.Equal(got, append([]string{}, tt.want...)) {
				t.Errorf("found %+v, want %v", found, tt.want)
			}
		})
	}
	t.Run("a leaf is left out", func(t *testing.T) {
		a := h.auditor(t)
		a.Add(0, h.w.Leaves[0])
		a.Add(2, h.w.Leaves[2])
		found := a.Finish([]byte(good), prooftest.Start)
		if !slices.Contains(codes(found), proof.FindLeafMissing) || !slices.Contains(codes(found), proof.FindRoot) {
			t.Errorf("found %+v", found)
		}
	})
}

// TestAuditDeadlines: met where a witness's time says so, missed where one says
// that, unknown between; and a lease that is open is overdue by the auditor's clock.
func TestAuditDeadlines(t *testing.T) {
	h := newHistory()
	lease := func(name string, first uint32, by time.Time) prooftest.Logged {
		r := opening(name, first, 1)
		r.EraseBy = proof.FormatTime(by)
		h.open[name] = h.log(r)
		return h.open[name]
	}
	lease("a", 0, prooftest.Time(7)) // met: its CLOSE is leaf 5, and the tree of 7 is cosigned by then
	lease("b", 1, prooftest.Time(2)) // missed: its CLOSE names the tree of 4 leaves
	lease("c", 2, prooftest.Time(2)) // unknown: closed some time before the tree of 7
	lease("d", 3, prooftest.Time(9)) // open
	h.closes("a")
	r := h.closing("b")
	r.Beacon = h.w.Beacon(4)
	h.log(r)
	h.closes("c")
	kept := [][]byte{[]byte(h.w.Checkpoint(4, prooftest.Witnesses...)), []byte(h.w.Checkpoint(7, prooftest.Witnesses...))}
	audit := func(now time.Time) ([]proof.Finding, proof.Summary) {
		a := h.auditor(t)
		for _, c := range kept {
			if err := a.AddCheckpoint(c); err != nil {
				t.Fatal(err)
			}
		}
		for i, leaf := range h.w.Leaves {
			a.Add(uint64(i), leaf)
		}
		return a.Finish([]byte(h.w.Checkpoint(len(h.w.Leaves), prooftest.Witnesses...)), now), a.Summary()
	}
	found, sum := audit(prooftest.Time(8))
	if !slices.Equal(codes(found), []string{proof.FindLate}) || found[0].Lease != id("b") {
		t.Errorf("found %+v", found)
	}
	if want := (proof.Summary{Leaves: 8, Nodes: 1, Opened: 4, Closed: 3, Open: 1, DeadlinesMet: 1, DeadlinesMissed: 1, DeadlinesUnknown: 1}); sum != want {
		t.Errorf("summary %+v, want %+v", sum, want)
	}
	found, _ = audit(prooftest.Time(10))
	if !slices.Equal(codes(found), []string{proof.FindOverdue, proof.FindLate}) || found[0].Lease != id("d") {
		t.Errorf("found %+v", found)
	}
}

// TestAuditKeyValidity: what witnesses' times say of when a key signed.
func TestAuditKeyValidity(t *testing.T) {
	h := newHistory()
	h.opens("a", 0, 1)
	r := opening("b", 1, 1)
	r.Beacon = h.w.Beacon(2)
	h.log(r)
	for name, tt := range map[string]struct {
		from, to string
		want     []string
	}{
		"valid":     {proof.FormatTime(prooftest.Time(1)), proof.FormatTime(prooftest.Time(2)), nil},
		"too late":  {"-", proof.FormatTime(prooftest.Time(1)), []string{proof.FindKeyValidity}},
		"too early": {proof.FormatTime(prooftest.Time(9)), "-", []string{proof.FindKeyValidity}},
	} {
		t.Run(name, func(t *testing.T) {
			key := prooftest.Text(prooftest.Key("node1"))
			p, err := proof.ParsePolicy([]byte(strings.Replace(string(prooftest.Policy()), key+" - -", fmt.Sprintf("%s %s %s", key, tt.from, tt.to), 1)))
			if err != nil {
				t.Fatal(err)
			}
			a := proof.NewAuditor(p)
			if err := a.AddCheckpoint([]byte(h.w.Checkpoint(2, prooftest.Witnesses...))); err != nil {
				t.Fatal(err)
			}
			for i, leaf := range h.w.Leaves {
				a.Add(uint64(i), leaf)
			}
			found := a.Finish([]byte(h.w.Checkpoint(len(h.w.Leaves), prooftest.Witnesses...)), prooftest.Start)
			if got := codes(found); !slices.Equal(got, append([]string{}, tt.want...)) {
				t.Errorf("found %+v, want %v", found, tt.want)
			}
		})
	}
}

// BenchmarkAudit is the cost of one leaf of a log with 64 open leases.
func BenchmarkAudit(b *testing.B) {
	h := newHistory()
	for i := range 64 {
		r := opening("a", uint32(i), 1)
		r.LeaseID = fmt.Sprintf("aaaaaaaaaaaaaa%c%c", 'a'+i/8, 'a'+i%8)
		h.log(r)
	}
	last := h.log(opening("b", 64, 1))
	h.open["b"] = last
	end := h.closes("b")
	p, err := proof.ParsePolicy(prooftest.Policy())
	if err != nil {
		b.Fatal(err)
	}
	a := proof.NewAuditor(p)
	n := uint64(0)
	for _, leaf := range h.w.Leaves {
		a.Add(n, leaf)
		n++
	}
	b.ReportAllocs()
	for b.Loop() {
		a.Add(n, end.Envelope)
		n++
	}
}
