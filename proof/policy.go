package proof

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Bounds of a policy.
const (
	maxPolicy      = 256 << 10 // bytes
	maxPolicyLines = 4096      // logs, witnesses, groups and pinned keys together
	maxPolicyURL   = 1024      // bytes
)

// A Policy is whom somebody trusts, written down before there is anything to
// be trusted: the file that a tenant pins before it opens a lease. Its first part is
// a C2SP tlog-policy; the second names the keys that sign records and
// completions.
//
//	log VKEY [URL]                       any of these may hold a record
//	witness NAME VKEY [URL]              Ed25519 cosignature/v1, type 0x04
//	group NAME all|any|K MEMBER…         members are named above; each is a member once
//	quorum NAME|none                     exactly one such line
//	node ID KEY NOT-BEFORE NOT-AFTER     a node's key; several lines where it was rotated
//	operator NAME KEY NOT-BEFORE NOT-AFTER
//	person NAME KEY NOT-BEFORE NOT-AFTER who completes certificates
//	tpm NODEID AK PCRDIGEST,…|-          a node's attestation key, and the hash of its PCRs as it may boot
//
// Times are RFC 3339 in UTC, or "-" for no bound; NOT-AFTER is the last second.
// Fields are separated by blanks or tabs, lines end with a line feed; empty lines and
// lines that begin with # are left out.
//
// One key stands on one line: under two names one witness would be a quorum of
// two, and what one party signed would be another's word. Two keys with one id
// are refused as well, for the same reason. A Policy does not change after it
// was made, and may be used by any number of goroutines.
type Policy struct {
	logs      []PolicyLog
	witnesses []PolicyWitness
	groups    []group
	quorum    string
	nodes     []PinnedKey
	operators []PinnedKey
	persons   []PinnedKey
	tpms      []PinnedTPM
}

// A PolicyLog is a log that may hold records.
type PolicyLog struct {
	Origin string // the name in its key, first line of its checkpoints
	VKey   string // C2SP signed-note, type 0x01
	URL    string // where it can be read, "" if the policy does not say

	key noteKey
}

// A PolicyWitness is a witness that the policy knows. Whether it counts is up
// to the quorum.
type PolicyWitness struct {
	Name string // in this policy, in groups and in [Cosignature]
	VKey string // C2SP signed-note, type 0x04
	URL  string // where it takes checkpoints, "" if the policy does not say

	key noteKey
}

// A group is witnessed when need of its members are.
type group struct {
	name    string
	word    string // all, any or the number, as it was written
	need    int    // 1 ≤ need ≤ len(members)
	members []string
}

// A PinnedKey is a key that the policy trusts to sign as Name, for a time.
type PinnedKey struct {
	Name      string // of a node its id, else a name
	Key       PublicKey
	NotBefore time.Time // zero: no bound
	NotAfter  time.Time // zero: no bound; the last second it may sign
}

// ValidDuring reports whether the key was valid all the time from one moment to
// another. A zero moment stands for one that is not known, and is within no bound.
func (k PinnedKey) ValidDuring(from, to time.Time) bool {
	return (k.NotBefore.IsZero() || !from.IsZero() && !from.Before(k.NotBefore)) &&
		(k.NotAfter.IsZero() || !to.IsZero() && !to.After(k.NotAfter))
}

// A PinnedTPM is the attestation key of a node's TPM.
type PinnedTPM struct {
	Node      string // the node's id
	AK        PublicKey
	PCRDigest string // hex SHA-256 over the quoted PCRs, or several with commas; "" where any will do
}

// Logs are the logs of the policy. The caller must not change what it gets.
func (p *Policy) Logs() []PolicyLog { return p.logs }

// Witnesses are the witnesses of the policy, in its order.
func (p *Policy) Witnesses() []PolicyWitness { return p.witnesses }

// NeedsWitnesses reports whether the policy has a quorum other than none.
func (p *Policy) NeedsWitnesses() bool { return p.quorum != quorumNone }

// Node returns the pinned keys of a node, none if it is not known.
func (p *Policy) Node(id string) []PinnedKey { return named(p.nodes, id) }

// Nodes returns all pinned keys of nodes.
func (p *Policy) Nodes() []PinnedKey { return p.nodes }

// Operators returns all pinned keys of operators.
func (p *Policy) Operators() []PinnedKey { return p.operators }

// Persons returns all pinned keys of persons.
func (p *Policy) Persons() []PinnedKey { return p.persons }

// Person returns the pinned keys of a person, none if it is not known.
func (p *Policy) Person(name string) []PinnedKey { return named(p.persons, name) }

