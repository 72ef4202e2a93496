package proof

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"
)

// An openLease is a lease that has no CLOSE yet.
type openLease struct {
	open  Record
	index uint64  // of the OPEN
	space []Space // that it has now
	taken []taken // extents that other leases were given meanwhile, at most maxTaken
	freed uint64  // the leaf with which its key was released, 0 if it was not
	boot  string  // on which its key was generated, "" if nobody observed it
}

// taken says that another lease was given an extent that was held.
type taken struct {
	index  uint64 // of the record that gave it
	by     string // the other lease
	drive  string
	extent uint32
}

func (a *Auditor) opened(index uint64, r *Record) {
	_, open := a.leases[r.LeaseID]
	if _, ended := a.ended[r.LeaseID]; open || ended {
		a.about(index, r, FindLeaseTwice, "a lease %s was opened before", r.LeaseID)
		return
	}
	a.sum.Opened++
	l := &openLease{open: *r, index: index, space: r.Space}
	if e, ok := r.Event(EventKeyGenerated); ok {
		l.boot = e.BootID
	}
	a.leases[r.LeaseID] = l
	a.chains[r.NodeID].open[r.LeaseID] = l
	a.hold(index, r, nil)
}

// leaseOf returns the open lease that a record is about, and finds what is wrong
// if there is none.
func (a *Auditor) leaseOf(index uint64, r *Record) *openLease {
	if l := a.leases[r.LeaseID]; l != nil {
		return l
	}
	if at, ok := a.ended[r.LeaseID]; ok {
		a.about(index, r, FindTwoCloses, "lease %s ended with leaf %d already", r.LeaseID, at)
	} else if c := a.chains[r.NodeID]; r.OpenSeq < c.first {
		a.about(index, r, FindOpenBefore, "lease %s was opened with record %d, and the log has this node's records from %d on",
			r.LeaseID, r.OpenSeq, c.first)
	} else {
		a.about(index, r, FindNoOpen, "lease %s was never opened in the log", r.LeaseID)
	}
	return nil
}

// bound checks that a later record of a lease says of it what its OPEN says.
// It may leave out what it would repeat.
func (a *Auditor) bound(index uint64, r *Record, l *openLease) bool {
	o := &l.open
	if r.NodeID != o.NodeID {
		a.about(index, r, FindBinding, "lease %s is of node %s", r.LeaseID, o.NodeID)
		return false
	}
	wrong := func(field string, is, was any) {
		a.about(index, r, FindBinding, "%s of lease %s is %v, and was %v when it was opened with leaf %d", field, r.LeaseID, is, was, l.index)
	}
	if r.OpenSeq != o.NodeSeq {
		wrong("openSeq", r.OpenSeq, o.NodeSeq)
	}
	if r.OpenLeafIndex != nil && *r.OpenLeafIndex != l.index {
		wrong("openLeafIndex", *r.OpenLeafIndex, l.index)
	}
	for _, f := range []struct{ name, is, was string }{
		{"tenantCommit", r.TenantCommit, o.TenantCommit}, {"cipher", r.Cipher, o.Cipher},
		{"keyMode", string(r.KeyMode), string(o.KeyMode)}, {"keyCommit", r.KeyCommit, o.KeyCommit},
		{"nodeCommit", r.NodeCommit, o.NodeCommit}, {"shareCommit", r.ShareCommit, o.ShareCommit}, {"eraseBy", r.EraseBy, o.EraseBy},
	} {
		if f.is != "" && f.is != f.was {
			wrong(f.name, f.is, cmp.Or(f.was, "not there"))
		}
	}
	return true
}

func (a *Auditor) released(index uint64, r *Record) {
	if l := a.leaseOf(index, r); l != nil && a.bound(index, r, l) {
		l.freed = index
	}
}

func (a *Auditor) resized(index uint64, r *Record) {
	l := a.leaseOf(index, r)
	if l == nil || !a.bound(index, r, l) {
		return
	}
	if !within(l.space, r.Space) {
		a.about(index, r, FindSpace, "lease %s loses space while it is open", r.LeaseID)
	}
	a.free(r.LeaseID, l.space)
	a.hold(index, r, l.space)
	l.space = r.Space
}

