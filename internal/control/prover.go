package control

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"vacate/internal/annex"
	"vacate/internal/ipc"
	"vacate/internal/journal"
	"vacate/internal/keyring"
	"vacate/internal/lease"
	"vacate/internal/metrics"
	"vacate/internal/node"
	"vacate/internal/notary"
	"vacate/internal/server"
	"vacate/internal/sys"
	"vacate/internal/translog"
	"vacate/proof"
)

// This file answers what the API asks about records: it is a server.Proof.

var _ server.Proof = (*prover)(nil)

// Prepare implements [server.Proof]. The engine keeps the key of the answer for ten
// minutes, and gives it up with the lease's opening.
func (pr *prover) Prepare(ctx context.Context) (server.Prepared, error) {
	id, err := lease.NewID(rand.Reader)
	if err != nil {
		return server.Prepared{}, err
	}
	made, err := pr.p.engine.PrepareLease(ctx, id)
	if re := (*ipc.RemoteError)(nil); errors.As(err, &re) {
		switch re.Code {
		case ipc.CodeRefused:
			return server.Prepared{}, &node.Error{Kind: node.Refused, Object: "shares", Text: re.Text}
		case ipc.CodeBusy:
			return server.Prepared{}, &node.Error{Kind: node.Full, Object: "prepared leases", Text: re.Text}
		}
	}
	if err != nil {
		return server.Prepared{}, fmt.Errorf("making a key for a tenant's share: %w", err)
	}
	left := time.Duration(made.ExpiresNs - sys.BoottimeNs())
	expires := time.Now().Add(left).UTC().Truncate(time.Second)
	payload, err := proof.EncodePrepared(pr.nodeID, id, made.Recipient, expires)
	if err != nil {
		return server.Prepared{}, err
	}
	document, err := proof.Sign(payload, pr.keys.Node())
	return server.Prepared{LeaseID: id, Document: document, ExpiresAt: expires}, err
}

// ReleaseKey implements [server.Proof]. It is refused as [facade.Open] is.
func (pr *prover) ReleaseKey(ctx context.Context, id string, recipient []byte) ([]byte, error) {
	if err := pr.p.mayRecord(); err != nil {
		return nil, err
	}
	return pr.p.node.ReleaseKey(ctx, id, recipient)
}

// RawBlocks implements [server.Proof].
func (pr *prover) RawBlocks(ctx context.Context, id string, blocks []uint64) ([][]byte, error) {
	r, err := pr.p.engine.RawBlocks(ctx, ipc.LeaseRawRequest{Lease: id, Blocks: blocks})
	if err != nil {
		return nil, fmt.Errorf("reading ciphertext of lease %s: %w", id, err)
	}
	return r.Blocks, nil
}

// Receipt implements [server.Proof].
func (pr *prover) Receipt(ctx context.Context, id string) ([]byte, error) {
	b, err := pr.Notary.Receipt(ctx, id)
	return b, told(id, err)
}

// Certificate implements [server.Proof].
func (pr *prover) Certificate(ctx context.Context, id string, wait bool) ([]byte, error) {
	b, err := pr.Notary.Certificate(ctx, id, wait)
	return b, told(id, err)
}

// told says what a caller can do about an error of the notary's.
func told(id string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, notary.ErrNotSigned):
		return &node.Error{Kind: node.Unavailable, Object: id, Text: "there is no receipt yet", Err: err, Next: "ask again, or see `vacate log status`"}
	case errors.Is(err, notary.ErrPending):
		return &node.Error{Kind: node.Unavailable, Object: id, Text: "there is no certificate yet", Err: err,
			Next: "ask again with --wait, or see `vacate log status`"}
	case errors.Is(err, journal.ErrNotFound):
		return &node.Error{Kind: node.NotFound, Object: id, Text: "there are no signed records of this lease", Err: err}
	}
	return err
}

// CertificateState implements [server.Proof].
func (pr *prover) CertificateState(id string) server.CertificateState {
	size, final := pr.State(id)
	switch {
	case final:
		return server.CertificateState{State: "ready", Bytes: size}
	case size > 0:
		return server.CertificateState{State: "no-quorum", Why: "the quorum of witnesses is missing: it is replaced when that has come", Bytes: size}
	}
	why := "its records are not yet in a checkpoint of the log; where there will never be one, the daemon's log says why"
	if st, err := pr.Notary.Status(); err == nil && st.LastError != "" {
		why = st.LastError
	}
	return server.CertificateState{State: "pending", Why: why}
}

