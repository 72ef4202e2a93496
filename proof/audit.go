package proof

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"slices"
	"time"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
)

// What an audit finds. One certificate shows what one lease's records say; that
// nothing beside them says otherwise, only all the log can show.
const (
	FindLeafMissing = "leaf_missing"       // leaves were not given one after the other from 0 on
	FindMalformed   = "malformed"          // a leaf is no envelope with a record
	FindUnknownNode = "unknown_node"       // the policy has no key for the record's node or operator
	FindSignature   = "signature"          // not signed with a key that may sign it
	FindKeyValidity = "key_validity"       // signed with a key before or after the time it is valid
	FindGap         = "gap"                // records of a node are not there
	FindOrder       = "order"              // a record was stored behind later ones of its node
	FindFork        = "fork"               // two records of a node with one number
	FindRollback    = "rollback"           // a record with a number that its node had used long before
	FindTwice       = "twice"              // the same record again
	FindChain       = "chain"              // prevHash is not the hash of the record before
	FindBeacon      = "beacon"             // a beacon newer than the record itself, or of no log of the policy
	FindSplitView   = "split_view"         // a node saw, or a witness signed, another tree than this
	FindNoOpen      = "close_without_open" // a record of a lease that was not opened in the log
	FindOpenBefore  = "open_before_log"    // of one that was opened before its node's first record in the log
	FindTwoCloses   = "two_closes"         // a record of a lease that has ended
	FindLeaseTwice  = "lease_twice"        // two leases with one id
	FindBinding     = "binding"            // a record of a lease contradicts its OPEN
	FindOverlap     = "overlap"            // an extent is held by two open leases
	FindLeasedEarly = "leased_early"       // an extent was leased again before the CLOSE of the lease that held it
	FindSpace       = "space"              // extents that the drive does not have, or that a lease lost while open
	FindOverdue     = "overdue"            // not closed, and its deadline has passed
	FindLate        = "late"               // closed after its deadline
	FindAfterLost   = "after_lost"         // a record of a node that was declared lost
	FindCheckpoint  = "checkpoint"         // the checkpoint is not the log's
	FindQuorum      = "quorum"             // too few witnesses have cosigned it
	FindRoot        = "root"               // the leaves are not the tree of the checkpoint
)

// A Finding is one thing that is wrong with a log.
type Finding struct {
	Index uint64 `json:"index"`           // of the leaf that shows it; of no leaf: how many there are
	Node  string `json:"node,omitempty"`  // whose record it is
	Lease string `json:"lease,omitempty"` // which lease it is about
	Code  string `json:"code"`            // one of the above
	Text  string `json:"text"`            // for people
}

// A Summary counts what an audit has seen.
type Summary struct {
	Leaves           uint64 `json:"leaves"`
	Nodes            int    `json:"nodes"`
	Opened           uint64 `json:"opened"` // leases
	Closed           uint64 `json:"closed"` // by their CLOSE
	Lost             uint64 `json:"lost"`   // by their node's NODE_LOST
	Open             uint64 `json:"open"`
	DeadlinesMet     uint64 `json:"deadlinesMet"`     // shown by a witness's time
	DeadlinesMissed  uint64 `json:"deadlinesMissed"`  // each a finding
	DeadlinesUnknown uint64 `json:"deadlinesUnknown"` // closed; no checkpoint between the CLOSE and the deadline was given
	BeaconsUnchecked uint64 `json:"beaconsUnchecked"` // older than the roots that are kept
	FindingsDropped  uint64 `json:"findingsDropped"`  // beyond the first 10,000
}

// Bounds of an audit.
const (
	maxFindings = 10_000
	keptRoots   = 1 << 16 // roots of the newest trees, for beacons
	keptRecords = 64      // hashes of a node's newest records, to tell a fork from a rollback
	maxHoles    = 64      // runs of a node's numbers that may still come
	maxTaken    = 64      // other leases that took what one lease held, or that one took from
)

