package power

import (
	"fmt"
	"slices"

	"vacate/test/vm/wire"
)

// A book holds what the host was told about each lease, and says what the node
// must show of it after a power cut.
type book struct {
	entries map[string]*entry // by tenant: no two leases have the same
	order   []*entry          // as they began
}

// An entry is one lease.
type entry struct {
	tag    uint64
	tenant string
	phase  phase
	lease  string // its id, once known
	seen   view   // as it was shown when it had ended; never to change
}

// A phase is how far a lease was known to be.
//
//	opening → opened → closing → closed        as its client tells
//	any of them → ended                        when it was shown after a cut
type phase int

const (
	opening phase = iota // asked for; there may be no such lease
	opened
	closing // asked for
	closed  // the node has said so
	ended   // seen has what must stay so
)

// A view is a lease as `lease list --all -o json` prints it.
type view struct {
	ID       string `json:"id"`
	Tenant   string `json:"tenant"`
	State    string `json:"state"`
	Result   string `json:"result"`
	Space    string `json:"space"`
	OpenSeq  int64  `json:"openSeq"`
	CloseSeq int64  `json:"closeSeq"`
}

func newBook() *book { return &book{entries: map[string]*entry{}} }

// event notes what the guest said about a lease.
func (b *book) event(kind string, e wire.LeaseEvent) error {
	if kind == "opening" {
		if b.entries[e.Tenant] != nil {
			return fmt.Errorf("tenant %s begins twice", e.Tenant)
		}
		n := &entry{tag: e.Tag, tenant: e.Tenant}
		b.entries[e.Tenant] = n
		b.order = append(b.order, n)
		return nil
	}
	i := slices.IndexFunc(b.order, func(n *entry) bool { return n.tag == e.Tag })
	if i < 0 {
		return fmt.Errorf("%s: no lease has tag %#x", kind, e.Tag)
	}
	n := b.order[i]
	switch kind {
	case "opened":
		n.phase, n.lease = opened, e.Lease
	case "closing":
		n.phase = closing
	case "closed":
		if e.State == "closed" { // else its key is destroyed, and its record may be to come
			n.phase = closed
		}
	}
	return nil
}

// count says how many leases are in each phase.
func (b *book) count() (c [ended + 1]int) {
	for _, n := range b.order {
		c[n.phase]++
	}
	return c
}

// keptEnded is how many ended leases a node surely remembers (docs/spec/journal.md
// says 1000).
const keptEnded = 900

// check compares what the node shows after a cut with what was known before it.
// Findings that time may heal (a lease that is not settled yet) are apart.
func (b *book) check(list []view) (wrong, unsettled []string) {
	shown := map[string]view{}
	for _, v := range list {
		if b.entries[v.Tenant] == nil {
			wrong = append(wrong, fmt.Sprintf("lease %s of tenant %q was never asked for", v.ID, v.Tenant))
		}
		if other, ok := shown[v.Tenant]; ok {
			wrong = append(wrong, fmt.Sprintf("tenant %q has two leases, %s and %s", v.Tenant, other.ID, v.ID))
		}
		shown[v.Tenant] = v
	}
	for i, n := range b.order {
		v, ok := shown[n.tenant]
		if !ok {
			if n.phase != opening && len(b.order)-i <= keptEnded {
				wrong = append(wrong, fmt.Sprintf("lease %s of tenant %q is not there: it was %s", n.lease, n.tenant, n))
			}
			continue
		}
		w, u := n.check(v)
		wrong, unsettled = append(wrong, w...), append(unsettled, u...)
	}
	return wrong, unsettled
}

func (n *entry) check(v view) (wrong, unsettled []string) {
	say := func(format string, args ...any) []string {
		return []string{fmt.Sprintf("lease %s of tenant %q, which was %s, ", v.ID, n.tenant, n) + fmt.Sprintf(format, args...)}
	}
	if n.lease != "" && v.ID != n.lease {
		return say("has another id, %s", n.lease), nil
	}
	lost := v.State == "lost" && v.Result == "lost_boot"
	done := v.State == "closed" && v.Result == "ok"
	switch {
	case n.phase == ended && v != n.seen:
		return say("was %+v and is now %+v", n.seen, v), nil
	case n.phase == closed && !done:
		return say("is now %s with result %q", v.State, v.Result), nil
	case v.State == "open" || v.State == "closing" || v.State == "opening":
		return nil, say("is still %s after the cut", v.State)
	case n.phase == closing && !lost && !done, (n.phase == opening || n.phase == opened) && !lost:
		return say("is %s with result %q: want lost with lost_boot", v.State, v.Result), nil
	case v.OpenSeq == 0 || v.CloseSeq <= v.OpenSeq:
		return say("has OPEN record %d and CLOSE record %d", v.OpenSeq, v.CloseSeq), nil
	case v.Space != "free":
		return nil, say("has space that is %s", v.Space)
	}
	return nil, nil
}

// settle makes what the node shows the truth that must stay. A lease that was
// being opened and is not there never came to be.
func (b *book) settle(list []view) {
	for _, v := range list {
		n := b.entries[v.Tenant]
		n.phase, n.lease, n.seen = ended, v.ID, v
	}
	b.order = slices.DeleteFunc(b.order, func(n *entry) bool {
		if n.phase == opening {
			delete(b.entries, n.tenant)
		}
		return n.phase == opening
	})
}

func (n *entry) String() string {
	switch n.phase {
	case opening:
		return "being opened"
	case opened:
		return "open"
	case closing:
		return "being closed"
	case closed:
		return "closed"
	default:
		return "ended"
	}
}
