package second

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
)

// A key that the policy pins.
type key struct {
	role, name, text string
	from, to         time.Time
}

func (k key) id() string { return sum([]byte(k.text)) }

// verify checks a signature of a key in its text form.
func verify(text string, msg, sig []byte) bool {
	kind, b64, _ := strings.Cut(text, ":")
	raw, err := fromBase64(b64)
	if err != nil {
		return false
	}
	switch {
	case kind == "ed25519" && len(raw) == ed25519.PublicKeySize:
		return ed25519.Verify(raw, msg, sig)
	case kind == "p256":
		pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), raw)
		if err != nil {
			return false
		}
		var s struct{ R, S *big.Int }
		rest, err := asn1.Unmarshal(sig, &s)
		twice := func() *big.Int { return new(big.Int).Lsh(s.S, 1) }
		if err != nil || len(rest) > 0 || twice().Cmp(elliptic.P256().Params().N) > 0 {
			return false
		}
		h := sha256.Sum256(msg)
		return ecdsa.VerifyASN1(pub, h[:], sig)
	}
	return false
}

type policy struct {
	log       torchwood.Policy
	logOnly   torchwood.Policy // the same, and no witness is needed
	witnesses bool             // there is a quorum of them
	keys      []key
	tpms      map[string][2]string // attestation key and digest, by node
}

// vkeyOf is the key of a log's or witness's line, without its type, and its name
// with the key's hash.
func vkeyOf(f []string) (raw, id string, err error) {
	vkey := f[1]
	if f[0] == "witness" && len(f) > 2 {
		vkey = f[2]
	}
	parts := strings.Split(vkey, "+") // the key may have a + itself
	if len(parts) < 3 {
		return "", "", errors.New("a key is none")
	}
	b, err := fromBase64(strings.Join(parts[2:], "+"))
	if err != nil || len(b) != 33 {
		return "", "", errors.New("a key is none")
	}
	return string(b[1:]), parts[0] + "+" + parts[1], nil
}

func parsePolicy(text []byte) (*policy, error) {
	p := &policy{tpms: map[string][2]string{}}
	var tlog []string
	raws, ids, members := map[string]bool{}, map[string]bool{}, map[string]bool{}
	once := func(in map[string]bool, s string) error {
		if in[s] {
			return fmt.Errorf("%q stands twice", s)
		}
		in[s] = true
		return nil
	}
	for line := range strings.Lines(string(text)) {
		if i := strings.IndexFunc(line, func(r rune) bool { return r < 0x20 && r != '\t' && r != '\n' }); i >= 0 {
			return nil, errors.New("control characters")
		}
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		if len(f) < 2 {
			return nil, errors.New("a word alone")
		}
		var err error
		switch f[0] {
		case "log", "witness":
			tlog = append(tlog, line)
			raw, id, kerr := vkeyOf(f)
			if kerr != nil {
				return nil, kerr
			}
			err = errors.Join(once(raws, raw), once(ids, id))
		case "group":
			tlog = append(tlog, line)
			for _, m := range f[min(3, len(f)):] {
				err = errors.Join(err, once(members, m))
			}
		case "quorum":
			tlog = append(tlog, line)
			p.witnesses = f[1] != "none"
		case "node", "operator", "person":
			if len(f) != 5 {
				return nil, errors.New("a pinned key has four fields")
			}
			k := key{role: f[0], name: f[1], text: f[2]}
			k.from, k.to = parseTime(f[3]), parseTime(f[4])
			p.keys = append(p.keys, k)
			err = once(raws, rawOf(k.text))
		case "tpm":
			if len(f) != 4 {
				return nil, errors.New("a TPM has three fields")
			}
			p.tpms[f[1]] = [2]string{f[2], f[3]}
			err = once(raws, rawOf(f[2]))
		default:
			err = fmt.Errorf("unknown word %q", f[0])
		}
		if err != nil {
			return nil, err
		}
	}
	var err error
	if p.log, err = torchwood.ParsePolicy([]byte(strings.Join(tlog, ""))); err != nil {
		return nil, err
	}
	tlog = slices.DeleteFunc(tlog, func(line string) bool { return strings.Fields(line)[0] == "quorum" })
	few, err := torchwood.ParsePolicy([]byte(strings.Join(tlog, "") + "quorum none\n"))
	p.logOnly = logOnly{p.log, few}
	return p, err
}