// An Auditor reads a whole log, leaf by leaf, and says what is wrong with it:
// records that are missing, contradict each other or are not signed by whom the
// policy names; leases that never ended, or ended late; space that two leases
// held. What one bundle shows by itself is not repeated here, and a log without
// findings says nothing of what was never logged: a receipt does
// ([Options.Opened]).
//
// It keeps about 50 bytes of every lease that has ended, and some hundred of an
// open one. It has no goroutines and no clock, and is for one goroutine.
//
// Rules:
//
//	A1: a record that may not have been made by its node changes nothing: it is
//	    a finding, and the audit goes on as if it were not there.
//	A2: a number of a node's records counts once, the first time it is logged,
//	    be that behind later ones: then what it is about is judged from there on.
//	A3: a lease holds its space from its OPEN to its CLOSE, or to its node's
//	    NODE_LOST, in the order of the log.
//	A4: a time is a witness's. The node's clock is never read.
type Auditor struct {
	policy   *Policy
	findings []Finding
	sum      Summary

	tree   *compact.Range
	next   uint64                         // index of the next leaf, if none is missing
	broken bool                           // one is: roots say nothing any more
	roots  [keptRoots][32]byte            // of the tree with size n at n%keptRoots
	times  map[uint64]time.Time           // by which a quorum of witnesses had cosigned the tree, by its size
	since  map[Beacon]time.Time           // since when a quorum's cosignatures are known, by the checkpoint that has them
	heads  map[uint64][]*SignedCheckpoint // given, and not yet reached
	origin string                         // of the log, once a checkpoint was given
	early  []foreignBeacon                // judged once the origin is known
	seen   map[string]map[uint64][32]byte // beacons whose root was compared, by origin; bounded by keptRoots

	chains map[string]*chain
	keys   *keyring
	used   map[PinnedKey]uint64 // keys that are not valid from the beginning, and the leaf that each signed first
	leases map[string]*openLease
	ended  map[string]uint64 // leases that have ended, and the index of the record that says so
	drives map[string]*auditedDrive
	due    []time.Time // deadlines of leases that have ended since the last checkpoint
}

// NewAuditor returns an auditor that trusts whom the policy names. The policy's
// keys decide whose records count; keys that later KEYS records bring in count
// from then on.
func NewAuditor(p *Policy) *Auditor {
	rf := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	a := &Auditor{
		policy: p, tree: rf.NewEmptyRange(0), times: map[uint64]time.Time{}, since: map[Beacon]time.Time{}, heads: map[uint64][]*SignedCheckpoint{},
		seen: map[string]map[uint64][32]byte{}, chains: map[string]*chain{}, keys: newKeyring(p), used: map[PinnedKey]uint64{},
		leases: map[string]*openLease{}, ended: map[string]uint64{}, drives: map[string]*auditedDrive{},
	}
	if logs := p.Logs(); len(logs) == 1 {
		a.origin = logs[0].Origin
	}
	return a
}

// Add takes the next leaf of the log, its exact bytes. Leaves come in their
// order, from index 0.
func (a *Auditor) Add(index uint64, leaf []byte) {
	if index != a.next {
		a.find(Finding{Index: index, Code: FindLeafMissing,
			Text: fmt.Sprintf("leaf %d was read where leaf %d was expected: read the log from its beginning, one leaf after the other", index, a.next)})
		if index < a.next {
			return
		}
		a.broken = true
	}
	a.next = index + 1
	a.sum.Leaves++
	h := LeafHash(leaf)
	if err := a.tree.Append(h[:], nil); err != nil {
		panic("proof: appending to a tree from 0: " + err.Error())
	}
	a.record(index, leaf)
	a.grown()
}

// grown keeps the root of the tree as it is now, and compares it with the
// checkpoint of this size, if one was given.
func (a *Auditor) grown() {
	size := a.tree.End()
	root := a.root()
	a.roots[size%keptRoots] = root
	for _, c := range a.heads[size] {
		a.head(c, root)
	}
	delete(a.heads, size)
}

