package proof_test

import (
	"strings"
	"testing"
	"time"

	"vacate/proof"
	"vacate/proof/prooftest"
)

// cosignedAt is the checkpoint of n leaves, with one witness's cosignature a time.
func cosignedAt(w *prooftest.World, n int, at map[string]time.Time) string {
	text := w.Text(n)
	out := text + "\n" + prooftest.NoteLine(prooftest.Origin, 1, prooftest.Key("log"), text, time.Time{})
	for _, name := range prooftest.Witnesses {
		if t, ok := at[name]; ok {
			out += prooftest.NoteLine(name, 4, prooftest.Key(name), text, t)
		}
	}
	return out
}

// TestNotBefore: a record is not older than the time since when a quorum's
// cosignatures are known whose hash it bears, and of no known age where the
// policy's quorum is not among them.
func TestNotBefore(t *testing.T) {
	auditor, provider, tenant := prooftest.Witnesses[0], prooftest.Witnesses[1], prooftest.Witnesses[2]
	at := func(minutes float64) time.Time {
		return prooftest.Start.Add(time.Duration(minutes * float64(time.Minute)))
	}
	for name, tt := range map[string]struct {
		cosigned map[string]time.Time
		want     string
	}{
		"all at once":                           {map[string]time.Time{auditor: at(4), provider: at(4), tenant: at(4)}, proof.FormatTime(at(4))},
		"the quorum is complete with the first": {map[string]time.Time{auditor: at(4), provider: at(2), tenant: at(3)}, proof.FormatTime(at(2))},
		"two say so, the third is not needed":   {map[string]time.Time{auditor: at(1), provider: at(4), tenant: at(3)}, proof.FormatTime(at(3))},
		"one lies about the future":             {map[string]time.Time{provider: at(99), tenant: at(3)}, proof.FormatTime(at(3))},
		"the operator's own only":               {map[string]time.Time{provider: at(4)}, ""},
		"others only":                           {map[string]time.Time{auditor: at(4), tenant: at(4)}, ""},
		"no witness":                            {nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var note string
			c := prooftest.Tell(prooftest.Story{Record: func(w *prooftest.World, r *proof.Record) {
				if r.Type == proof.OPEN {
					note = cosignedAt(w, 4, tt.cosigned)
					r.Beacon = prooftest.BeaconOf(note)
				}
			}})
			c.Bundle.Beacons[0].Checkpoint = note
			res, err := proof.Verify(c.Bytes(), c.Policy, proof.Options{Opened: c.Receipt})
			if err != nil {
				t.Fatal(err)
			}
			if got := res.Times[0].NotBefore; got != tt.want {
				t.Errorf("the OPEN was made not before %q, want %q", got, tt.want)
			}
		})
	}
}

// TestBeaconLeftOut: a bundle need not have what a record names; then nothing is
// proven of its age.
func TestBeaconLeftOut(t *testing.T) {
	c := prooftest.Tell(prooftest.Story{})
	c.Bundle.Beacons = c.Bundle.Beacons[1:]
	res, err := proof.Verify(c.Bytes(), c.Policy, proof.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if res.Times[0].NotBefore != "" || res.Times[1].NotBefore == "" {
		t.Errorf("times %+v", res.Times)
	}
}

// TestRevealStripped: a key that the tenant was given convicts nobody, though the
// tenant leaves the record of that out of the bundle; nor does that of a lost node.
func TestRevealStripped(t *testing.T) {
	c := prooftest.Tell(prooftest.Story{Released: true})
	c.Bundle.Records = append(c.Bundle.Records[:1], c.Bundle.Records[2:]...)
	lost := prooftest.Tell(prooftest.Story{Lost: true})
	for want, c := range map[string]*prooftest.Certificate{"does not claim key_committed": c, "unless the log has a KEY_RELEASED": lost} {
		res, err := proof.Verify(c.Bytes(), c.Policy, proof.Options{Opened: c.Receipt, RevealedKey: c.Key})
		if err != nil {
			t.Fatal(err)
		}
		if res.Violated != "" || !strings.Contains(res.Text(), want) {
			t.Errorf("violated %q; the text does not say %q:\n%s", res.Violated, want, res.Text())
		}
	}
}

// TestAuditBeaconTimes: an auditor that has another checkpoint of the tree that a
// CLOSE names, cosigned again much later, does not take that for the CLOSE's time.
func TestAuditBeaconTimes(t *testing.T) {
	h := newHistory()
	r := opening("a", 0, 1)
	r.EraseBy = proof.FormatTime(prooftest.Time(20))
	h.open["a"] = h.log(r)
	end := h.closing("a")
	end.Beacon = h.w.Beacon(2)
	h.log(end)
	text := map[string]time.Time{}
	for _, name := range prooftest.Witnesses {
		text[name] = prooftest.Time(60)
	}
	again := cosignedAt(&h.w, 2, text)
	for _, kept := range [][]string{{again}, {again, h.w.Checkpoint(2, prooftest.Witnesses...)}, {h.w.Checkpoint(2, prooftest.Witnesses...), again}} {
		a := h.auditor(t)
		for _, note := range kept {
			if err := a.AddCheckpoint([]byte(note)); err != nil {
				t.Fatal(err)
			}
		}
		for i, leaf := range h.w.Leaves {
			a.Add(uint64(i), leaf)
		}
		found := a.Finish([]byte(h.w.Checkpoint(len(h.w.Leaves), prooftest.Witnesses...)), prooftest.Start)
		if len(found) != 0 || a.Summary().DeadlinesMet != 1 {
			t.Errorf("%d checkpoints kept: found %+v, %+v", len(kept), found, a.Summary())
		}
	}
}
