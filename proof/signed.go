package proof

import (
	"errors"
	"fmt"
	"slices"
)

// A keyring is which keys may sign what, as far as the records that were read
// say: those that the policy pins, and those that rotations put in their place.
//
// Rules:
//
//	K1: a key comes in only by the policy, or by a KEYS record that the key which
//	    it replaces signed while it was in force, and that the new one signed too.
//	K2: a key that was replaced signs nothing after the record that says so.
type keyring struct {
	nodes     map[string][]PinnedKey
	operators []PinnedKey
	persons   []PinnedKey
}

func newKeyring(p *Policy) *keyring {
	k := &keyring{nodes: map[string][]PinnedKey{}, operators: slices.Clone(p.Operators()), persons: p.Persons()}
	for _, n := range p.Nodes() {
		k.nodes[n.Name] = append(k.nodes[n.Name], n)
	}
	return k
}

// signers verifies every signature of a record's envelope and returns the keys,
// or says which of them may not sign it.
func (k *keyring) signers(env Envelope, r *Record) ([]PinnedKey, error) {
	makers := k.nodes[r.NodeID]
	for _, o := range k.operators { // each has a chain of its own
		if OperatorID(o.Key) == r.NodeID {
			makers = append(makers, o)
		}
	}
	others := slices.Concat(k.operators, k.persons, newKeys(r))
	var out []PinnedKey
	made := false
	for _, s := range env.Signatures {
		is := func(p PinnedKey) bool { return p.Key.KeyID() == s.KeyID }
		i := slices.IndexFunc(makers, is)
		var key PinnedKey
		if i >= 0 {
			key, made = makers[i], true
		} else if i = slices.IndexFunc(others, is); i >= 0 {
			key = others[i]
		} else {
			return nil, fmt.Errorf("key %.16s signed it, which the policy does not name for %s", s.KeyID, r.NodeID)
		}
		if err := env.VerifyKey(key.Key); err != nil {
			return nil, err
		}
		out = append(out, key)
	}
	if !made {
		return nil, fmt.Errorf("no key that the policy names for %s signed it", r.NodeID)
	}
	return out, nil
}

// newKeys are those that a KEYS record brings in; they sign it to show that they
// are there.
func newKeys(r *Record) []PinnedKey {
	var out []PinnedKey
	for _, c := range r.Keys {
		if k, err := ParsePublicKey(c.New); err == nil && (c.Role == RoleNode || c.Role == RoleOperator) {
			out = append(out, PinnedKey{Name: r.NodeID, Key: k})
		}
	}
	return out
}

// rotate does what a KEYS record says. Keys of logs and TPMs come by the policy
// alone: nothing is done about them.
func (k *keyring) rotate(r *Record, signers []PinnedKey) error {
	signed := func(text string) bool {
		return slices.ContainsFunc(signers, func(p PinnedKey) bool { return p.Key.String() == text })
	}
	for _, c := range r.Keys {
		if c.Old == "" || c.Role != RoleNode && c.Role != RoleOperator {
			continue
		}
		if !signed(c.Old) || !signed(c.New) {
			return errors.New("a rotation is not signed by the old key and by the new one")
		}
		list := k.operators
		if c.Role == RoleNode {
			list = k.nodes[r.NodeID]
		}
		i := slices.IndexFunc(list, func(p PinnedKey) bool { return p.Key.String() == c.Old })
		if i < 0 {
			return fmt.Errorf("a rotation replaces a key that is not in force as %s", c.Role)
		}
		next, err := ParsePublicKey(c.New)
		if err != nil {
			return err
		}
		fresh := PinnedKey{Name: list[i].Name, Key: next}
		if j := slices.IndexFunc(list, func(p PinnedKey) bool { return p.Key == next }); j >= 0 {
			fresh = list[j] // the policy knows it already, with its times
		}
		list = slices.DeleteFunc(slices.Clone(list), func(p PinnedKey) bool { return p.Key.String() == c.Old || p.Key == next })
		list = append(list, fresh)
		if c.Role == RoleNode {
			k.nodes[r.NodeID] = list
		} else {
			k.operators = list
		}
	}
	return nil
}

