package proof

import (
	"fmt"
	"slices"
	"time"
)

// A Step is one of the eleven of [Verify], in their order.
type Step int

// The steps.
const (
	StepParse     Step = 1 + iota // strict parse of everything
	StepSigned                    // DSSE signatures against pinned keys
	StepLeaf                      // leaf hashes of the raw bytes, and that there is one leaf for each record
	StepLog                       // origin, and the log's key
	StepWitnessed                 // quorum of witnesses
	StepIncluded                  // inclusion proofs
	StepBound                     // OPEN and CLOSE belong together: sequence, space, key
	StepTime                      // time sandwich
	StepAnnex                     // annex: digest, and that it agrees with the records
	StepMeasured                  // TPM quotes
	StepClaims                    // claims recomputed
)

var stepNames = [...]string{StepParse: "parse", StepSigned: "signatures", StepLeaf: "leaf hash", StepLog: "origin and log key",
	StepWitnessed: "witness quorum", StepIncluded: "inclusion proof", StepBound: "binding", StepTime: "time",
	StepAnnex: "annex", StepMeasured: "TPM quote", StepClaims: "claims"}

// String is the step's name.
func (s Step) String() string {
	if s < StepParse || s > StepClaims {
		return fmt.Sprintf("step %d", int(s))
	}
	return stepNames[s]
}

// A VerifyError says at which step a bundle was rejected, and why.
type VerifyError struct {
	Step Step
	Name string // of the step
	Err  error
}

func (e *VerifyError) Error() string {
	return fmt.Sprintf("step %d of %d, %s: %v", e.Step, StepClaims, e.Name, e.Err)
}

func (e *VerifyError) Unwrap() error { return e.Err }

// Options are what a verifier may add.
type Options struct {
	// Opened is the tenant's receipt: the bundle must be of this very OPEN.
	Opened *Receipt
	// RevealedKey is a key that turned up, 64 bytes. Where it is the committed
	// one and its destruction was recorded, the result says that the provider is
	// provably violated.
	RevealedKey []byte
	// CiphertextAudit is the tenant's signed report of a ciphertext audit, in the
	// form of [CipherAudit].
	CiphertextAudit []byte
}

// Verify checks a certificate, offline: bundle is [Bundle.Marshal]'s bytes, policy
// what the verifier trusts ([ParsePolicy]). It goes through the eleven steps in
// their order and stops at the first that fails, with a [*VerifyError]; there are no
// other errors. Without one, the result says what is proven and what is not.
//
// It does no I/O and reads no clock. Nothing of the bundle is believed before
// the step that checks it:
//
//  1. everything is in its one form, and nothing is there that nothing needs
//  2. each record is signed by its node's (or the operator's) pinned key, and by
//     nobody whom the policy does not name
//  3. the leaf is the hash of the envelope's raw bytes, and no leaf is there twice
//  4. each checkpoint is of one log that the policy names, and signed by its key
//  5. each record's checkpoint has the policy's quorum of witnesses, and no
//     checkpoint has any other signature
//  6. each leaf is at its index in the tree of its checkpoint
//  7. the records are of one lease, from its OPEN to its end, in the order of
//     their numbers, with the same space, size and key; they are the receipt's
//  8. beacons are older than their records, times do not contradict each other,
//     each key was valid when it signed, events are in order and on one boot
//  9. the annex is the one that the record names, opens its commitments, and
//     says nothing that its own evidence contradicts
//  10. TPM quotes are of these records, by the pinned TPM
//  11. every claim of the record is supported; claims and limits are computed anew
func Verify(bundle, policy []byte, o Options) (*Result, error) {
	v := verifier{options: o, result: Result{V: 1, Facts: []Named{}, Times: []Moment{}}}
	steps := [...]func() (string, error){
		StepParse:     func() (string, error) { return v.parse(bundle, policy) },
		StepSigned:    v.signed,
		StepLeaf:      v.leaves,
		StepLog:       v.logs,
		StepWitnessed: v.witnessed,
		StepIncluded:  v.included,
		StepBound:     v.bound,
		StepTime:      v.times,
		StepAnnex:     v.annexed,
		StepMeasured:  v.measured,
		StepClaims:    v.claims,
	}
	for s := StepParse; s <= StepClaims; s++ {
		text, err := steps[s]()
		if err != nil {
			return nil, &VerifyError{Step: s, Name: s.String(), Err: err}
		}
		v.result.Steps = append(v.result.Steps, Passed{Step: int(s), Name: s.String(), Text: text})
	}
	return &v.result, nil
}