func (a *Auditor) root() [32]byte {
	if a.tree.End() == 0 {
		return [32]byte(rfc6962.DefaultHasher.EmptyRoot())
	}
	r, err := a.tree.GetRootHash(nil)
	if err != nil {
		panic("proof: root of a tree from 0: " + err.Error())
	}
	return [32]byte(r)
}

// head compares a checkpoint with the root of the tree of its size, and, where it
// is that, takes note of its times. REQUIRES: then the tree has that size now, and
// the policy has opened the checkpoint.
func (a *Auditor) head(signed *SignedCheckpoint, root [32]byte) {
	c := signed.Checkpoint
	if c.Root != root && a.broken {
		return // Add has said so
	}
	if c.Root != root {
		a.find(Finding{Index: c.Size, Code: FindSplitView, Text: fmt.Sprintf(
			"a checkpoint of %s with %d leaves that was given has another root than the leaves that were read: the log shows two histories", c.Origin, c.Size)})
		return
	}
	t, ok := a.policy.QuorumTime(c)
	if !ok {
		return
	}
	a.since[signed.Beacon()], _ = a.policy.QuorumSince(c)
	if old, known := a.times[c.Size]; !known || t.Before(old) {
		a.times[c.Size] = t
	}
	a.judge(t)
}

// AddCheckpoint takes a checkpoint of the log that was kept from an earlier
// audit or found in a certificate: the log has to agree with it, and its time
// tells by when the leaves before it were there. It is given before the leaf
// with the index of its size. Checkpoints without a quorum of witnesses are
// compared all the same.
func (a *Auditor) AddCheckpoint(note []byte) error {
	c, _, err := a.policy.opened(note)
	switch {
	case err != nil:
		return err
	case a.origin != "" && c.Origin != a.origin:
		return fmt.Errorf("the checkpoint is of the log %s, not of %s", c.Origin, a.origin)
	case c.Size < a.tree.End():
		return fmt.Errorf("the checkpoint has %d leaves, and %d were read: give it first", c.Size, a.tree.End())
	}
	a.origin = c.Origin
	if c.Size == a.tree.End() {
		a.head(c, a.root())
		return nil
	}
	if given := a.heads[c.Size]; len(given) > 0 && given[0].Root != c.Root {
		a.head(c, given[0].Root)
		return nil
	}
	a.heads[c.Size] = append(a.heads[c.Size], c)
	return nil
}

// Finish takes the log's newest checkpoint, which has to be of all leaves that
// were added, and the auditor's clock, which decides which deadlines have passed. It
// returns what was found, in the order of the leaves: nothing, if all is well. The
// auditor is of no use afterwards but for [Auditor.Summary].
func (a *Auditor) Finish(checkpoint []byte, now time.Time) []Finding {
	a.finishTree(checkpoint)
	for _, f := range a.early {
		if f.origin == a.origin {
			a.find(f.Finding)
		}
	}
	a.finishLeases(now)
	a.finishChains()
	for k, first := range a.used {
		for size, t := range a.times {
			if first < size && t.Before(k.NotBefore) {
				a.find(Finding{Index: first, Node: k.Name, Code: FindKeyValidity, Text: fmt.Sprintf(
					"the key of %s is valid from %s on, and had signed by %s", k.Name, FormatTime(k.NotBefore), FormatTime(t))})
				break
			}
		}
	}
	a.sum.Nodes, a.sum.Open = len(a.chains), uint64(len(a.leases))
	slices.SortFunc(a.findings, func(x, y Finding) int {
		return cmp.Or(cmp.Compare(x.Index, y.Index), cmp.Compare(x.Code, y.Code), cmp.Compare(x.Text, y.Text))
	})
	return a.findings
}

// Summary counts what was added. It is complete after Finish.
func (a *Auditor) Summary() Summary { return a.sum }