// Policy implements [server.Proof].
func (pr *prover) Policy(context.Context) ([]byte, error) { return pr.Notary.Policy(), nil }

// Keys implements [server.Proof].
func (pr *prover) Keys(context.Context) ([]server.Key, error) {
	var out []server.Key
	for _, i := range pr.keys.Infos() {
		if !i.Staged {
			out = append(out, pr.key(i))
		}
	}
	return out, nil
}

func (pr *prover) key(i keyring.Info) server.Key {
	k := server.Key{Role: string(i.Role), Name: "operator", PublicKey: i.Public, KeyID: i.KeyID, Where: i.Place, Since: i.Since, Until: i.Until}
	switch i.Role {
	case keyring.Node:
		k.Name = pr.nodeID
	case keyring.Log:
		k.Name, k.KeyID = pr.origin(), proof.PayloadHash([]byte(i.Public))
	}
	if i.Path == "" {
		k.Where = "" // it is not here any more
	}
	return k
}

// Rotate implements [server.Proof].
func (pr *prover) Rotate(_ context.Context, role string, plan bool) (server.Rotation, error) {
	r := keyring.Role(role)
	if r != keyring.Node && r != keyring.Operator {
		return server.Rotation{}, &node.Error{Kind: node.Invalid, Object: role, Text: fmt.Sprintf("there is no key of a %q that could be rotated", role),
			Next: "name node or operator; a log's key is its identity: to change it, begin a new log"}
	}
	var out server.Rotation
	for _, i := range pr.keys.Infos() {
		switch {
		case i.Role != r:
		case i.Staged:
			return out, &node.Error{Kind: node.Unavailable, Object: role, Text: "this key is being rotated", Next: "try again in a moment"}
		case i.Until.IsZero():
			out.Old = pr.key(i)
		}
	}
	if plan {
		return out, nil
	}
	change, seq, err := pr.Notary.Rotate(r)
	if errors.Is(err, keyring.ErrRotating) {
		return out, &node.Error{Kind: node.Unavailable, Object: role, Text: "this key is being rotated", Next: "try again in a moment"}
	}
	if err != nil {
		return out, err
	}
	for _, i := range pr.keys.Infos() {
		if i.Public == change.New {
			out.New = pr.key(i)
		}
	}
	out.NodeSeq = seq
	return out, nil
}

// Statement implements [server.Proof].
func (pr *prover) Statement(ctx context.Context) ([]byte, error) {
	in := pr.inputs()
	for _, d := range pr.p.node.Drives(ctx) {
		in.Drives = append(in.Drives, annex.Drive{UUID: d.UUID, Kind: d.Kind, Model: d.Model, Serial: d.Serial, Path: d.Path})
	}
	return proof.SignStatement(annex.Statement(in, time.Now(), pr.Beacon()), pr.keys.Node())
}

// annexOf is the annex of a lease that has ended.
func (pr *prover) annexOf(l lease.Lease, drives []node.DriveFacts) ([]byte, error) {
	in := pr.inputs()
	for _, d := range drives {
		in.Drives = append(in.Drives, annex.Drive{UUID: d.UUID, Salt: d.Salt, Kind: d.Kind, Model: d.Model, Serial: d.Serial, Path: d.Path})
	}
	return annex.Build(l, in)
}

// inputs are what annexes say, drives apart.
func (pr *prover) inputs() annex.Inputs {
	in := annex.Inputs{NodeID: pr.nodeID, Host: pr.host, Config: pr.annex}
	in.Config.Sandbox, in.Config.KeyMemory = pr.p.confined.String(), pr.p.engine.keyStore()
	return in
}

