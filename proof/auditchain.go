package proof

import (
	"fmt"
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
	lost bool // a NODE_LOST names it
}

func (c *chain) take(seq uint64, hash string) {
	c.last, c.hash = seq, hash
	c.recent[seq%keptRecords].seq, c.recent[seq%keptRecords].hash = seq, hash
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
		c = &chain{first: r.NodeSeq}
		c.take(r.NodeSeq, hash)
		a.chains[r.NodeID] = c
		return true
	}
	if c.lost {
		a.about(index, r, FindAfterLost, "its node was declared lost before: what it recorded since is in doubt")
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
		a.about(index, r, FindGap, "records %d to %d of its node are not in the log before it", c.last+1, r.NodeSeq-1)
	} else if r.PrevHash != c.hash {
		a.about(index, r, FindChain, "it follows a record with the hash %.16s…, and the one before it has %.16s…", r.PrevHash, c.hash)
	}
	c.take(r.NodeSeq, hash)
	return true
}
