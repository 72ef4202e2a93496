package proof_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"vacate/proof"
	"vacate/proof/prooftest"
)

// Every decoder of outside bytes: it never panics, and what it takes is written
// again exactly as it was.

// same demands that bytes that were taken are written again.
func same(t *testing.T, taken []byte, err error, again func() ([]byte, error)) {
	t.Helper()
	if err != nil {
		return
	}
	if got, err := again(); err != nil || !bytes.Equal(got, taken) {
		t.Errorf("took %q and wrote %q, %v", taken, got, err)
	}
}

// seedRecords adds what is made of each record of good certificates.
func seedRecords(f *testing.F, add func(c *prooftest.Certificate, l prooftest.Logged)) {
	for _, story := range prooftest.Kinds() {
		c := prooftest.Tell(story)
		for _, l := range c.Records {
			add(c, l)
		}
	}
}

func FuzzPayload(f *testing.F) {
	seedRecords(f, func(_ *prooftest.Certificate, l prooftest.Logged) { f.Add(l.Payload) })
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := proof.ParsePayload(b)
		same(t, b, err, func() ([]byte, error) { return proof.EncodePayload(r) })
	})
}

func FuzzEnvelope(f *testing.F) {
	signed := map[string]bool{}
	seedRecords(f, func(_ *prooftest.Certificate, l prooftest.Logged) {
		f.Add(l.Envelope)
		signed[string(l.Payload)] = true
	})
	p, err := proof.ParsePolicy(prooftest.Policy())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := proof.ParseEnvelope(b)
		same(t, b, err, func() ([]byte, error) { return encodeEnvelope(e) })
		for _, k := range p.Nodes() {
			if err == nil && e.VerifyKey(k.Key) == nil && !signed[string(e.Payload)] {
				t.Errorf("a payload that nobody signed is verified: %q", e.Payload)
			}
		}
	})
}

// encodeEnvelope writes DSSE's envelope anew, from its specification.
func encodeEnvelope(e proof.Envelope) ([]byte, error) {
	type signature struct {
		KeyID string `json:"keyid"`
		Sig   []byte `json:"sig"`
	}
	out := struct {
		PayloadType string      `json:"payloadType"`
		Payload     []byte      `json:"payload"`
		Signatures  []signature `json:"signatures"`
	}{"application/vnd.in-toto+json", e.Payload, nil}
	for _, s := range e.Signatures {
		out.Signatures = append(out.Signatures, signature(s))
	}
	return json.Marshal(out)
}

func FuzzTlogProof(f *testing.F) {
	for _, e := range prooftest.Tell(prooftest.Story{Resized: true}).Bundle.Records {
		f.Add([]byte(e.Proof))
	}
	f.Add([]byte("c2sp.org/tlog-proof@v1\nextra AA==\nindex 007\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := proof.ParseTlogProof(b)
		same(t, b, err, func() ([]byte, error) { return p.Marshal(), nil })
		if err == nil && p.Checkpoint.Size == 0 && proof.VerifyInclusion(p.Checkpoint.Checkpoint, p.Index, [32]byte{}, p.Path) == nil {
			t.Error("a tree of no leaves has one")
		}
	})
}

func FuzzCheckpoint(f *testing.F) {
	var w prooftest.World
	w.Fill(3)
	f.Add([]byte(w.Checkpoint(3, prooftest.Witnesses...)))
	f.Add([]byte(w.Checkpoint(0)))
	p, err := proof.ParsePolicy(prooftest.Policy())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := proof.ParseCheckpoint(b)
		same(t, b, err, func() ([]byte, error) { return c.Marshal(), nil })
		canon, err := p.CanonicalCheckpoint(b)
		if err != nil {
			return
		}
		if again, err := p.CanonicalCheckpoint(canon); err != nil || !bytes.Equal(again, canon) {
			t.Errorf("the canonical form %q is written %q, %v", canon, again, err)
		}
	})
}

func FuzzPolicy(f *testing.F) {
	f.Add(prooftest.Policy())
	f.Add([]byte("quorum none\n"))
	for _, a := range prooftest.Attacks() {
		f.Add(a.Policy)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := proof.ParsePolicy(b)
		if err != nil {
			return
		}
		text := p.Marshal()
		again, err := proof.ParsePolicy(text)
		if err != nil || !bytes.Equal(again.Marshal(), text) {
			t.Errorf("took %q, wrote %q, and read that as %v", b, text, err)
		}
	})
}

func FuzzBundle(f *testing.F) {
	for _, story := range prooftest.Kinds() {
		f.Add(prooftest.Tell(story).Bytes())
	}
	signed := map[string]bool{}
	seedRecords(f, func(_ *prooftest.Certificate, l prooftest.Logged) { signed[string(l.Envelope)] = true })
	for _, a := range prooftest.Attacks() {
		f.Add(a.Bundle)
		if b, err := proof.ParseBundle(a.Bundle); err == nil {
			for _, e := range b.Records {
				signed[string(e.Envelope)] = true
			}
		}
	}
	policy := prooftest.Policy()
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := proof.ParseBundle(b)
		same(t, b, err, func() ([]byte, error) { return v.Marshal() })
		// A good one with records, quotes or persons' words left out may pass, and none
		// with a record that nobody made.
		if _, err := proof.Verify(b, policy, proof.Options{}); err == nil {
			for _, e := range v.Records {
				if !signed[string(e.Envelope)] {
					t.Errorf("%q passes, with a record that nobody signed", b)
				}
			}
		}
	})
}

