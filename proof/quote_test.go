package proof

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
)

// An attestation is a TPMS_ATTEST of a quote, part by part.
type attestation struct {
	magic    uint32
	kind     uint16
	signer   []byte
	nonce    []byte
	clock    uint64
	resets   uint32
	restarts uint32
	safe     byte
	firmware uint64
	banks    uint32
	bank     uint16
	mask     []byte
	digest   []byte
	behind   []byte
}

func goodAttestation(payload []byte) attestation {
	nonce := sha256.Sum256(payload)
	return attestation{
		magic: 0xff544347, kind: 0x8018, signer: []byte{0, 0xb, 1, 2, 3}, nonce: nonce[:], clock: 12345, resets: 7, restarts: 2,
		safe: 1, firmware: 0x0102, banks: 1, bank: 0xb, mask: []byte{0xff, 0x7b, 0}, digest: bytes.Repeat([]byte{9}, 32),
	}
}

func (a attestation) bytes() []byte {
	var b []byte
	sized := func(p []byte) { b = append(binary.BigEndian.AppendUint16(b, uint16(len(p))), p...) }
	b = binary.BigEndian.AppendUint32(b, a.magic)
	b = binary.BigEndian.AppendUint16(b, a.kind)
	sized(a.signer)
	sized(a.nonce)
	b = binary.BigEndian.AppendUint64(b, a.clock)
	b = binary.BigEndian.AppendUint32(b, a.resets)
	b = binary.BigEndian.AppendUint32(b, a.restarts)
	b = append(b, a.safe)
	b = binary.BigEndian.AppendUint64(b, a.firmware)
	b = binary.BigEndian.AppendUint32(b, a.banks)
	b = binary.BigEndian.AppendUint16(b, a.bank)
	b = append(append(b, byte(len(a.mask))), a.mask...)
	sized(a.digest)
	return append(b, a.behind...)
}

func newAK(t testing.TB) (*ecdsa.PrivateKey, PinnedTPM) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := NewPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return key, PinnedTPM{Node: strings.Repeat("07", 16), AK: public}
}

func quoted(t testing.TB, key *ecdsa.PrivateKey, payload, attest []byte) Quote {
	t.Helper()
	digest := sha256.Sum256(attest)
	sig, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err == nil {
		sig, err = normalS(sig)
	}
	if err != nil {
		t.Fatal(err)
	}
	return NewQuote(payload, attest, sig)
}

func TestQuote(t *testing.T) {
	key, pin := newAK(t)
	payload := []byte("payload")
	a := goodAttestation(payload)
	pin.PCRDigest = hex.EncodeToString(a.digest)
	got, err := quoted(t, key, payload, a.bytes()).Verify(pin, payload)
	want := Measured{PCRDigest: pin.PCRDigest, ResetCount: 7, RestartCount: 2, Clock: 12345, Safe: true, Firmware: 0x0102}
	if err != nil || got != want {
		t.Fatalf("%+v, %v", got, err)
	}
}

// TestQuoteBoots: a policy may allow several boots.
func TestQuoteBoots(t *testing.T) {
	key, pin := newAK(t)
	payload := []byte("payload")
	a := goodAttestation(payload)
	now, older := hex.EncodeToString(a.digest), strings.Repeat("ab", 32)
	for list, good := range map[string]bool{now: true, older + "," + now: true, now + "," + older: true, "": true, older: false, older + "," + strings.Repeat("cd", 32): false} {
		pin.PCRDigest = list
		if _, err := quoted(t, key, payload, a.bytes()).Verify(pin, payload); (err == nil) != good {
			t.Errorf("policy %q: %v", list, err)
		}
		if list == "" {
			list = "-"
		}
		text := "quorum none\ntpm " + pin.Node + " " + pin.AK.String() + " " + list + "\n"
		p, err := ParsePolicy([]byte(text))
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if got, ok := p.TPM(pin.Node); !ok || got != pin {
			t.Errorf("policy %q was read as %+v", list, got)
		}
	}
	many := ""
	for i := range MaxPCRDigests + 1 {
		many += fmt.Sprintf(",%064x", i)
	}
	for _, bad := range []string{now + "," + now, now + ",", "," + now, now + ",-", strings.ToUpper(older), many[1:]} {
		if _, err := ParsePolicy([]byte("quorum none\ntpm " + pin.Node + " " + pin.AK.String() + " " + bad + "\n")); err == nil {
			t.Errorf("a policy with digests %q was read", bad)
		}
	}
}

