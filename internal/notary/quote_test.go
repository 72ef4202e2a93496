package notary

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/asn1"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"vacate/proof"
	"vacate/proof/prooftest"
)

// A machine is a TPM that counts its resets.
type machine struct {
	t      *testing.T
	resets byte
}

func (m *machine) Quote(payload []byte) (proof.Quote, error) {
	attest := prooftest.Attestation(payload)
	// ResetCount stands behind magic, type, a name of 5 bytes, a nonce of 32, and the clock.
	attest[4+2+2+5+2+32+8+3] = m.resets
	ak, digest := prooftest.AK(), sha256.Sum256(attest)
	sig, err := ak.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		m.t.Fatal(err)
	}
	return proof.NewQuote(payload, attest, lowS(m.t, ak, sig)), nil
}

func lowS(t *testing.T, k *ecdsa.PrivateKey, sig []byte) []byte {
	t.Helper()
	var v struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(sig, &v); err != nil {
		t.Fatal(err)
	}
	if n := k.Params().N; v.S.Cmp(new(big.Int).Rsh(n, 1)) > 0 {
		v.S.Sub(n, v.S)
	}
	out, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestMeasured: what is quoted is quoted on the boot that made it, and a machine
// that is started anew, or a TPM that is not used any more, spoils no certificate.
func TestMeasured(t *testing.T) {
	for _, tt := range []struct {
		name     string
		between  func(*world) // after the CLOSE is durable, before it is signed
		measured bool
	}{
		{"the machine stays on", func(*world) {}, true},
		{"the daemon is started anew", func(w *world) { w.start() }, true},
		{"the machine is started anew", func(w *world) {
			w.quoter.resets++
			w.boot = strings.Repeat("ef", 16)
			w.start()
		}, false},
		{"quotes are switched off", func(w *world) {
			w.quoter = nil
			w.start()
		}, false},
		{"the board is replaced", func(w *world) {
			other, err := proof.NewPublicKey(prooftest.Key("another TPM").Public())
			if err != nil {
				t.Fatal(err)
			}
			w.ak = &other
			w.start()
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, true)
			w.quoter = &machine{t: t, resets: 7}
			w.start()
			w.open(0, time.Time{})
			w.mustPass()
			w.close(0)
			tt.between(w)
			w.mustPass()
			b, err := w.n.Certificate(t.Context(), leaseID(0), false)
			if err != nil {
				t.Fatal(err)
			}
			res, err := proof.Verify(b, w.n.Policy(), proof.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if got := slices.ContainsFunc(res.Claims, func(c proof.Claim) bool { return c.Name == proof.ClaimMeasured }); got != tt.measured {
				t.Errorf("measured: %v, want %v", got, tt.measured)
			}
			if !tt.measured && !slices.ContainsFunc(res.NotProven, func(s string) bool { return strings.Contains(s, "not measured") }) {
				t.Errorf("not proven: %q", res.NotProven)
			}
		})
	}
}
