package proof

import (
	"bytes"
	"errors"
	"fmt"
)

// A CipherAudit is a tenant's report that it sampled raw blocks of its volume and
// decrypted them with the key that was released to it. It is the word of whoever
// gives it to [Verify]; it is bound to the lease, its key and the record of the
// release, and nobody signs it.
type CipherAudit struct {
	V         int    `json:"v"` // 1
	LeaseID   string `json:"leaseId"`
	KeyCommit string `json:"keyCommit"` // that the released key opened
	Sampled   uint64 `json:"sampled"`   // written blocks of 4096 bytes that were read raw, 1 ≤ sampled
	Matched   uint64 `json:"matched"`   // of them: decrypted to what the tenant had written
	Of        uint64 `json:"of"`        // blocks of the volume, sampled ≤ of
}

// Marshal returns the report's one form, which ends with a newline. V may be 0.
func (a CipherAudit) Marshal() ([]byte, error) {
	if a.V == 0 {
		a.V = 1
	}
	if err := a.check(); err != nil {
		return nil, fmt.Errorf("ciphertext audit: %w", err)
	}
	b, err := Encode(a)
	return append(b, '\n'), err
}

// ParseCipherAudit takes exactly what [CipherAudit.Marshal] makes.
func ParseCipherAudit(b []byte) (CipherAudit, error) {
	body, ok := bytes.CutSuffix(b, []byte{'\n'})
	if !ok || len(b) > 4096 {
		return CipherAudit{}, fmt.Errorf("%w: it has %d bytes, at most 4096 and one newline at its end are allowed", ErrForm, len(b))
	}
	a, err := Decode[CipherAudit](body)
	if err != nil {
		return CipherAudit{}, err
	}
	return a, a.check()
}

func (a CipherAudit) check() error {
	switch {
	case a.V != 1:
		return fmt.Errorf("version %d is unknown", a.V)
	case !ValidLeaseID(a.LeaseID):
		return fmt.Errorf("%.80q is no lease", a.LeaseID)
	case a.Sampled == 0 || a.Matched > a.Sampled || a.Sampled > a.Of || a.Of > maxSeq:
		return errors.New("the counts of blocks contradict each other")
	}
	return checkHex("keyCommit", a.KeyCommit, 32)
}