func (v *verifier) signed() (string, error) {
	ring := newKeyring(v.policy)
	rotations := 0
	for i := range v.records {
		l := &v.records[i]
		var err error
		if l.signers, err = ring.signers(l.env, &l.Record); err != nil {
			return "", fmt.Errorf("%s: %w", v.name(i), err)
		}
		if l.Type != KEYS {
			continue
		}
		rotations++
		if err := ring.rotate(&l.Record, l.signers); err != nil {
			return "", fmt.Errorf("%s: %w", v.name(i), err)
		}
	}
	text := "every record is signed by keys that the policy names"
	if rotations > 0 {
		text += ", or that " + count(rotations, "rotation", "rotations") + " put in their place"
	}
	return text, nil
}

func (v *verifier) leaves() (string, error) {
	seen := map[[32]byte]bool{}
	for i := range v.records {
		l := &v.records[i]
		l.leaf = LeafHash(l.raw)
		if seen[l.leaf] {
			return "", fmt.Errorf("%s: it stands twice", v.name(i))
		}
		seen[l.leaf] = true
	}
	return "hashed the raw bytes of every record", nil
}

func (v *verifier) logs() (string, error) {
	origin := v.records[0].proof.Checkpoint.Origin
	check := func(c *SignedCheckpoint) error {
		if c.Origin != origin {
			return fmt.Errorf("checkpoints are of two logs, %s and %s", origin, c.Origin)
		}
		return v.policy.CheckLog(c)
	}
	for i := range v.records {
		if i > 0 && v.sameNote(i) {
			continue
		}
		if err := check(v.records[i].proof.Checkpoint); err != nil {
			return "", fmt.Errorf("%s: %w", v.name(i), err)
		}
	}
	for i, b := range v.beacons {
		if err := check(b.signed); err != nil {
			return "", fmt.Errorf("beacon %d: %w", i+1, err)
		}
	}
	v.result.Log = origin
	return "every checkpoint is signed by the key that the policy names for " + origin, nil
}

// sameNote reports whether record i's checkpoint, signatures included, is that of
// the record before: what was verified is not verified again.
func (v *verifier) sameNote(i int) bool {
	return string(v.records[i].proof.Checkpoint.Marshal()) == string(v.records[i-1].proof.Checkpoint.Marshal())
}

func (v *verifier) witnessed() (string, error) {
	for i := range v.records {
		l := &v.records[i]
		if i > 0 && v.sameNote(i) {
			l.head = v.records[i-1].head
			continue
		}
		var err error
		if l.head, err = v.policy.CheckWitnesses(l.proof.Checkpoint); err != nil {
			return "", fmt.Errorf("%s: %w", v.name(i), err)
		}
	}
	for i := range v.beacons {
		b := &v.beacons[i]
		var err error
		// With too few witnesses it proves no time, and a record need not name a beacon.
		if b.head, err = v.policy.CheckWitnesses(b.signed); err != nil && !errors.Is(err, ErrQuorum) {
			return "", fmt.Errorf("beacon %d: %w", i+1, err)
		}
	}
	v.result.Witnesses = []string{}
	for _, c := range v.last().head.Cosigned {
		v.result.Witnesses = append(v.result.Witnesses, c.Witness)
	}
	if !v.policy.NeedsWitnesses() {
		return "the policy asks for no witnesses", nil
	}
	return fmt.Sprintf("every record's checkpoint has the quorum; %s cosigned the last one", count(len(v.result.Witnesses), "witness", "witnesses")), nil
}

func (v *verifier) included() (string, error) {
	for i := range v.records {
		l := &v.records[i]
		if err := VerifyInclusion(l.head, l.proof.Index, l.leaf, l.proof.Path); err != nil {
			return "", fmt.Errorf("%s: %w", v.name(i), err)
		}
	}
	return "every record is in the log, at the index that its proof names", nil
}
