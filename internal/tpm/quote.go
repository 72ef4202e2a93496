package tpm

import (
	"crypto/ecdsa"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// MaxNonce is the longest nonce of a quote, in bytes: that of the largest hash
// that every TPM has.
const MaxNonce = 32

// A Quote is what the TPM says of its platform configuration registers: the bytes
// of TPMS_ATTEST, and the attestation key's signature over them (ASN.1 ECDSA).
type Quote struct {
	Attest    []byte
	Signature []byte
}

// attestation runs use with the attestation key, made anew where the TPM was
// reset. REQUIRES: t.mu.
func (t *TPM) attestation(use func(tpm2.AuthHandle, *ecdsa.PublicKey) error) error {
	for fresh := t.ak == nil; ; fresh = true {
		if fresh {
			err := t.primary(tpm2.TPMRHEndorsement, signing(true, akUnique()), func(h tpm2.NamedHandle, p *tpm2.TPMTPublic) (err error) {
				t.ak, err = t.save(h.Handle, p)
				return err
			})
			if err != nil {
				return err
			}
		}
		err := t.with(t.ak, func(h tpm2.AuthHandle) error { return use(h, t.ak.public) })
		if fresh || !errors.Is(err, errReload) {
			return err
		}
	}
}

// AKPublic is the public part of the attestation key, which a policy pins. That it
// lives in a TPM is known to whoever fetched it on that machine, and from nothing
// else.
func (t *TPM) AKPublic() (*ecdsa.PublicKey, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out *ecdsa.PublicKey
	err := t.attestation(func(_ tpm2.AuthHandle, public *ecdsa.PublicKey) error {
		out = public
		return nil
	})
	return out, err
}

// Quote is a quote over the SHA-256 bank's registers pcrs, each 0 to 23, with a
// nonce of 1 to [MaxNonce] bytes.
func (t *TPM) Quote(nonce []byte, pcrs []int) (q Quote, err error) {
	if len(nonce) == 0 || len(nonce) > MaxNonce {
		return q, fmt.Errorf("quoting with a nonce of %d bytes, not 1 to %d", len(nonce), MaxNonce)
	}
	selected := make([]byte, 3)
	for _, i := range pcrs {
		if i < 0 || i > 23 {
			return q, fmt.Errorf("quoting register %d, which no TPM has", i)
		}
		selected[i/8] |= 1 << (i % 8)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	err = t.attestation(func(h tpm2.AuthHandle, _ *ecdsa.PublicKey) error {
		rsp, err := tpm2.Quote{
			SignHandle:     h,
			QualifyingData: tpm2.TPM2BData{Buffer: nonce},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
				{Hash: tpm2.TPMAlgSHA256, PCRSelect: selected},
			}},
		}.Execute(t)
		if err != nil {
			return fmt.Errorf("quoting with the TPM %s: %w", t.path, err)
		}
		q.Attest = rsp.Quoted.Bytes()
		q.Signature, err = signature(rsp.Signature)
		return err
	})
	return q, err
}
