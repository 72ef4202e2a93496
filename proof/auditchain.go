package proof

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A chain is what an audit knows of the records of one node, or operator.
type chain struct {
	first, last uint64 // numbers of its records in the log
	hash        string // of the payload of the last
	recent      [keptRecords]struct {
		seq  uint64
		hash string // of the payload
	} // the newest records, the one with number n at n%keptRecords
	holes []hole                // numbers that are not there yet, at most maxHoles
	open  map[string]*openLease // its leases that are open
	lost  bool                  // a NODE_LOST names it
}

// A hole is a run of a node's numbers that the log passed over. A log that keeps
// its nodes' order has none. One that took a batch in parts may have stored a later
// part first: the records are all there, in another order than they were made. Each
// that comes late counts all the same, and has to fit what is around the hole.
type hole struct {
	from, to      uint64 // numbers, from ≤ to
	before, after string // hash of record from-1; prevHash of record to+1
	index         uint64 // of the leaf that came instead
	first         bool   // they are before the node's first record in the log, which may have any number
}

func (c *chain) take(seq uint64, hash string) {
	c.last, c.hash = seq, hash
	c.keep(seq, hash)
}

func (c *chain) keep(seq uint64, hash string) {
	if k := &c.recent[seq%keptRecords]; seq > k.seq {
		k.seq, k.hash = seq, hash
	}
}

// record takes one leaf: who signed it, where it stands in its node's chain, and
// what it is about.
func (a *Auditor) record(index uint64, leaf []byte) {
	e, err := ParseEnvelope(leaf)
	if err != nil {
		a.find(Finding{Index: index, Code: FindMalformed, Text: fmt.Sprintf("leaf %d: %v", index, err)})
		return
	}
	r, err := ParsePayload(e.Payload)
	if err != nil {
		a.find(Finding{Index: index, Code: FindMalformed, Text: fmt.Sprintf("leaf %d: %v", index, err)})
		return
	}
	if len(a.keys.nodes[r.NodeID]) == 0 && !strings.HasPrefix(r.NodeID, OperatorPrefix) {
		a.about(index, &r, FindUnknownNode, "the policy has no key of this node")
		return // A1
	}
	signers, err := a.keys.signers(e, &r)
	if err != nil {
		a.about(index, &r, FindSignature, "%v", err)
		return // A1
	}
	if !a.chained(index, &r, PayloadHash(e.Payload)) {
		return
	}
	a.validity(index, &r, signers)
	a.beacon(index, &r)
	switch r.Type {
	case OPEN:
		a.opened(index, &r)
	case RESIZE:
		a.resized(index, &r)
	case KeyReleased:
		a.released(index, &r)
	case CLOSE:
		a.closed(index, &r)
	case NodeLost:
		a.nodeLost(index, &r)
	case KEYS:
		if err := a.keys.rotate(&r, signers); err != nil {
			a.about(index, &r, FindSignature, "%v", err)
		}
	case ENROL, SANITIZE, RETIRE:
		a.drive(index, &r)
	}
}

// about finds something about a record, which the text begins with.
func (a *Auditor) about(index uint64, r *Record, code, format string, args ...any) {
	a.find(Finding{Index: index, Node: r.NodeID, Lease: r.LeaseID, Code: code,
		Text: fmt.Sprintf("leaf %d, %s record %d of %s: ", index, r.Type, r.NodeSeq, r.NodeID) + fmt.Sprintf(format, args...)})
}

// validity checks what witnesses' times say of when keys signed.
func (a *Auditor) validity(index uint64, r *Record, signers []PinnedKey) {
	for _, k := range signers {
		if _, seen := a.used[k]; !seen && !k.NotBefore.IsZero() {
			a.used[k] = index
		}
		if r.Beacon == nil || k.NotAfter.IsZero() {
			continue
		}
		if t, known := a.since[*r.Beacon]; known && t.After(k.NotAfter) {
			a.about(index, r, FindKeyValidity, "its key was valid until %s, and it names a checkpoint that was cosigned at %s",
				FormatTime(k.NotAfter), FormatTime(t))
		}
	}
}

