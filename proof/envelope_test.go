package proof

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"io"
	"math/big"
	"strings"
	"testing"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
)

// TestSignedBytes compares with another implementation of DSSE.
func TestSignedBytes(t *testing.T) {
	for _, payload := range []string{"", "x", strings.Repeat("long ", 100)} {
		if got, want := signedBytes([]byte(payload)), dsse.PAE(PayloadType, []byte(payload)); !bytes.Equal(got, want) {
			t.Errorf("%q is signed as %q, want %q", payload, got, want)
		}
	}
}

func testECDSA(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), salted("p256", 32))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSign(t *testing.T) {
	p256 := testECDSA(t)
	for range 8 { // half of all signatures have the larger s
		env, err := Sign([]byte("payload"), testKey("node"), p256)
		if err != nil {
			t.Fatal(err)
		}
		e := mustParse(t, env)
		if string(e.Payload) != "payload" || len(e.Signatures) != 2 {
			t.Fatalf("envelope %+v", e)
		}
		for _, k := range []PublicKey{publicKey(t, testKey("node")), publicKey(t, p256)} {
			if err := e.VerifyKey(k); err != nil {
				t.Error(err)
			}
		}
		if err := e.VerifyKey(publicKey(t, testKey("op"))); !errors.Is(err, ErrNotSigned) {
			t.Errorf("a key that did not sign: %v", err)
		}
	}
	for name, signers := range map[string][]crypto.Signer{
		"no signer":      nil,
		"one key twice":  {p256, p256},
		"a broken one":   {brokenSigner{testKey("node")}},
		"too many":       {p256, p256, p256, p256, p256, p256, p256, p256, p256},
		"of another key": {&wrongKey{p256, testKey("node").Public()}},
	} {
		if _, err := Sign([]byte("payload"), signers...); err == nil {
			t.Errorf("%s: it signed", name)
		}
	}
	if _, err := Sign(make([]byte, MaxPayload+1), p256); err == nil {
		t.Error("a payload beyond the bound was signed")
	}
}

type brokenSigner struct{ crypto.Signer }

func (brokenSigner) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return make([]byte, 64), nil
}

type wrongKey struct {
	crypto.Signer
	public crypto.PublicKey
}

func (w *wrongKey) Public() crypto.PublicKey { return w.public }

// TestHighS: of the two signatures that mean the same, one is refused.
func TestHighS(t *testing.T) {
	key := testECDSA(t)
	env, err := Sign([]byte("payload"), key)
	if err != nil {
		t.Fatal(err)
	}
	e := mustParse(t, env)
	s, err := parseECDSA(e.Signatures[0].Sig)
	if err != nil {
		t.Fatal(err)
	}
	s.S.Sub(elliptic.P256().Params().N, s.S)
	high, err := asn1.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	k, msg := publicKey(t, key), signedBytes(e.Payload)
	if err := k.Verify(msg, high); !errors.Is(err, ErrSignature) || !errors.Is(err, ErrForm) {
		t.Errorf("the larger s: %v", err)
	}
	if back, err := normalS(high); err != nil || !bytes.Equal(back, e.Signatures[0].Sig) {
		t.Errorf("normalS: %v", err)
	}
	for name, sig := range map[string][]byte{
		"a byte behind the end": append(bytes.Clone(e.Signatures[0].Sig), 0),
		"cut off":               e.Signatures[0].Sig[:8],
		"empty":                 nil,
		"zero":                  mustDER(t, big.NewInt(0), big.NewInt(0)),
		"negative":              mustDER(t, big.NewInt(-1), big.NewInt(-1)),
	} {
		if err := k.Verify(msg, sig); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func mustDER(t *testing.T, r, s *big.Int) []byte {
	t.Helper()
	b, err := asn1.Marshal(ecdsaSignature{r, s})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPublicKey(t *testing.T) {
	for _, s := range []crypto.Signer{testKey("node"), testECDSA(t)} {
		k := publicKey(t, s)
		again, err := ParsePublicKey(k.String())
		if err != nil || again != k || len(k.KeyID()) != 64 {
			t.Errorf("%s comes back as %s: %v", k, again, err)
		}
		fromStd, err := NewPublicKey(k.Key())
		if err != nil || fromStd != k {
			t.Errorf("%s comes back from the standard library as %s: %v", k, fromStd, err)
		}
	}
	off := append([]byte{4}, make([]byte, 64)...)
	for _, s := range []string{"", "ed25519:", "rsa:AAAA", "ed25519:AAAA", "p256:" + base64.StdEncoding.EncodeToString(off),
		publicKey(t, testKey("node")).String() + "\n", "ed25519:\n" + publicKey(t, testKey("node")).String()[8:],
		strings.TrimSuffix(publicKey(t, testKey("node")).String(), "=")} {
		if k, err := ParsePublicKey(s); err == nil {
			t.Errorf("%q is taken as %s", s, k)
		}
	}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []crypto.PublicKey{r.Public(), nil} {
		if _, err := NewPublicKey(k); err == nil {
			t.Errorf("%T is taken", k)
		}
	}
	if err := (PublicKey{}).Verify(nil, nil); !errors.Is(err, ErrSignature) {
		t.Errorf("the zero key: %v", err)
	}
}

func TestParseEnvelope(t *testing.T) {
	env, err := Sign([]byte("payload"), testKey("node"))
	if err != nil {
		t.Fatal(err)
	}
	sig := env[bytes.Index(env, []byte(`{"keyid"`)):bytes.LastIndexByte(env, ']')]
	edit := func(from, to string) []byte {
		out := bytes.Replace(env, []byte(from), []byte(to), 1)
		if bytes.Equal(out, env) {
			t.Fatalf("%q is not in the envelope", from)
		}
		return out
	}
	for name, b := range map[string][]byte{
		"another payload type": edit("in-toto", "in-tot0"),
		"two of one key":       edit(string(sig), string(sig)+","+string(sig)),
		"no signatures":        edit(string(sig), ""),
		"nine signatures":      edit(string(sig), strings.TrimSuffix(strings.Repeat(string(sig)+",", 9), ",")),
		"null":                 []byte("null"),
		"base64 with a tail":   edit("cGF5bG9hZA==", "cGF5bG9hZB=="),
		"base64 with a break":  edit("cGF5bG9hZA==", `cGF5\nbG9hZA==`),
		"a blank":              edit(`,"payload"`, `, "payload"`),
		"a key in other case":  edit(`"payload"`, `"Payload"`),
		"a key's id in capitals": bytes.Replace(env, []byte(publicKey(t, testKey("node")).KeyID()),
			[]byte(strings.ToUpper(publicKey(t, testKey("node")).KeyID())), 1),
		"too long":   append(bytes.Clone(env), make([]byte, MaxEnvelope)...),
		"a new line": append(bytes.Clone(env), '\n'),
	} {
		if _, err := ParseEnvelope(b); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