func FuzzReceipt(f *testing.F) {
	for _, story := range prooftest.Kinds() {
		if story.Drive != "" {
			continue // who opens none has no receipt
		}
		b, err := prooftest.Tell(story).Receipt.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := proof.ParseReceipt(b)
		same(t, b, err, func() ([]byte, error) { return r.Marshal() })
	})
}

func FuzzAnnex(f *testing.F) {
	for _, mode := range []proof.KeyMode{proof.ModeNode, proof.ModeSplit, proof.ModeTenant} {
		a := prooftest.NewAnnex(mode, proof.ResultOK)
		a.Device = append(a.Device, prooftest.Purged())
		b, err := proof.Encode(a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := proof.Decode[proof.Annex](b)
		same(t, b, err, func() ([]byte, error) { return proof.Encode(a) })
		if err == nil && a.Check() == nil && a.Sanitize.Validation.Value != "" {
			t.Error("a node has filled the validation")
		}
	})
}

func FuzzPublicKey(f *testing.F) {
	f.Add(prooftest.Text(prooftest.AK()))
	f.Add(prooftest.Text(prooftest.Key("node1")))
	f.Fuzz(func(t *testing.T, s string) {
		if k, err := proof.ParsePublicKey(s); err == nil && (k.String() != s || k.Key() == nil) {
			t.Errorf("took %q and wrote %q", s, k)
		}
	})
}

func FuzzQuote(f *testing.F) {
	f.Add(prooftest.Attestation([]byte("payload")), []byte("signature"))
	p, err := proof.ParsePolicy(prooftest.Policy())
	if err != nil {
		f.Fatal(err)
	}
	tpm, _ := p.TPM(prooftest.Node1)
	nonce := proof.QuoteNonce([]byte("payload"))
	f.Fuzz(func(t *testing.T, attest, sig []byte) {
		// What the key itself signs passes only with this nonce.
		if _, err := prooftest.QuoteOf([]byte("payload"), attest).Verify(tpm, []byte("payload")); err == nil && !bytes.Contains(attest, nonce[:]) {
			t.Errorf("a quote of something else passes: %x", attest)
		}
		if _, err := proof.NewQuote([]byte("payload"), attest, sig).Verify(tpm, []byte("payload")); err == nil {
			t.Errorf("a quote that no key made passes: %x, %x", attest, sig)
		}
	})
}

// FuzzOthers is for documents that are small or signed by others than nodes.
func FuzzOthers(f *testing.F) {
	audit, err := proof.CipherAudit{LeaseID: prooftest.Lease1, KeyCommit: strings.Repeat("1", 64), Sampled: 3, Matched: 3, Of: 9}.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(audit)
	prepared, err := proof.EncodePrepared(prooftest.Node1, prooftest.Lease1, []byte("recipient"), prooftest.Start)
	if err != nil {
		f.Fatal(err)
	}
	env, err := proof.Sign(prepared, prooftest.Key("node1"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(env)
	f.Add([]byte(prooftest.Tell(prooftest.Story{Complete: true}).Bundle.Completions[0]))
	p, err := proof.ParsePolicy(prooftest.Policy())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := proof.ParseCipherAudit(b)
		same(t, b, err, a.Marshal)
		if d, key, err := p.OpenPrepared(b, prooftest.Start); err == nil && (d.NodeID != prooftest.Node1 || len(key) == 0) {
			t.Errorf("node %s, which signed nothing, prepared a key of %d bytes", d.NodeID, len(key))
		}
		if d, err := p.OpenCompletion(b); err == nil && d.By.Name != "ann" {
			t.Errorf("%s, who signed nothing, completes a certificate", d.By.Name)
		}
		if _, _, err := proof.OpenStatement(b, p); err == nil {
			t.Error("a statement that nobody signed is opened")
		}
	})
}

// FuzzAuditor adds leaves of good logs with other bytes between them.
func FuzzAuditor(f *testing.F) {
	seedRecords(f, func(_ *prooftest.Certificate, l prooftest.Logged) { f.Add(l.Envelope, uint8(3), int64(0)) })
	h := newHistory()
	h.opens("a", 0, 10)
	h.opens("b", 0, 10)
	h.closes("a")
	p, err := proof.ParsePolicy(prooftest.Policy())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, leaf []byte, at uint8, now int64) {
		a := proof.NewAuditor(p)
		n := uint64(0)
		for i, l := range h.w.Leaves {
			if i == int(at)%len(h.w.Leaves) {
				a.Add(n, leaf)
				n++
			}
			a.Add(n, l)
			n++
		}
		found := a.Finish([]byte(h.w.Checkpoint(len(h.w.Leaves), prooftest.Witnesses...)), time.Unix(now%(1<<40), 0))
		if len(found) == 0 {
			t.Error("a leaf that is not in the log's tree is not found")
		}
	})
}
