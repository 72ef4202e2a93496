// Package attest lets a node's TPM say which machine made a record: the claim
// measured.
package attest

import (
	"fmt"

	"vacate/internal/tpm"
	"vacate/proof"
)

// A Quoter makes the quotes of records. Its methods may be called from any
// goroutine; one quote is made at a time, in some tens of milliseconds on most TPMs.
type Quoter struct{ t *tpm.TPM }

// New makes the quoter of an open TPM, which must outlive it.
func New(t *tpm.TPM) *Quoter { return &Quoter{t: t} }

// Quote is the TPM's word on the machine, with a record's payload as its nonce.
func (q *Quoter) Quote(payload []byte) (proof.Quote, error) {
	nonce := proof.QuoteNonce(payload)
	made, err := q.t.Quote(nonce[:], proof.QuotedPCRs())
	if err != nil {
		return proof.Quote{}, fmt.Errorf("quoting a record: %w", err)
	}
	return proof.NewQuote(payload, made.Attest, made.Signature), nil
}

// Pin is what a policy pins for this machine as it is booted now: the attestation
// key and, with registers, their digest.
func (q *Quoter) Pin(node string, registers bool) (proof.PinnedTPM, error) {
	pin := proof.PinnedTPM{Node: node}
	ak, err := q.t.AKPublic()
	if err != nil {
		return pin, fmt.Errorf("reading the attestation key: %w", err)
	}
	if pin.AK, err = proof.NewPublicKey(ak); err != nil {
		return pin, fmt.Errorf("reading the attestation key: %w", err)
	}
	if registers {
		if pin.PCRDigest, err = q.t.PCRDigest(proof.QuotedPCRs()); err != nil {
			return pin, fmt.Errorf("reading the machine's registers: %w", err)
		}
	}
	return pin, nil
}