// TPM returns the pinned attestation key of a node.
func (p *Policy) TPM(node string) (PinnedTPM, bool) {
	i := slices.IndexFunc(p.tpms, func(t PinnedTPM) bool { return t.Node == node })
	if i < 0 {
		return PinnedTPM{}, false
	}
	return p.tpms[i], true
}

func named(keys []PinnedKey, name string) []PinnedKey {
	var out []PinnedKey
	for _, k := range keys {
		if k.Name == name {
			out = append(out, k)
		}
	}
	return out
}

// CheckLog checks that the checkpoint bears exactly one signature of a log that
// the policy names, before all other lines, and that the log's name is the
// checkpoint's origin.
func (p *Policy) CheckLog(c *SignedCheckpoint) error {
	i := slices.IndexFunc(p.logs, func(l PolicyLog) bool { return l.Origin == c.Origin })
	if i < 0 {
		return fmt.Errorf("the policy names no log %q", shorten(c.Origin))
	}
	for j, s := range c.sigs {
		if !p.logs[i].key.made(s) {
			continue
		}
		if err := p.logs[i].key.verify(c.text, s); err != nil {
			return err
		}
		if j != 0 {
			return fmt.Errorf("the signature of the log %s is not the first", c.Origin)
		}
		return nil
	}
	return fmt.Errorf("the checkpoint is not signed with the key of the log %s that the policy names", c.Origin)
}

// CheckWitnesses checks every line after the log's: each has to be a correct
// cosignature of a witness that the policy names, one of each, in the order of
// their keys' names. It returns the checkpoint with them, and [ErrQuorum] besides
// where they are too few. REQUIRES: CheckLog returned nil.
func (p *Policy) CheckWitnesses(c *SignedCheckpoint) (Checkpoint, error) {
	out := c.Checkpoint
	out.Cosigned = nil
	for j, s := range c.sigs[1:] {
		i := slices.IndexFunc(p.witnesses, func(w PolicyWitness) bool { return w.key.made(s) })
		if i < 0 {
			return Checkpoint{}, fmt.Errorf("a signature of %s is of no witness that the policy names", shorten(s.name))
		}
		if j > 0 && compareSignatures(c.sigs[j], s) >= 0 { // sigs[j] is the line before
			return Checkpoint{}, fmt.Errorf("the cosignature of %s is there twice or out of order", p.witnesses[i].Name)
		}
		t, err := p.witnesses[i].key.verifyCosignature(c.text, s)
		if err != nil {
			return Checkpoint{}, err
		}
		out.Cosigned = append(out.Cosigned, Cosignature{Witness: p.witnesses[i].Name, Time: t})
	}
	if !p.quorumOf(out.Cosigned) {
		return out, fmt.Errorf("%w: %d of the witnesses cosigned the tree of %d leaves of %s, and they do not make up %q",
			ErrQuorum, len(out.Cosigned), out.Size, out.Origin, p.quorum)
	}
	return out, nil
}

// ErrQuorum is returned, wrapped, where all signatures of a checkpoint are
// correct, but the witnesses are fewer than the policy wants.
var ErrQuorum = errors.New("the quorum of witnesses is missing")

// CanonicalCheckpoint returns the one form in which a certificate carries a
// checkpoint that a log published: the log's line, then one line of each witness that the
// policy names, in the order of their keys' names. Lines of keys that the policy does not know are left out, as
// C2SP signed-note wants it of whoever reads a note; a wrong signature under a known key is
// an error. Fewer witnesses than the quorum are not.
func (p *Policy) CanonicalCheckpoint(note []byte) ([]byte, error) {
	c, err := p.canonical(note)
	if err != nil {
		return nil, err
	}
	return c.Marshal(), nil
}

// OpenCheckpoint verifies a checkpoint that a log published, and says whether
// the quorum of witnesses has cosigned it. What it ignores: see
// [Policy.CanonicalCheckpoint].
func (p *Policy) OpenCheckpoint(note []byte) (c Checkpoint, quorum bool, err error) {
	signed, quorum, err := p.opened(note)
	if err != nil {
		return Checkpoint{}, false, err
	}
	return signed.Checkpoint, quorum, nil
}

// opened is a checkpoint in its canonical form, with its witnesses.
func (p *Policy) opened(note []byte) (signed *SignedCheckpoint, quorum bool, err error) {
	if signed, err = p.canonical(note); err != nil {
		return nil, false, err
	}
	signed.Checkpoint, err = p.CheckWitnesses(signed)
	if err != nil && !errors.Is(err, ErrQuorum) {
		return nil, false, err
	}
	return signed, err == nil, nil
}