// A verifier is a bundle on its way through the steps.
type verifier struct {
	options Options
	policy  *Policy
	bundle  *Bundle
	records []logged
	beacons []beacon
	annex   *Annex
	audit   *CipherAudit
	quotes  map[int]Measured // by the record's place in records
	result  Result

	validated bool // a person accepted or rejected the result
}

// logged is a record as the bundle has it, and what the steps found out.
type logged struct {
	Record
	payload []byte
	env     Envelope
	raw     []byte // the leaf
	proof   *TlogProof
	signers []PinnedKey // step 2
	leaf    [32]byte    // step 3
	head    Checkpoint  // step 5: the proof's, with verified witnesses
	from    time.Time   // step 8; zero: not proven
	to      time.Time   // step 8; zero: not proven
}

// A beacon is a checkpoint that some records name.
type beacon struct {
	signed *SignedCheckpoint
	path   [][32]byte
	head   Checkpoint // step 5
	named  Beacon     // as records name it
	first  int        // the first record that names it
}

// name is what errors call record i.
func (v *verifier) name(i int) string {
	return fmt.Sprintf("record %d of %d (%s %d)", i+1, len(v.records), v.records[i].Type, v.records[i].NodeSeq)
}

// last is the record that the bundle ends with: what it certifies.
func (v *verifier) last() *logged { return &v.records[len(v.records)-1] }

func (v *verifier) parse(bundle, policy []byte) (string, error) {
	var err error
	if v.policy, err = ParsePolicy(policy); err != nil {
		return "", err
	}
	if v.bundle, err = ParseBundle(bundle); err != nil {
		return "", err
	}
	for i, e := range v.bundle.Records {
		l := logged{raw: e.Envelope}
		if l.env, err = ParseEnvelope(e.Envelope); err == nil {
			l.payload = l.env.Payload
			l.Record, err = ParsePayload(l.payload)
		}
		if err == nil {
			l.proof, err = ParseTlogProof([]byte(e.Proof))
		}
		if err != nil {
			return "", fmt.Errorf("record %d of the bundle: %w", i+1, err)
		}
		v.records = append(v.records, l)
	}
	for _, part := range []func() error{v.parseBeacons, v.parseRest, v.parseOptions} {
		if err := part(); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%d bytes, %s, all in their one form", len(bundle), count(len(v.records), "record", "records")), nil
}

func (v *verifier) parseBeacons() error {
	for i, b := range v.bundle.Beacons {
		c, err := ParseCheckpoint([]byte(b.Checkpoint))
		if err != nil {
			return fmt.Errorf("beacon %d: %w", i+1, err)
		}
		path, err := ParseConsistency(b.Consistency)
		if err != nil {
			return fmt.Errorf("beacon %d: %w", i+1, err)
		}
		if i > 0 && v.beacons[i-1].signed.Size >= c.Size {
			return fmt.Errorf("beacon %d: %w: beacons stand from the oldest to the newest, each once", i+1, ErrForm)
		}
		named := c.Beacon()
		first := slices.IndexFunc(v.records, func(l logged) bool { return l.Beacon != nil && *l.Beacon == named })
		if first < 0 {
			return fmt.Errorf("beacon %d: no record names it, with these cosignatures", i+1)
		}
		v.beacons = append(v.beacons, beacon{signed: c, path: path, named: named, first: first})
	}
	return nil
}

func (v *verifier) parseRest() error {
	if raw := v.bundle.Annex; raw != nil {
		if len(raw) > MaxAnnexBytes {
			return fmt.Errorf("annex has %d bytes, at most %d are allowed", len(raw), MaxAnnexBytes)
		}
		a, err := Decode[Annex](raw)
		if err != nil {
			return fmt.Errorf("annex: %w", err)
		}
		v.annex = &a
	}
	for i, q := range v.bundle.Quotes {
		if _, _, err := q.decode(); err != nil {
			return fmt.Errorf("quote %d: %w", i+1, err)
		}
	}
	for i, c := range v.bundle.Completions {
		if _, err := ReadCompletion(c); err != nil {
			return fmt.Errorf("completion %d: %w", i+1, err)
		}
	}
	return nil
}

func (v *verifier) parseOptions() error {
	if r := v.options.Opened; r != nil {
		if _, err := r.Open(); err != nil {
			return fmt.Errorf("receipt: %w", err)
		}
	}
	if k := v.options.RevealedKey; k != nil && len(k) != KeyLen {
		return fmt.Errorf("the revealed key has %d bytes, a key has %d", len(k), KeyLen)
	}
	if b := v.options.CiphertextAudit; b != nil {
		a, err := ParseCipherAudit(b)
		if err != nil {
			return fmt.Errorf("ciphertext audit: %w", err)
		}
		v.audit = &a
	}
	return nil
}
