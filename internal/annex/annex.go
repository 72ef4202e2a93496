// Package annex says what a certificate tells its tenant and auditors, and not
// the log: what was done to which media with what, in the fields of NIST SP 800-88
// Rev. 2, and what the host looked like meanwhile.
//
// It claims nothing that nobody observed. Each field has its source
// ([proof.Fact]); what only a person can know is left to one, and validation
// always is. Nothing here reads a clock; [ReadHost] is the only function that
// reads files.
package annex

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"vacate/internal/lease"
	"vacate/proof"
)

// Inputs are what a node knows besides the lease.
type Inputs struct {
	NodeID string     // 32 hexadecimal digits
	Drives []Drive    // at least those of the lease's pieces, in any order
	Host   proof.Host // see [ReadHost]
	Config Config
}

// A Drive is what is known of a drive that holds space of the lease.
type Drive struct {
	UUID   string // 32 hexadecimal digits
	Salt   string // of its driveCommit, hexadecimal; empty where it has none
	Kind   string // as ipc.DriveInfo and the driveCommit have it
	Model  string // the same; empty where the drive said nothing
	Serial string // the same
	Path   string // as it was enrolled
}

// Config is what the running program and its configuration say.
type Config struct {
	Version       string        // of the program
	DrainDeadline time.Duration // for I/O in flight, after a key was destroyed
	KeyMemory     string        // ipc.Hello's KeyStore: "memfd_secret" is the better one; empty: not known
	RuntimeSecret bool          // built with GOEXPERIMENT=runtimesecret
	NodeKey       string        // where the node's key lies: "file" or "tpm"
	TPM           bool          // quotes are made
	Danger        []string      // switches of the danger zone that are in force
	Sandbox       string        // as vacate status says it
	Log           string        // origin of the log
	Witnesses     int           // that are configured
	Quorum        string        // of them, as the policy says it
	EraseBy       bool          // deadlines are kept
}

// host is what was seen of the machine, with what the configuration says now: an
// engine that tells where its keys lie may have come up after the machine was
// looked at.
func (in Inputs) host() proof.Host {
	h := in.Host
	h.KeyMemory = said(in.Config.KeyMemory, proof.SourceObserved)
	return h
}

// Build is the annex of a lease that has ended, in the bytes whose SHA-256 its
// CLOSE record bears. l.ClosedAt and l.Result are set; l.Erasure where one was
// observed. It fails where a drive of the lease is not in the inputs, or anything
// is out of [proof.Annex]'s bounds.
func Build(l lease.Lease, in Inputs) ([]byte, error) {
	a := proof.Annex{
		V: 1, NodeID: in.NodeID, LeaseID: l.ID, Tenant: l.Tenant,
		Salts: proof.Salts{
			Key: l.Proof.KeySalt, Tenant: l.Proof.TenantSalt, Node: l.Proof.NodeSalt, Share: l.Proof.ShareSalt,
		},
		OpenedAt: stamp(l.OpenedAt), ClosedAt: stamp(l.ClosedAt),
		Module: module(in.Config),
		Host:   in.host(),
		Key:    keyEvidence(l),
		Device: []proof.DeviceRun{}, Scan: []proof.Scan{},
	}
	var err error
	if a.Media, err = media(l, in.Drives); err != nil {
		return nil, fmt.Errorf("annex of lease %s: %w", l.ID, err)
	}
	a.Sanitize = sanitization(l, in.Config)
	a.CryptoErase = cryptoErase(l, in)
	a.Limits = limits(l, in)
	if err := a.Check(); err != nil {
		return nil, fmt.Errorf("annex of lease %s: %w", l.ID, err)
	}
	b, err := proof.Encode(a)
	if err == nil && len(b) > proof.MaxAnnexBytes {
		err = fmt.Errorf("%d bytes, more than %d", len(b), proof.MaxAnnexBytes)
	}
	if err != nil {
		return nil, fmt.Errorf("annex of lease %s: %w", l.ID, err)
	}
	return b, nil
}

// stamp is a time of the node's clock; one that nobody took is empty.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// media are the drives of a lease, in the order in which its space names them
// first.
func media(l lease.Lease, drives []Drive) ([]proof.Medium, error) {
	if len(l.Pieces) == 0 {
		return nil, errors.New("it has no space")
	}
	var out []proof.Medium
	for _, p := range l.Pieces {
		uuid := p.Drive
		if slices.ContainsFunc(out, func(m proof.Medium) bool { return m.Drive == uuid }) {
			continue
		}
		i := slices.IndexFunc(drives, func(d Drive) bool { return d.UUID == uuid })
		if i < 0 {
			return nil, fmt.Errorf("nothing is known of drive %s, which holds space of it", uuid)
		}
		out = append(out, medium(drives[i]))
	}
	return out, nil
}

func medium(d Drive) proof.Medium {
	return proof.Medium{
		Drive: d.UUID, Salt: d.Salt,
		Manufacturer:   proof.Human(),
		Model:          raw(d.Model, proof.SourceDrive),
		Serial:         raw(d.Serial, proof.SourceDrive),
		PropertyNumber: proof.Human(),
		MediaType:      raw(d.Kind, proof.SourceObserved),
		Source:         said(d.Path, proof.SourceConfigured),
		Categorization: proof.Human(),
		// The program purges no drive, and cannot know what somebody else did before.
		PriorPurge:     stated("not by this program: plaintext from before its enrolment may be on it, which the erasure of a lease's key does not touch"),
		EncryptedBelow: none(),
	}
}

// said is a fact with a value, if there is one.
func said(value, source string) proof.Fact {
	if value == "" {
		return none()
	}
	return proof.Fact{Value: clip(value), Source: source}
}

// raw is a fact whose bytes a driveCommit was made of: they stay as they are.
func raw(value, source string) proof.Fact {
	if value == "" {
		return none()
	}
	return proof.Fact{Value: value, Source: source}
}

func none() proof.Fact { return proof.Fact{Source: proof.SourceNone} }

func stated(text string) proof.Fact { return proof.Fact{Value: text, Source: proof.SourceProgram} }

// clip keeps a value within a fact's bounds: what comes from drives and the
// kernel may be anything.
func clip(s string) string {
	const most = 1024
	s = printable(s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most-len("…")], "") + "…" // no half of a character
	}
	return s
}

func keyEvidence(l lease.Lease) proof.KeyEvidence {
	e := l.Erasure
	if e == nil {
		return proof.KeyEvidence{Text: clip(l.Text)}
	}
	k := proof.KeyEvidence{ReadBack: e.ReadBack, InFlight: !e.Drained, Text: clip(l.Text)}
	if e.GateClosedNs > 0 {
		k.CipherWait = max(0, cmp.Or(e.CiphersDoneNs, e.GateClosedNs)-e.GateClosedNs)
		k.Erase = max(0, cmp.Or(e.KeyDestroyedNs, e.GateClosedNs)-e.GateClosedNs)
	}
	return k
}

// nanoseconds for people.
func nanoseconds(ns int64) string {
	return strconv.FormatFloat(float64(ns)/1e3, 'f', 0, 64) + " µs"
}