// logOnly knows the keys of one policy and asks for the signatures of another.
type logOnly struct {
	torchwood.Policy
	few torchwood.Policy
}

func (l logOnly) Check(origin string, sigs []note.Signature) error { return l.few.Check(origin, sigs) }

func rawOf(text string) string {
	_, b64, _ := strings.Cut(text, ":")
	raw, err := fromBase64(b64)
	if err != nil {
		return text
	}
	return string(raw)
}

// parseTime is zero where there is none.
func parseTime(s string) time.Time {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}
	}
	return t
}

// quorumTimes are the earliest time by which enough witnesses had cosigned, and the
// latest since when enough did: it tries the checkpoint with those that had by each
// of their times, and with those that had not yet.
func (p *policy) quorumTimes(n *note.Note, origin string) (by, since time.Time) {
	if !p.witnesses {
		return by, since
	}
	for _, s := range n.Sigs[1:] {
		at, err := torchwood.CosignatureTimestamp(s)
		if err != nil {
			return time.Time{}, time.Time{}
		}
		before, after := []note.Signature{n.Sigs[0]}, []note.Signature{n.Sigs[0]}
		for _, o := range n.Sigs[1:] {
			other, err := torchwood.CosignatureTimestamp(o)
			if err != nil {
				continue
			}
			if other <= at {
				before = append(before, o)
			}
			if other >= at {
				after = append(after, o)
			}
		}
		t := time.Unix(at, 0)
		if p.log.Check(origin, before) == nil && (by.IsZero() || t.Before(by)) {
			by = t
		}
		if p.log.Check(origin, after) == nil && t.After(since) {
			since = t
		}
	}
	return by, since
}

// open reads an envelope and verifies that its signatures are of keys that are
// pinned, or that the payload's own rotation brings in.
func (p *policy) open(envelope []byte) (payload []byte, signers []key, err error) {
	var e envelopeJSON
	if err := strict(envelope, &e); err != nil {
		return nil, nil, err
	}
	payload, err = fromBase64(e.Payload)
	if err != nil || e.PayloadType != "application/vnd.in-toto+json" || len(e.Signatures) == 0 {
		return nil, nil, errors.New("no envelope of a statement")
	}
	msg := fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(e.PayloadType), e.PayloadType, len(payload), payload)
	known := p.keys
	var s statementJSON
	if strict(payload, &s) == nil {
		for _, c := range s.Predicate.Keys {
			known = append(slices.Clone(known), key{role: "new", text: c.New})
		}
	}
	for _, sig := range e.Signatures {
		i := slices.IndexFunc(known, func(k key) bool { return k.id() == sig.KeyID })
		raw, err := fromBase64(sig.Sig)
		if i < 0 || err != nil || !verify(known[i].text, msg, raw) {
			return nil, nil, errors.New("a signature is wrong, or of a key that nobody pinned")
		}
		if slices.Contains(signers, known[i]) {
			return nil, nil, errors.New("one key signed twice")
		}
		signers = append(signers, known[i])
	}
	return payload, signers, nil
}

// maySign checks that the record's maker is among its signers, and makes the
// changes that a KEYS record says.
func (p *policy) maySign(r *record) error {
	made := slices.ContainsFunc(r.signers, func(k key) bool {
		if strings.HasPrefix(r.NodeID, "operator/") {
			return k.role == "operator" && r.NodeID == "operator/"+k.id()[:16]
		}
		return k.role == "node" && k.name == r.NodeID
	})
	others := slices.ContainsFunc(r.signers, func(k key) bool { return k.role == "node" && k.name != r.NodeID })
	if !made || others {
		return errors.New("it is not signed by its maker, or by another node")
	}
	for _, c := range r.Keys {
		if c.Old == "" || c.Role != "node" && c.Role != "operator" {
			continue
		}
		signed := func(text string) bool {
			return slices.ContainsFunc(r.signers, func(k key) bool { return k.text == text })
		}
		i := slices.IndexFunc(p.keys, func(k key) bool { return k.role == c.Role && k.text == c.Old })
		if i < 0 || !signed(c.Old) || !signed(c.New) {
			return errors.New("a rotation is not signed by both keys")
		}
		keys := slices.Clone(p.keys)
		keys[i] = key{role: c.Role, name: keys[i].name, text: c.New}
		p.keys = keys
	}
	return nil
}
