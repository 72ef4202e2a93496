package notary

import (
	"bytes"
	"fmt"
	"time"

	"vacate/internal/keyring"
	"vacate/proof"
)

// Trust is the part of the policy that does not come from the keys here.
type Trust struct {
	// Log is a line "log VKEY [URL]" for the log that is kept here; empty where
	// Witnesses has it.
	Log string
	// Witnesses are lines of a C2SP tlog-policy: witness, group, quorum, and log. Empty:
	// no witnesses, quorum none.
	Witnesses []byte
	// OperatorName is what the policy calls the operator; "operator".
	OperatorName string
	// TPM is the attestation key of this machine; nil where records are not quoted.
	TPM *proof.PinnedTPM
}

// afterRotation is how long after its rotation a key still counts, for records that
// it has signed and that no witness had seen by then.
const afterRotation = 24 * time.Hour

// Policy is the file that a tenant pins.
func (n *Notary) Policy() []byte { return n.rules().Marshal() }

// rules is the policy of the keys as they are.
func (n *Notary) rules() *proof.Policy {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.policy
}

// renewPolicy makes the policy anew of the keys as they are. REQUIRES: signing is held.
func (n *Notary) renewPolicy() error {
	p, err := n.makePolicy()
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.policy = p
	n.mu.Unlock()
	n.changed()
	if n.cfg.Renewed == nil {
		return nil
	}
	return n.cfg.Renewed(p.Marshal())
}

// makePolicy writes down whom a tenant has to trust.
func (n *Notary) makePolicy() (*proof.Policy, error) {
	t := n.cfg.Trust
	var b bytes.Buffer
	if t.Log != "" {
		fmt.Fprintln(&b, t.Log)
	}
	b.Write(t.Witnesses)
	if len(t.Witnesses) == 0 {
		fmt.Fprintln(&b, "quorum none")
	} else if !bytes.HasSuffix(t.Witnesses, []byte("\n")) {
		b.WriteByte('\n')
	}
	witnessed, err := proof.ParsePolicy(b.Bytes())
	if err != nil {
		return nil, fmt.Errorf("reading log and witnesses of the policy (proof.witness_policy): %w", err)
	}
	operator := t.OperatorName
	if operator == "" {
		operator = "operator"
	}
	for _, i := range n.cfg.Keys.Infos() {
		// A key that is new now did not exist before: it needs no first day. A last day
		// can only be checked against witnesses' times.
		until := "-"
		if !i.Until.IsZero() && witnessed.NeedsWitnesses() {
			until = i.Until.Add(afterRotation).UTC().Format(time.RFC3339)
		}
		switch i.Role {
		case keyring.Node:
			fmt.Fprintf(&b, "node %s %s - %s\n", n.node, i.Public, until)
		case keyring.Operator:
			fmt.Fprintf(&b, "operator %s %s - %s\n", operator, i.Public, until)
		}
	}
	if t.TPM != nil {
		digest := t.TPM.PCRDigest
		if digest == "" {
			digest = "-"
		}
		fmt.Fprintf(&b, "tpm %s %s %s\n", n.node, t.TPM.AK, digest)
	}
	p, err := proof.ParsePolicy(b.Bytes())
	if err != nil {
		return nil, fmt.Errorf("making the policy: %w", err)
	}
	return p, nil
}