// TestQuoteRejects: each is signed by the pinned key.
func TestQuoteRejects(t *testing.T) {
	key, pin := newAK(t)
	payload := []byte("payload")
	pin.PCRDigest = hex.EncodeToString(goodAttestation(payload).digest)
	for name, tt := range map[string]struct {
		damage func(*attestation)
		want   string
	}{
		"no TPM made it":      {func(a *attestation) { a.magic++ }, "no TPM made"},
		"of a key, not PCRs":  {func(a *attestation) { a.kind = 0x8017 }, "not of registers"},
		"of the TPM's clock":  {func(a *attestation) { a.kind = 0x8019 }, "not of registers"},
		"another nonce":       {func(a *attestation) { a.nonce = bytes.Repeat([]byte{1}, 32) }, "made for something else"},
		"no nonce":            {func(a *attestation) { a.nonce = nil }, "made for something else"},
		"nonce cut":           {func(a *attestation) { a.nonce = a.nonce[:31] }, "made for something else"},
		"replayable register": {func(a *attestation) { a.mask = []byte{0, 0, 1} }, "other registers"},
		"one register less":   {func(a *attestation) { a.mask = []byte{0xfe, 0x7b, 0} }, "other registers"},
		"one more":            {func(a *attestation) { a.mask = []byte{0xff, 0x7f, 0} }, "other registers"},
		"no registers":        {func(a *attestation) { a.mask = nil }, "other registers"},
		"SHA-1's bank":        {func(a *attestation) { a.bank = 4 }, "other registers"},
		"no bank":             {func(a *attestation) { a.banks = 0 }, "other registers"},
		"two banks":           {func(a *attestation) { a.banks = 2 }, "other registers"},
		"safe is neither":     {func(a *attestation) { a.safe = 2 }, "neither yes nor no"},
		"short digest":        {func(a *attestation) { a.digest = a.digest[:20] }, "not 32"},
		"behind its end":      {func(a *attestation) { a.behind = []byte{0} }, "behind its end"},
		"booted otherwise":    {func(a *attestation) { a.digest = bytes.Repeat([]byte{8}, 32) }, "booted something else"},
		"too long":            {func(a *attestation) { a.signer = make([]byte, 2000) }, "too long"},
	} {
		t.Run(name, func(t *testing.T) {
			a := goodAttestation(payload)
			tt.damage(&a)
			if _, err := quoted(t, key, payload, a.bytes()).Verify(pin, payload); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want …%s…", err, tt.want)
			}
		})
	}
	whole := goodAttestation(payload).bytes()
	for n := range whole {
		if _, err := quoted(t, key, payload, whole[:n]).Verify(pin, payload); err == nil {
			t.Errorf("cut off after %d bytes: accepted", n)
		}
	}
}

// TestQuoteBits: every bit of a quote counts.
func TestQuoteBits(t *testing.T) {
	key, pin := newAK(t)
	payload := []byte("payload")
	good := quoted(t, key, payload, goodAttestation(payload).bytes())
	if _, err := good.Verify(pin, payload); err != nil {
		t.Fatal(err)
	}
	for name, field := range map[string]func(*Quote) *string{
		"payload":   func(q *Quote) *string { return &q.Payload },
		"attest":    func(q *Quote) *string { return &q.Attest },
		"signature": func(q *Quote) *string { return &q.Signature },
	} {
		n := len(*field(&good))
		for i := range n * 8 {
			q := good
			b := []byte(*field(&q))
			b[i/8] ^= 1 << (i % 8)
			*field(&q) = string(b)
			if _, err := q.Verify(pin, payload); err == nil {
				t.Errorf("%s with bit %d flipped: accepted", name, i)
			}
		}
	}
	_, other := newAK(t)
	if _, err := good.Verify(other, payload); err == nil {
		t.Error("accepted with a key that did not sign it")
	}
	if _, err := good.Verify(pin, []byte("another")); err == nil {
		t.Error("accepted for another payload")
	}
	high := good
	der, err := base64.StdEncoding.DecodeString(good.Signature)
	if err != nil {
		t.Fatal(err)
	}
	high.Signature = base64.StdEncoding.EncodeToString(append(der, 0))
	if _, err := high.Verify(pin, payload); err == nil {
		t.Error("accepted with a byte behind the signature")
	}
}

func FuzzAttest(f *testing.F) {
	good := goodAttestation([]byte("payload")).bytes()
	f.Add(good)
	f.Add(good[:20])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, nonce, err := parseAttest(b)
		if err != nil {
			return
		}
		// The only bytes that are not read are the key's name: all others come back.
		digest, err := hex.DecodeString(m.PCRDigest)
		if err != nil {
			t.Fatal(err)
		}
		a := attestation{magic: tpmGenerated, kind: tpmAttestQuote, nonce: nonce, clock: m.Clock, resets: m.ResetCount,
			restarts: m.RestartCount, firmware: m.Firmware, banks: 1, bank: tpmSHA256, mask: quotedMask(), digest: digest}
		if m.Safe {
			a.safe = 1
		}
		name := int(binary.BigEndian.Uint16(b[6:]))
		a.signer = b[8 : 8+name]
		if !bytes.Equal(a.bytes(), b) {
			t.Errorf("%x was read as %+v", b, a)
		}
	})
}