// LogStatus implements [server.Proof].
func (pr *prover) LogStatus(context.Context) (server.LogStatus, error) {
	st, err := pr.Notary.Status()
	if err != nil {
		return server.LogStatus{}, err
	}
	out := server.LogStatus{Origin: pr.origin(), Where: pr.where, Checkpoint: st.Checkpoint, Size: st.Point.Size, Quorum: st.Quorum,
		Spool: st.Spool.Depth(), SpoolMax: uint64(st.SpoolMax), SpoolOldest: st.Spool.Oldest, LastError: st.LastError,
		DeadlinesMet: st.Deadlines.Met, DeadlinesMissed: st.Deadlines.Missed, DeadlinesPending: pr.pending(),
		Certificates: uint64(st.Certificates), Keep: pr.p.cfg.Certificates.Keep}
	for _, c := range st.Point.Cosigned {
		out.Witnesses = append(out.Witnesses, c.Witness)
	}
	return out, nil
}

// pending is how many leases have to be erased by a time and are not.
func (pr *prover) pending() (n uint64) {
	if pr.p.node == nil {
		return 0
	}
	for _, l := range pr.p.node.List(false) {
		if !l.Proof.EraseBy.IsZero() && !l.State.Ended() {
			n++
		}
	}
	return n
}

// Records implements [server.Proof].
func (pr *prover) Records(ctx context.Context, from uint64, limit int) (leaves [][]byte, checkpoint []byte, err error) {
	if checkpoint, err = pr.log.Checkpoint(ctx); err != nil {
		if errors.Is(err, translog.ErrNotFound) {
			return nil, nil, nil // nothing was published yet
		}
		return nil, nil, fmt.Errorf("reading the log: %w", err)
	}
	c, err := proof.ParseCheckpoint(checkpoint)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the log: %w", err)
	}
	if from >= c.Size || limit <= 0 {
		return nil, checkpoint, nil
	}
	to := min(from+uint64(limit), c.Size)
	err = pr.log.Leaves(ctx, from, to, func(_ uint64, leaf []byte) error {
		leaves = append(leaves, append([]byte(nil), leaf...))
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("reading records %d to %d of the log: %w", from, to, err)
	}
	return leaves, checkpoint, nil
}

// metrics is what a scrape shows of records; nil where nothing is signed.
func (pr *prover) metrics() *metrics.Proof {
	if pr == nil {
		return nil
	}
	st, err := pr.Notary.Status()
	if err != nil {
		return nil
	}
	out := &metrics.Proof{Spool: st.Spool.Depth(), SpoolMax: st.SpoolMax, Signed: st.Counts.Signed, Sent: st.Counts.Sent,
		Certified: st.Counts.Certified, Certificates: st.Certificates, NoQuorum: st.NoQuorum, Due: st.Spool.Due, Size: st.Point.Size,
		Quorum: st.Quorum, Met: st.Deadlines.Met, Missed: st.Deadlines.Missed, Pending: pr.pending(), Failing: st.LastError != ""}
	if !st.Spool.Oldest.IsZero() {
		out.Age = time.Since(st.Spool.Oldest)
	}
	return out
}

// mayRecord refuses what adds records that could not be brought anywhere: whatever
// tenants can do again and again, but for closing.
func (p *process) mayRecord() error {
	if p.unproven != nil {
		return &node.Error{Kind: node.Unavailable, Object: "records", Text: "leases can only be closed, as their records could not be signed", Err: p.unproven}
	}
	if p.proof == nil {
		return nil
	}
	err := p.proof.Full()
	if errors.Is(err, notary.ErrFull) {
		return &node.Error{Kind: node.Full, Object: "spool", Text: "leases can only be closed", Err: err}
	}
	return err
}

// Open implements [server.Node]: it is refused while too many records wait for the
// log. Leases are closed all the same (law L6).
func (f facade) Open(ctx context.Context, req node.OpenRequest) (lease.Lease, error) {
	if err := f.mayRecord(); err != nil {
		return lease.Lease{}, err
	}
	return f.Node.Open(ctx, req)
}

// Resize implements [server.Node]: it is refused as Open is.
func (f facade) Resize(ctx context.Context, id string, sizeBytes int64, plan bool) (lease.Lease, error) {
	if err := f.mayRecord(); err != nil && !plan {
		return lease.Lease{}, err
	}
	return f.Node.Resize(ctx, id, sizeBytes, plan)
}