func (p *Policy) canonical(note []byte) (*SignedCheckpoint, error) {
	c, err := ParseCheckpoint(note)
	if err != nil {
		return nil, err
	}
	all := c.sigs
	c.sigs = nil
	take := func(k noteKey) {
		if i := slices.IndexFunc(all, k.made); i >= 0 {
			c.sigs = append(c.sigs, all[i])
		}
	}
	for _, l := range p.logs {
		if l.Origin == c.Origin {
			take(l.key)
		}
	}
	if err := p.CheckLog(c); err != nil {
		return nil, err
	}
	for _, w := range p.witnesses {
		take(w.key)
	}
	slices.SortFunc(c.sigs[1:], compareSignatures)
	if _, err := p.CheckWitnesses(c); err != nil && !errors.Is(err, ErrQuorum) {
		return nil, err
	}
	return c, nil
}

// QuorumTime is the earliest time by which, by the witnesses' clocks, a quorum
// had cosigned the checkpoint: what is in its tree is not younger, if one of every
// quorum is honest. False where the policy wants no witnesses, or they are too few.
func (p *Policy) QuorumTime(c Checkpoint) (time.Time, bool) {
	return p.quorumTime(c, func(a, b Cosignature) int { return a.Time.Compare(b.Time) })
}

// QuorumSince is the latest time from which on, by the witnesses' clocks, a quorum
// cosigned the checkpoint: who knows all these cosignatures knows them since then and
// not longer, if one of every quorum is honest. False as in [Policy.QuorumTime].
func (p *Policy) QuorumSince(c Checkpoint) (time.Time, bool) {
	return p.quorumTime(c, func(a, b Cosignature) int { return b.Time.Compare(a.Time) })
}

// quorumTime is the time of the cosignature that, in an order, makes up a quorum.
func (p *Policy) quorumTime(c Checkpoint, order func(a, b Cosignature) int) (time.Time, bool) {
	if !p.NeedsWitnesses() {
		return time.Time{}, false
	}
	by := slices.SortedFunc(slices.Values(c.Cosigned), order)
	for i := range by {
		if p.quorumOf(by[:i+1]) {
			return by[i].Time, true
		}
	}
	return time.Time{}, false
}

// quorumOf reports whether these witnesses are enough.
func (p *Policy) quorumOf(cosigned []Cosignature) bool {
	if !p.NeedsWitnesses() {
		return true
	}
	have := make(map[string]bool)
	for _, c := range cosigned {
		have[c.Witness] = true
	}
	for _, g := range p.groups { // each after its members
		n := 0
		for _, m := range g.members {
			if have[m] {
				n++
			}
		}
		have[g.name] = n >= g.need
	}
	return have[p.quorum]
}

// Marshal encodes the policy: logs, witnesses, groups, the quorum, then pinned
// keys, each in their order. Comments are not kept.
func (p *Policy) Marshal() []byte {
	var b bytes.Buffer
	for _, l := range p.logs {
		fmt.Fprintf(&b, "log %s%s\n", l.VKey, optional(l.URL))
	}
	for _, w := range p.witnesses {
		fmt.Fprintf(&b, "witness %s %s%s\n", w.Name, w.VKey, optional(w.URL))
	}
	for _, g := range p.groups {
		fmt.Fprintf(&b, "group %s %s", g.name, g.word)
		for _, m := range g.members {
			fmt.Fprintf(&b, " %s", m)
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "quorum %s\n", p.quorum)
	for _, kind := range []struct {
		word string
		keys []PinnedKey
	}{{"node", p.nodes}, {"operator", p.operators}, {"person", p.persons}} {
		for _, k := range kind.keys {
			fmt.Fprintf(&b, "%s %s %s %s %s\n", kind.word, k.Name, k.Key, policyTime(k.NotBefore), policyTime(k.NotAfter))
		}
	}
	for _, t := range p.tpms {
		digest := t.PCRDigest
		if digest == "" {
			digest = "-"
		}
		fmt.Fprintf(&b, "tpm %s %s %s\n", t.Node, t.AK, digest)
	}
	return b.Bytes()
}

// compareSignatures orders lines by their key's name and id, whatever policy is
// applied to them: everybody who makes a certificate gets the same bytes.
func compareSignatures(a, b noteSignature) int {
	return cmp.Or(strings.Compare(a.name, b.name), cmp.Compare(a.id, b.id))
}

func optional(url string) string {
	if url == "" {
		return ""
	}
	return " " + url
}

func policyTime(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}
