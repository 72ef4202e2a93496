package proof

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Words of a policy.
const (
	quorumNone = "none"
	wordAll    = "all"
	wordAny    = "any"
)

// ParsePolicy decodes a policy, and names the line that it refuses: a word that
// it does not know, a control character (a carriage return among them), one key on two
// lines, two keys with one id, a name that was taken or not yet defined, a
// member of two groups, no quorum or two.
func ParsePolicy(text []byte) (*Policy, error) {
	if len(text) > maxPolicy {
		return nil, fmt.Errorf("a policy has %d bytes, %d are allowed", len(text), maxPolicy)
	}
	r := policyReader{
		policy: &Policy{}, names: map[string]bool{quorumNone: true}, members: map[string]bool{},
		keys: map[string]int{}, ids: map[string]int{},
	}
	for line := range strings.Lines(string(text)) {
		r.line++
		if err := r.read(line); err != nil {
			return nil, fmt.Errorf("line %d of the policy: %w", r.line, err)
		}
	}
	if r.policy.quorum == "" {
		return nil, errors.New("the policy has no quorum: name a witness or a group, or write \"quorum none\"")
	}
	return r.policy, nil
}

// A policyReader is a policy as far as it was read.
type policyReader struct {
	policy  *Policy
	line    int
	names   map[string]bool // of witnesses and groups, and none
	members map[string]bool // names that are a group's member
	keys    map[string]int  // raw keys, and the line of each
	ids     map[string]int  // ids of keys, and the line of each
}

func (r *policyReader) read(line string) error {
	text, ended := strings.CutSuffix(line, "\n")
	if !ended {
		return errors.New("the last line has no line feed: the policy was cut off")
	}
	for _, b := range []byte(text) {
		if b < 0x20 && b != '\t' || b == 0x7f {
			return fmt.Errorf("byte %#02x is not allowed: lines end with a line feed alone", b)
		}
	}
	f := strings.FieldsFunc(text, func(c rune) bool { return c == ' ' || c == '\t' })
	if len(f) == 0 || strings.HasPrefix(f[0], "#") {
		return nil
	}
	p := r.policy
	if len(p.logs)+len(p.witnesses)+len(p.groups)+len(p.nodes)+len(p.operators)+len(p.persons)+len(p.tpms) >= maxPolicyLines {
		return fmt.Errorf("a policy has at most %d entries", maxPolicyLines)
	}
	switch word := f[0]; word {
	case "log":
		return r.log(f[1:])
	case "witness":
		return r.witness(f[1:])
	case "group":
		return r.group(f[1:])
	case "quorum":
		return r.quorum(f[1:])
	case "node":
		return r.pinned(&p.nodes, f[1:])
	case "operator":
		return r.pinned(&p.operators, f[1:])
	case "person":
		return r.pinned(&p.persons, f[1:])
	case "tpm":
		return r.tpm(f[1:])
	default:
		return fmt.Errorf("%q is no word of a policy", shorten(word))
	}
}

func (r *policyReader) log(f []string) error {
	if len(f) < 1 || len(f) > 2 {
		return errors.New("want: log VKEY [URL]")
	}
	k, url, err := r.note(f, algEd25519)
	if err != nil {
		return err
	}
	for _, l := range r.policy.logs {
		if l.Origin == k.name {
			return fmt.Errorf("two logs are named %q", k.name)
		}
	}
	r.policy.logs = append(r.policy.logs, PolicyLog{Origin: k.name, VKey: k.String(), URL: url, key: k})
	return nil
}

func (r *policyReader) witness(f []string) error {
	if len(f) < 2 || len(f) > 3 {
		return errors.New("want: witness NAME VKEY [URL]")
	}
	if err := r.define(f[0]); err != nil {
		return err
	}
	k, url, err := r.note(f[1:], algCosignature)
	if err != nil {
		return err
	}
	r.policy.witnesses = append(r.policy.witnesses, PolicyWitness{Name: f[0], VKey: k.String(), URL: url, key: k})
	return nil
}

// note reads the key of a log or a witness and the address that may follow.
func (r *policyReader) note(f []string, alg byte) (k noteKey, url string, err error) {
	if k, err = parseNoteKey(f[0], alg); err != nil {
		return k, "", err
	}
	if len(f) == 2 {
		url = f[1]
	}
	if len(url) > maxPolicyURL {
		return k, "", fmt.Errorf("an address has %d bytes, %d are allowed", len(url), maxPolicyURL)
	}
	return k, url, r.once(string(k.key), fmt.Sprintf("%s+%08x", k.name, k.id))
}

