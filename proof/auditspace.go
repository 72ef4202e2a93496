package proof

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"strings"
)

// An auditedDrive is a drive and who holds which of its extents.
type auditedDrive struct {
	all  []Range // that it has; nil while no ENROL of it was seen
	held *holding
}

// A holding is a range of extents that an open lease has. Those of one drive are a
// treap: a search tree by first extent and lease, and a heap by a random rank, so
// that no log, however hostile, makes it deep. Ranges of two leases may overlap:
// that is what is looked for. nil is the empty tree.
type holding struct {
	Range
	lease       string
	last        uint64 // the largest End in this tree
	rank        uint64
	left, right *holding
}

func (h *holding) compare(first uint32, lease string) int {
	return cmp.Or(cmp.Compare(first, h.First), strings.Compare(lease, h.lease))
}

// with returns the tree h and the single holding n. REQUIRES: it is not there.
func (h *holding) with(n *holding) *holding {
	switch {
	case h == nil:
		return n.updated()
	case n.rank > h.rank:
		n.left, n.right = h.split(n.First, n.lease)
		return n.updated()
	case h.compare(n.First, n.lease) < 0:
		h.left = h.left.with(n)
	default:
		h.right = h.right.with(n)
	}
	return h.updated()
}

// without returns the tree h but for one holding.
func (h *holding) without(first uint32, lease string) *holding {
	if h == nil {
		return nil
	}
	switch c := h.compare(first, lease); {
	case c == 0:
		return joined(h.left, h.right)
	case c < 0:
		h.left = h.left.without(first, lease)
	default:
		h.right = h.right.without(first, lease)
	}
	return h.updated()
}

// split takes the tree apart: what comes before a holding, and what comes after it.
func (h *holding) split(first uint32, lease string) (before, after *holding) {
	if h == nil {
		return nil, nil
	}
	if h.compare(first, lease) < 0 {
		before, h.left = h.left.split(first, lease)
		return before, h.updated()
	}
	h.right, after = h.right.split(first, lease)
	return h.updated(), after
}

// joined makes one tree of two. REQUIRES: all of a comes before all of b.
func joined(a, b *holding) *holding {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	case a.rank > b.rank:
		a.right = joined(a.right, b)
		return a.updated()
	}
	b.left = joined(a, b.left)
	return b.updated()
}

func (h *holding) updated() *holding {
	h.last = h.End()
	for _, c := range []*holding{h.left, h.right} {
		if c != nil {
			h.last = max(h.last, c.last)
		}
	}
	return h
}

// overlapping visits the holdings that share an extent with r, by their first one,
// until visit says no; it reports whether it never did.
func (h *holding) overlapping(r Range, visit func(*holding) bool) bool {
	if h == nil || h.last <= uint64(r.First) {
		return true
	}
	if !h.left.overlapping(r, visit) {
		return false
	}
	if uint64(h.First) >= r.End() {
		return true
	}
	return (!h.Overlaps(r) || visit(h)) && h.right.overlapping(r, visit)
}

// hold gives a lease its space, and looks who else has any of it: of those that a
// record takes space from, the first 64 are told.
func (a *Auditor) hold(index uint64, r *Record, had []Space) {
	left := maxTaken
	for _, s := range r.Space {
		d := a.driveOf(s.Drive)
		for _, e := range s.Extents {
			if d.all != nil && !slices.ContainsFunc(d.all, func(all Range) bool { return all.First <= e.First && e.End() <= all.End() }) {
				a.about(index, r, FindSpace, "drive %s does not have all of its extents %d to %d", s.Drive, e.First, e.End()-1)
			}
			d.held.overlapping(e, func(h *holding) bool {
				if left == 0 {
					return false
				}
				left--
				both := Range{First: max(h.First, e.First)}
				both.Count = uint32(min(h.End(), e.End()) - uint64(both.First))
				other := a.leases[h.lease]
				if !within([]Space{{Drive: s.Drive, Commit: s.Commit, Extents: []Range{both}}}, had) && len(other.taken) < maxTaken {
					other.taken = append(other.taken, taken{index: index, by: r.LeaseID, drive: s.Drive, extent: both.First})
				}
				return true
			})
		}
	}
	for _, s := range r.Space {
		d := a.driveOf(s.Drive)
		for _, e := range s.Extents {
			d.held = d.held.with(&holding{Range: e, lease: r.LeaseID, rank: rand.Uint64()})
		}
	}
}

// free takes a lease's space back.
func (a *Auditor) free(id string, space []Space) {
	for _, s := range space {
		d := a.driveOf(s.Drive)
		for _, e := range s.Extents {
			d.held = d.held.without(e.First, id)
		}
		if d.held == nil && d.all == nil {
			delete(a.drives, s.Drive)
		}
	}
}

func (a *Auditor) driveOf(id string) *auditedDrive {
	d := a.drives[id]
	if d == nil {
		d = &auditedDrive{}
		a.drives[id] = d
	}
	return d
}

func (a *Auditor) drive(index uint64, r *Record) {
	d := a.driveOf(r.Space[0].Drive)
	switch r.Type {
	case ENROL:
		d.all = r.Space[0].Extents
	case RETIRE:
		left := maxTaken
		for _, e := range []Range{{0, 1 << 31}, {1 << 31, 1 << 31}} { // all that a drive can have
			d.held.overlapping(e, func(h *holding) bool {
				if left > 0 && h.First >= e.First { // else it was told of
					a.about(index, r, FindSpace, "lease %s is open on the drive that it retires", h.lease)
					left--
				}
				return left > 0
			})
		}
		d.all = []Range{}
	default: // SANITIZE leaves the drive with its space
	}
}