func (a *Auditor) closed(index uint64, r *Record) {
	l := a.leaseOf(index, r)
	if l == nil || !a.bound(index, r, l) {
		return
	}
	if !sameSpace(r.Space, l.space) {
		a.about(index, r, FindBinding, "lease %s closes with another space than it had", r.LeaseID)
	}
	if l.freed > 0 && slices.Contains(r.Claims, ClaimKeyCommitted) {
		a.about(index, r, FindBinding, "it claims that the node is committed to the key of lease %s, which was released with leaf %d", r.LeaseID, l.freed)
	}
	if e, ok := r.Event(EventKeyDestroyed); ok && l.boot != "" && e.BootID != l.boot {
		a.about(index, r, FindBinding, "the key of lease %s was made on boot %s, and cannot have been destroyed on %s", r.LeaseID, l.boot, e.BootID)
	}
	a.sum.Closed++
	a.end(index, l, r)
}

// end takes a lease off the open ones.
func (a *Auditor) end(index uint64, l *openLease, r *Record) {
	id := l.open.LeaseID
	for _, t := range l.taken {
		a.find(Finding{Index: t.index, Node: l.open.NodeID, Lease: t.by, Code: FindLeasedEarly, Text: fmt.Sprintf(
			"leaf %d gives extent %d of drive %s to lease %s, before lease %s that held it ended with leaf %d", t.index, t.extent, t.drive, t.by, id, index)})
	}
	a.free(id, l.space)
	delete(a.leases, id)
	delete(a.chains[l.open.NodeID].open, id)
	a.ended[id] = index
	if l.open.EraseBy == "" {
		return
	}
	until, err := ParseTime(l.open.EraseBy)
	if err != nil {
		panic("proof: deadline of a parsed record: " + err.Error())
	}
	if r.Beacon != nil {
		if t, known := a.since[*r.Beacon]; known && t.After(until) {
			a.sum.DeadlinesMissed++
			a.find(Finding{Index: index, Node: l.open.NodeID, Lease: id, Code: FindLate, Text: fmt.Sprintf(
				"lease %s was to be erased by %s, and the record of its end names a checkpoint that was cosigned at %s", id, l.open.EraseBy, FormatTime(t))})
			return
		}
	}
	a.due = append(a.due, until)
}

// judge tells of all leases that have ended whether a witness's time, of the tree
// as it is now, shows that they met their deadline. A later checkpoint cannot show
// it of those that this one does not.
func (a *Auditor) judge(t time.Time) {
	for _, until := range a.due {
		if t.After(until) {
			a.sum.DeadlinesUnknown++
		} else {
			a.sum.DeadlinesMet++
		}
	}
	a.due = a.due[:0]
}

func (a *Auditor) nodeLost(index uint64, r *Record) {
	n := r.LostNode
	c := a.chains[n.NodeID]
	switch {
	case c == nil:
		a.about(index, r, FindBinding, "the log has no record of node %s", n.NodeID)
		return
	case c.last != n.LastSeq || c.hash != n.LastHash:
		a.about(index, r, FindBinding, "it says that record %d is the last of node %s, and the log has %d", n.LastSeq, n.NodeID, c.last)
	}
	c.lost = true
	lost := slices.SortedFunc(maps.Values(c.open), func(x, y *openLease) int { return cmp.Compare(x.index, y.index) })
	for _, l := range lost {
		a.sum.Lost++
		a.end(index, l, r)
	}
}

// finishLeases finds what is wrong with the leases that are open at the end.
func (a *Auditor) finishLeases(now time.Time) {
	a.sum.DeadlinesUnknown += uint64(len(a.due))
	a.due = nil
	for id, l := range a.leases {
		for _, t := range l.taken {
			a.find(Finding{Index: t.index, Node: l.open.NodeID, Lease: t.by, Code: FindOverlap, Text: fmt.Sprintf(
				"leaf %d gives extent %d of drive %s to lease %s, and lease %s holds it and has not ended", t.index, t.extent, t.drive, t.by, id)})
		}
		if l.open.EraseBy == "" {
			continue
		}
		until, err := ParseTime(l.open.EraseBy)
		if err == nil && now.After(until) {
			a.sum.DeadlinesMissed++
			a.find(Finding{Index: l.index, Node: l.open.NodeID, Lease: id, Code: FindOverdue, Text: fmt.Sprintf(
				"lease %s was to be erased by %s, and has no CLOSE in the log", id, l.open.EraseBy)})
		}
	}
}