func (a *Auditor) finishTree(checkpoint []byte) {
	n := a.tree.End()
	c, quorum, err := a.policy.opened(checkpoint)
	switch {
	case err != nil:
		a.find(Finding{Index: n, Code: FindCheckpoint, Text: "the log's checkpoint: " + err.Error()})
		return
	case a.origin != "" && c.Origin != a.origin:
		a.find(Finding{Index: n, Code: FindCheckpoint, Text: fmt.Sprintf("the log's checkpoint is of %s, not of %s", c.Origin, a.origin)})
		return
	case !quorum:
		a.find(Finding{Index: n, Code: FindQuorum, Text: fmt.Sprintf(
			"%d witnesses have cosigned the log's checkpoint of %d leaves, fewer than the policy wants", len(c.Cosigned), c.Size)})
	}
	a.origin = c.Origin
	switch {
	case c.Size != n:
		a.find(Finding{Index: n, Code: FindRoot, Text: fmt.Sprintf("the log's checkpoint has %d leaves, and %d were read", c.Size, n)})
	case c.Root != a.root():
		a.find(Finding{Index: n, Code: FindRoot, Text: fmt.Sprintf("the %d leaves that were read are not the tree of the log's checkpoint", n)})
	default:
		a.head(c, c.Root)
	}
	for size, given := range a.heads {
		a.find(Finding{Index: n, Code: FindSplitView, Text: fmt.Sprintf(
			"a checkpoint of %s with %d leaves exists, and the log has only %d: it was cut off", given[0].Origin, size, n)})
	}
}

// find keeps a finding, if there is room.
func (a *Auditor) find(f Finding) {
	if len(a.findings) == maxFindings {
		a.sum.FindingsDropped++
		return
	}
	a.findings = append(a.findings, f)
}

// A foreignBeacon is a finding about a beacon that counts only if the beacon is
// of the log that is audited, which is not known yet.
type foreignBeacon struct {
	Finding
	origin string
}

// beacon checks that the tree that a record names was there before it.
func (a *Auditor) beacon(index uint64, r *Record) {
	b := r.Beacon
	if b == nil {
		return
	}
	f := Finding{Index: index, Node: r.NodeID, Lease: r.LeaseID, Code: FindBeacon}
	if !slices.ContainsFunc(a.policy.Logs(), func(l PolicyLog) bool { return l.Origin == b.Origin }) {
		f.Text = fmt.Sprintf("record %d of %s names a checkpoint of %s, a log that the policy does not have", r.NodeSeq, r.NodeID, b.Origin)
		a.find(f)
		return
	}
	if a.origin != "" && b.Origin != a.origin {
		return // of another log of the policy: not for this audit to say
	}
	raw, err := base64.StdEncoding.DecodeString(b.Root) // ParsePayload has checked it
	if err != nil {
		panic("proof: beacon of a parsed record: " + err.Error())
	}
	root := [32]byte(raw)
	if b.Size > index {
		f.Text = fmt.Sprintf("record %d of %s names a checkpoint of %d leaves, and is leaf %d itself", r.NodeSeq, r.NodeID, b.Size, index)
		a.foreign(f, b.Origin)
		return
	}
	known := a.seen[b.Origin]
	if known == nil {
		known = map[uint64][32]byte{}
		a.seen[b.Origin] = known
	}
	want, ok := known[b.Size]
	if !ok {
		if b.Size+keptRoots <= a.tree.End() || a.broken {
			a.sum.BeaconsUnchecked++
			return
		}
		if want = a.roots[b.Size%keptRoots]; len(known) < keptRoots {
			known[b.Size] = want
		}
	}
	if root != want {
		f.Code, f.Text = FindSplitView, fmt.Sprintf(
			"record %d of %s names a checkpoint of %d leaves with another root than this log's: its node was shown another history", r.NodeSeq, r.NodeID, b.Size)
		a.foreign(f, b.Origin)
	}
}

// foreign keeps a finding about a beacon until the log's origin is known.
func (a *Auditor) foreign(f Finding, origin string) {
	switch {
	case a.origin != "":
		a.find(f) // its beacon is of this log
	case len(a.early) == maxFindings:
		a.sum.FindingsDropped++
	default:
		a.early = append(a.early, foreignBeacon{f, origin})
	}
}
