package proof

import (
	"fmt"
	"slices"
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

// A keyBook knows which keys sign for whom, as KEYS records change it.
type keyBook struct {
	byName    map[string][]*PinnedKey // of nodes, by id
	operators []*PinnedKey
	used      map[*PinnedKey]keyUse
}

// A keyUse is where in the log a key has signed first.
type keyUse struct{ first uint64 }

func newKeyBook(p *Policy) *keyBook {
	b := &keyBook{byName: map[string][]*PinnedKey{}, used: map[*PinnedKey]keyUse{}}
	for _, k := range p.Nodes() {
		b.byName[k.Name] = append(b.byName[k.Name], &k)
	}
	for _, k := range p.Operators() {
		b.operators = append(b.operators, &k)
	}
	return b
}

// of returns the keys that may sign records of a chain.
func (b *keyBook) of(id string) []*PinnedKey {
	var out []*PinnedKey
	for _, k := range b.operators {
		if OperatorID(k.Key) == id {
			out = append(out, k)
		}
	}
	return append(out, b.byName[id]...)
}

// rotate makes the change of a KEYS record, if the keys that it is about have
// signed it.
func (b *keyBook) rotate(id string, e Envelope, c KeyChange) error {
	if c.Role != RoleNode && c.Role != RoleOperator || c.Old == "" {
		return nil // a log's key and a TPM's are the policy's matter, and so is a first key
	}
	old, err := ParsePublicKey(c.Old)
	if err != nil {
		return err
	}
	fresh, err := ParsePublicKey(c.New)
	if err != nil {
		return err
	}
	keys := b.byName[id]
	if c.Role == RoleOperator {
		keys = b.operators
	}
	i := slices.IndexFunc(keys, func(k *PinnedKey) bool { return k.Key == old })
	if i < 0 {
		if slices.ContainsFunc(keys, func(k *PinnedKey) bool { return k.Key == fresh }) {
			return nil // the policy was written after the change
		}
		return fmt.Errorf("it replaces the %s key %.16s, which is not one", c.Role, old.KeyID())
	}
	for _, k := range []PublicKey{old, fresh} {
		if err := e.VerifyKey(k); err != nil {
			return fmt.Errorf("it replaces a %s key: %w", c.Role, err)
		}
	}
	next := &PinnedKey{Name: keys[i].Name, Key: fresh}
	for _, k := range keys {
		if k.Key == fresh {
			next = k // with the bounds that the policy gives it
		}
	}
	keys = slices.DeleteFunc(slices.Clone(keys), func(k *PinnedKey) bool { return k.Key == old || k == next })
	keys = append(keys, next)
	if c.Role == RoleOperator {
		b.operators = keys
	} else {
		b.byName[id] = keys
	}
	return nil
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
	key, code, err := a.signer(e, &r)
	if err != nil {
		a.about(index, &r, code, "%v", err) // A1
		return
	}
	if !a.chained(index, &r, PayloadHash(e.Payload)) {
		return
	}
	a.validity(index, &r, key)
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
		for _, c := range r.Keys {
			if err := a.keys.rotate(r.NodeID, e, c); err != nil {
				a.about(index, &r, FindSignature, "%v", err)
			}
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

// signer returns the key of the record's node that has signed it.
func (a *Auditor) signer(e Envelope, r *Record) (*PinnedKey, string, error) {
	keys := a.keys.of(r.NodeID)
	if len(keys) == 0 {
		return nil, FindUnknownNode, fmt.Errorf("the policy has no key of %s", r.NodeID)
	}
	var last error
	for _, k := range keys {
		if last = e.VerifyKey(k.Key); last == nil {
			return k, "", nil
		}
	}
	return nil, FindSignature, fmt.Errorf("it is not signed with a key of %s: %w", r.NodeID, last)
}

// validity checks what witnesses' times say of when the key signed.
func (a *Auditor) validity(index uint64, r *Record, k *PinnedKey) {
	if _, seen := a.keys.used[k]; !seen {
		a.keys.used[k] = keyUse{first: index}
	}
	if r.Beacon == nil || k.NotAfter.IsZero() || r.Beacon.Origin != a.origin {
		return
	}
	if t, known := a.times[r.Beacon.Size]; known && t.After(k.NotAfter) {
		a.about(index, r, FindKeyValidity, "its key was valid until %s, and it names a checkpoint that was cosigned at %s",
			FormatTime(k.NotAfter), FormatTime(t))
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
