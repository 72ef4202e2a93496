package proof

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// A Quote is what a node's TPM said when a record was made: TPMS_ATTEST (TPM 2.0
// Library, part 2, section 10.12.12), signed by the attestation key that the policy
// pins for the node. Its nonce is the SHA-256 of the record's payload, so it cannot
// be of another record, nor older than this one.
type Quote struct {
	Payload   string `json:"payload"`   // hex SHA-256 of the record's payload ([PayloadHash])
	Attest    string `json:"attest"`    // base64 of TPMS_ATTEST
	Signature string `json:"signature"` // base64 of the ECDSA signature, ASN.1
}

// Measured is what a verified quote says.
type Measured struct {
	PCRDigest string // hex SHA-256 over the registers of [QuotedPCRs]
	// ResetCount rises each time that the TPM was reset, which the machine's start
	// does: the start after a loss of power, and that of a reboot. RestartCount rises
	// on resume too. The counts of two quotes can be compared if one key signed both.
	ResetCount, RestartCount uint32
	Clock                    uint64 // milliseconds for which the TPM has had power, over all its life
	Safe                     bool   // Clock cannot have gone back
	Firmware                 uint64 // version of the TPM's own firmware, as its maker counts
}

// QuotedPCRs are the registers that a quote is over, in SHA-256: 0 to 7 are the
// firmware, its configuration and secure boot, 8 and 9 what boot loaders measure, 11
// to 13 a unified kernel image, 14 shim's keys. It is not the quoter's choice: whoever
// may choose can replay the values of these into registers that can be reset. 10
// (IMA) and 15 change while the machine runs.
func QuotedPCRs() []int { return []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14} }

// Constants of the TPM 2.0 Library, part 2.
const (
	tpmGenerated   = 0xff544347 // TPM_GENERATED_VALUE
	tpmAttestQuote = 0x8018     // TPM_ST_ATTEST_QUOTE
	tpmSHA256      = 0x000b     // TPM_ALG_SHA256

	maxAttest    = 1024
	maxQuoteText = 2048
)

// QuoteNonce is the nonce of a quote of a record: the SHA-256 of its payload.
func QuoteNonce(payload []byte) [sha256.Size]byte { return sha256.Sum256(payload) }

// NewQuote is the quote of a record's payload, from what a TPM returned.
func NewQuote(payload, attest, signature []byte) Quote {
	return Quote{
		Payload:   PayloadHash(payload),
		Attest:    base64.StdEncoding.EncodeToString(attest),
		Signature: base64.StdEncoding.EncodeToString(signature),
	}
}

// parseAttest reads a TPMS_ATTEST of a quote, with nothing behind it, and its nonce.
func parseAttest(b []byte) (m Measured, nonce []byte, err error) {
	if len(b) > maxAttest {
		return m, nil, fmt.Errorf("attestation of %d bytes, more than %d", len(b), maxAttest)
	}
	r := attestReader{b: b}
	if r.u32() != tpmGenerated {
		return m, nil, errors.New("attestation that no TPM made: it does not begin with TPM_GENERATED_VALUE")
	}
	if r.u16() != tpmAttestQuote {
		return m, nil, errors.New("attestation that is not of registers")
	}
	r.sized() // the qualified name of the key: the key that verifies is pinned
	nonce = r.sized()
	m.Clock = r.u64()
	m.ResetCount, m.RestartCount = r.u32(), r.u32()
	safe := r.u8()
	m.Safe = safe == 1
	m.Firmware = r.u64()
	selections, bank := r.u32(), r.u16()
	registers := r.take(int(r.u8()))
	digest := r.sized()
	switch {
	case r.short || len(r.b) != 0:
		return m, nil, errors.New("attestation is cut off, or has bytes behind its end")
	case safe > 1:
		return m, nil, errors.New("attestation whose field safe is neither yes nor no")
	case selections != 1 || bank != tpmSHA256 || !slices.Equal(registers, quotedMask()):
		return m, nil, errors.New("attestation of other registers than those that a certificate needs")
	case len(digest) != sha256.Size:
		return m, nil, fmt.Errorf("digest of registers has %d bytes, not %d", len(digest), sha256.Size)
	}
	m.PCRDigest = hex.EncodeToString(digest)
	return m, nonce, nil
}