// chained checks the record's place among those of its node, and reports whether
// it counts (A2). A log takes a node's first record at any number.
func (a *Auditor) chained(index uint64, r *Record, hash string) bool {
	c := a.chains[r.NodeID]
	if c == nil {
		c = &chain{first: r.NodeSeq, open: map[string]*openLease{}}
		if r.NodeSeq > 1 {
			c.holes = []hole{{from: 1, to: r.NodeSeq - 1, after: r.PrevHash, index: index, first: true}}
		}
		c.take(r.NodeSeq, hash)
		a.chains[r.NodeID] = c
		return true
	}
	if c.lost {
		a.about(index, r, FindAfterLost, "its node was declared lost before: what it recorded since is in doubt")
	}
	if i := slices.IndexFunc(c.holes, func(h hole) bool { return h.from <= r.NodeSeq && r.NodeSeq <= h.to }); i >= 0 {
		a.fill(index, c, i, r, hash)
		return true
	}
	if r.NodeSeq <= c.last {
		switch was := c.recent[r.NodeSeq%keptRecords]; {
		case was.seq == r.NodeSeq && was.hash == hash:
			a.about(index, r, FindTwice, "it is in the log already")
		case was.seq != r.NodeSeq:
			a.about(index, r, FindRollback, "its node had come to record %d before: its journal was set back", c.last)
		default:
			a.about(index, r, FindFork, "the log has another record with this number: its node tells two histories")
		}
		return false
	}
	if r.NodeSeq != c.last+1 {
		c.holes = append(c.holes, hole{from: c.last + 1, to: r.NodeSeq - 1, before: c.hash, after: r.PrevHash, index: index})
		a.bounded(r.NodeID, c)
	} else if r.PrevHash != c.hash {
		a.about(index, r, FindChain, "it follows a record with the hash %.16s…, and the one before it has %.16s…", r.PrevHash, c.hash)
	}
	c.take(r.NodeSeq, hash)
	return true
}

// fill takes a record whose number is in a hole: it was stored later than it was
// made, and counts from here on.
func (a *Auditor) fill(index uint64, c *chain, i int, r *Record, hash string) {
	h := c.holes[i]
	a.about(index, r, FindOrder, "record %d of its node is in the log before it, at leaf %d: the log has stored them in another order than they were made",
		h.to+1, h.index)
	if r.NodeSeq == h.from && !h.first && r.PrevHash != h.before {
		a.about(index, r, FindChain, "it follows a record with the hash %.16s…, and the one before it has %.16s…", r.PrevHash, h.before)
	}
	if r.NodeSeq == h.to && hash != h.after {
		a.about(index, r, FindFork, "record %d follows another record with this number: its node tells two histories", h.to+1)
	}
	var left []hole
	if h.from < r.NodeSeq {
		left = append(left, hole{from: h.from, to: r.NodeSeq - 1, before: h.before, after: r.PrevHash, index: index, first: h.first})
	}
	if r.NodeSeq < h.to {
		left = append(left, hole{from: r.NodeSeq + 1, to: h.to, before: hash, after: h.after, index: h.index})
	}
	c.holes = slices.Replace(c.holes, i, i+1, left...)
	c.first = min(c.first, r.NodeSeq)
	c.keep(r.NodeSeq, hash)
	a.bounded(r.NodeID, c)
}

// bounded gives up the oldest hole, if there are too many: what comes late for it is
// a rollback.
func (a *Auditor) bounded(node string, c *chain) {
	if len(c.holes) > maxHoles {
		a.gap(node, c.holes[0])
		c.holes = slices.Delete(c.holes, 0, 1)
	}
}

// gap finds that a hole was not filled.
func (a *Auditor) gap(node string, h hole) {
	if h.first {
		return
	}
	a.find(Finding{Index: h.index, Node: node, Code: FindGap, Text: fmt.Sprintf(
		"leaf %d, record %d of %s: records %d to %d of its node are not in the log", h.index, h.to+1, node, h.from, h.to)})
}

// finishChains finds the records that never came.
func (a *Auditor) finishChains() {
	for _, node := range slices.Sorted(maps.Keys(a.chains)) {
		for _, h := range a.chains[node].holes {
			a.gap(node, h)
		}
	}
}
