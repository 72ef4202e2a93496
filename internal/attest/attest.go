// Package attest lets a node's TPM say which machine made a record: the claim
// measured.
package attest

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"vacate/internal/durable"
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
// key and, with registers, their digest. It has the TPM quote once, and fails where no
// certificate with such a quote could pass: a TPM may have no registers in SHA-256.
func (q *Quoter) Pin(node string, registers bool) (proof.PinnedTPM, error) {
	pin := proof.PinnedTPM{Node: node}
	ak, err := q.t.AKPublic()
	if err != nil {
		return pin, fmt.Errorf("reading the attestation key: %w", err)
	}
	if pin.AK, err = proof.NewPublicKey(ak); err != nil {
		return pin, fmt.Errorf("reading the attestation key: %w", err)
	}
	trial := []byte("trial " + rand.Text())
	quote, err := q.Quote(trial)
	if err != nil {
		return pin, err
	}
	m, err := quote.Verify(pin, trial)
	if err != nil {
		return pin, fmt.Errorf("trying a quote of the TPM %s (does it have a bank of registers in SHA-256?): %w", q.t.Path(), err)
	}
	if registers {
		pin.PCRDigest = m.PCRDigest
	}
	return pin, nil
}

// Remember adds to a pin the boots of this machine that the file at path knows, the
// newest first, and to the file the one that is pinned. A lease that was open as
// the machine was started with another kernel is quoted by two boots, and a policy
// that knows the newer one alone would reject its certificate. The oldest beyond
// [proof.MaxPCRDigests] are forgotten. The file is as trustworthy as the policy that
// is made of it: whoever writes it can have a boot accepted by those who pin that
// policy later, and by nobody who pinned one before.
func Remember(path string, pin proof.PinnedTPM) (proof.PinnedTPM, error) {
	if pin.PCRDigest == "" {
		return pin, nil
	}
	b, _, err := durable.Read(path, 8<<10)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return pin, fmt.Errorf("reading the boots of this machine: %w", err)
	}
	all := append([]string{pin.PCRDigest}, strings.Fields(string(b))...)
	all = slices.DeleteFunc(all[:min(len(all), 4*proof.MaxPCRDigests)], seen(map[string]bool{}))
	all = all[:min(len(all), proof.MaxPCRDigests)]
	pin.PCRDigest = strings.Join(all, ",")
	text := strings.Join(all, "\n") + "\n"
	if text == string(b) {
		return pin, nil
	}
	if err := durable.Write(path, []byte(text), 0o600); err != nil {
		return pin, fmt.Errorf("noting the boot of this machine: %w", err)
	}
	return pin, nil
}

// seen reports whether it was asked about a text before.
func seen(before map[string]bool) func(string) bool {
	return func(s string) bool {
		was := before[s]
		before[s] = true
		return was
	}
}