// quotedMask is QuotedPCRs as sizeofSelect bytes of TPMS_PCR_SELECTION.
func quotedMask() []byte {
	mask := make([]byte, 3)
	for _, i := range QuotedPCRs() {
		mask[i/8] |= 1 << (i % 8)
	}
	return mask
}

// An attestReader takes big-endian numbers off b. After the first that b has not,
// short is set and all are zero.
type attestReader struct {
	b     []byte
	short bool
}

func (r *attestReader) take(n int) []byte {
	if r.short || len(r.b) < n {
		r.short = true
		return make([]byte, n)
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *attestReader) u8() byte      { return r.take(1)[0] }
func (r *attestReader) u16() uint16   { return binary.BigEndian.Uint16(r.take(2)) }
func (r *attestReader) u32() uint32   { return binary.BigEndian.Uint32(r.take(4)) }
func (r *attestReader) u64() uint64   { return binary.BigEndian.Uint64(r.take(8)) }
func (r *attestReader) sized() []byte { return r.take(int(r.u16())) }

// decode is base64 in its one form.
func (q Quote) decode() (attest, signature []byte, err error) {
	for _, f := range []struct {
		text string
		out  *[]byte
	}{{q.Attest, &attest}, {q.Signature, &signature}} {
		b, err := base64.StdEncoding.Strict().DecodeString(f.text)
		if err != nil || len(f.text) > maxQuoteText || base64.StdEncoding.EncodeToString(b) != f.text {
			return nil, nil, errors.New("quote is not base64 in its one form, or too long")
		}
		*f.out = b
	}
	return attest, signature, nil
}

// Verify checks that the TPM that a policy pins for a node made the quote over
// this payload, and that the machine's registers are those that the policy wants,
// where it names any. It says nothing about whose payload that is.
func (q Quote) Verify(tpm PinnedTPM, payload []byte) (Measured, error) {
	attest, signature, err := q.decode()
	if err != nil {
		return Measured{}, err
	}
	if q.Payload != PayloadHash(payload) {
		return Measured{}, errors.New("quote names another record's payload")
	}
	if err := tpm.AK.Verify(attest, signature); err != nil {
		return Measured{}, fmt.Errorf("quote is not signed by the attestation key that the policy pins for %s: %w", tpm.Node, err)
	}
	m, nonce, err := parseAttest(attest)
	if err != nil {
		return Measured{}, err
	}
	if hex.EncodeToString(nonce) != q.Payload {
		return Measured{}, errors.New("quote was made for something else: its nonce is not the payload's hash")
	}
	if tpm.PCRDigest != "" && !slices.Contains(tpm.digests(), m.PCRDigest) {
		return Measured{}, fmt.Errorf("machine %s has booted something else: the digest of its registers is %s, the policy wants %s",
			tpm.Node, m.PCRDigest, tpm.PCRDigest)
	}
	return m, nil
}

// MaxPCRDigests is how many boots of one machine a policy can allow: what it was
// opened with and what it closed with may be different kernels.
const MaxPCRDigests = 16

func (t PinnedTPM) digests() []string { return strings.Split(t.PCRDigest, ",") }

// checkDigests takes different SHA-256, in lower-case hexadecimal.
func checkDigests(all []string) error {
	if len(all) > MaxPCRDigests {
		return fmt.Errorf("%d digests of registers, at most %d are allowed", len(all), MaxPCRDigests)
	}
	for i, d := range all {
		if raw, err := hex.DecodeString(d); err != nil || len(raw) != sha256.Size || hex.EncodeToString(raw) != d {
			return fmt.Errorf("%q is not a SHA-256 in lower-case hexadecimal", shorten(d))
		}
		if slices.Contains(all[:i], d) {
			return fmt.Errorf("digest %s stands twice", d)
		}
	}
	return nil
}