func (r *policyReader) group(f []string) error {
	if len(f) < 3 {
		return errors.New("want: group NAME all|any|K MEMBER…")
	}
	g := group{name: f[0], word: f[1], members: f[2:]}
	switch g.word {
	case wordAll:
		g.need = len(g.members)
	case wordAny:
		g.need = 1
	default:
		n, err := strconv.Atoi(g.word)
		if err != nil || strconv.Itoa(n) != g.word || n < 1 || n > len(g.members) {
			return fmt.Errorf("%q of %d members cannot be had", shorten(g.word), len(g.members))
		}
		g.need = n
	}
	for _, m := range g.members {
		if m == quorumNone || !r.names[m] {
			return fmt.Errorf("no witness and no group is named %q above", shorten(m))
		}
		if r.members[m] {
			return fmt.Errorf("%q is a member already: it would count twice", shorten(m))
		}
		r.members[m] = true
	}
	if err := r.define(g.name); err != nil {
		return err
	}
	r.policy.groups = append(r.policy.groups, g)
	return nil
}

func (r *policyReader) quorum(f []string) error {
	switch {
	case len(f) != 1:
		return errors.New("want: quorum NAME|none")
	case r.policy.quorum != "":
		return errors.New("the quorum is defined already")
	case !r.names[f[0]]:
		return fmt.Errorf("no witness and no group is named %q above", shorten(f[0]))
	}
	r.policy.quorum = f[0]
	return nil
}

func (r *policyReader) pinned(to *[]PinnedKey, f []string) error {
	if len(f) != 4 {
		return errors.New("want: node|operator|person NAME KEY NOT-BEFORE NOT-AFTER")
	}
	if !validKeyName(f[0]) {
		return fmt.Errorf("%q is no name", shorten(f[0]))
	}
	key, err := r.key(f[1])
	if err != nil {
		return err
	}
	k := PinnedKey{Name: f[0], Key: key}
	for i, t := range []*time.Time{&k.NotBefore, &k.NotAfter} {
		if *t, err = parsePolicyTime(f[2+i]); err != nil {
			return err
		}
	}
	if !k.NotBefore.IsZero() && !k.NotAfter.IsZero() && k.NotAfter.Before(k.NotBefore) {
		return fmt.Errorf("the key of %s would end before it begins", k.Name)
	}
	*to = append(*to, k)
	return nil
}

func (r *policyReader) tpm(f []string) error {
	if len(f) != 3 {
		return errors.New("want: tpm NODEID AK PCRDIGEST[,PCRDIGEST]…|-")
	}
	if _, twice := r.policy.TPM(f[0]); twice || !validKeyName(f[0]) {
		return fmt.Errorf("%q is no name, or has a TPM already", shorten(f[0]))
	}
	key, err := r.key(f[1])
	if err != nil {
		return err
	}
	t := PinnedTPM{Node: f[0], AK: key}
	if f[2] != "-" {
		t.PCRDigest = f[2]
		if err := checkDigests(t.digests()); err != nil {
			return err
		}
	}
	r.policy.tpms = append(r.policy.tpms, t)
	return nil
}

func (r *policyReader) key(text string) (PublicKey, error) {
	k, err := ParsePublicKey(text)
	if err != nil {
		return k, err
	}
	raw := k.String()
	if ed, ok := k.Key().(ed25519.PublicKey); ok {
		raw = string(ed) // as the keys of logs and witnesses are written
	}
	return k, r.once(raw, k.KeyID())
}

// define takes a name for a witness or a group.
func (r *policyReader) define(name string) error {
	if len(name) > maxNoteName || r.names[name] || slices.Contains([]string{wordAll, wordAny}, name) {
		return fmt.Errorf("the name %q is taken, or too long", shorten(name))
	}
	r.names[name] = true
	return nil
}

// once refuses a key that stands on an earlier line, and an id that another
// key has.
func (r *policyReader) once(raw, id string) error {
	if at, twice := r.keys[raw]; twice {
		return fmt.Errorf("the key of line %d stands here again: one key is one party", at)
	}
	if at, twice := r.ids[id]; twice {
		return fmt.Errorf("the key has the id %s of the one on line %d: their signatures cannot be told apart", shorten(id), at)
	}
	r.keys[raw], r.ids[id] = r.line, r.line
	return nil
}

func parsePolicyTime(s string) (time.Time, error) {
	if s == "-" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil || t.IsZero() || t.UTC().Format(time.RFC3339) != s {
		return time.Time{}, fmt.Errorf("%q is neither a time such as 2026-11-23T09:00:00Z nor \"-\"", shorten(s))
	}
	return t, nil
}
