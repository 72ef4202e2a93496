package proof

import (
	"fmt"
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

// A Claim is one that the bundle supports, with what it is worth.
type Claim struct {
	Name         string `json:"name"`
	Proves       string `json:"proves"`
	DoesNotProve string `json:"doesNotProve"`
}

// A Passed is a step that the bundle passed, and what was checked.
type Passed struct {
	Step int    `json:"step"`
	Name string `json:"name"`
	Text string `json:"text"`
}

// A Moment is when a record was made, as far as that is proven: not before a
// beacon's cosignatures, not after its own. Empty is "not proven".
type Moment struct {
	Record    Type   `json:"record"`
	NodeSeq   uint64 `json:"nodeSeq"`
	LeafIndex uint64 `json:"leafIndex"`
	NotBefore string `json:"notBefore,omitempty"` // RFC 3339, UTC
	NotAfter  string `json:"notAfter,omitempty"`
}

// A Named is a fact of the result and its value, for people.
type Named struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// A Result is what a bundle that passed all steps says: nothing more is proven
// than stands in it.
type Result struct {
	V          int      `json:"v"`    // 1
	Kind       string   `json:"kind"` // "lease" or "drive"
	LeaseID    string   `json:"leaseId,omitempty"`
	NodeID     string   `json:"nodeId"`
	Result     string   `json:"result"` // of the CLOSE; "lost_node" of a NODE_LOST
	Bytes      int64    `json:"bytes"`
	Space      []Space  `json:"space"`
	KeyMode    KeyMode  `json:"keyMode,omitempty"`
	Log        string   `json:"log"`
	Witnesses  []string `json:"witnesses"` // that cosigned the last record's checkpoint
	Times      []Moment `json:"times"`
	EraseBy    string   `json:"eraseBy,omitempty"`
	Deadline   string   `json:"deadline,omitempty"` // "met", "missed", "not proven"; empty without eraseBy
	Opened     bool     `json:"opened"`             // the tenant's receipt was given, and is of this lease
	Violated   string   `json:"violated,omitempty"` // a revealed key convicts the provider: the sentence
	Claims     []Claim  `json:"claims"`
	NotProven  []string `json:"notProven"`
	Facts      []Named  `json:"facts"`
	NotClaimed []string `json:"notClaimed"` // the record's own words
	Steps      []Passed `json:"steps"`
}
