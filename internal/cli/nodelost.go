package cli

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vacate/internal/keyring"
	"vacate/internal/translog"
	"vacate/proof"
)

// A lostReader collects what a NODE_LOST record has to say, from all of a log. Each
// record counts only where a key of the policy signed it.
type lostReader struct {
	node, operator string // whose records
	policy         *proof.Policy

	last      lostChain            // of the node
	own       lostChain            // of the operator
	open      map[string]lostLease // leases of the node that are open
	rotations []lostPiece          // of the node's key
	rotated   []proof.PublicKey    // keys that these brought in
	gone      *lostPiece           // a NODE_LOST names it already: what comes after is not looked at
}

// A lostChain is the end of a chain of records.
type lostChain struct {
	seq  uint64
	hash string
}

// A lostLease is a lease that ends with its node.
type lostLease struct {
	ID    string `json:"id"`
	Index uint64 `json:"openIndex"`
	Bytes int64  `json:"sizeBytes"`

	pieces []lostPiece
}

// A lostPiece is a record of a certificate.
type lostPiece struct {
	index, seq uint64
	envelope   []byte
}

// add takes the next record of the log.
func (l *lostReader) add(index uint64, leaf []byte) {
	env, err := proof.ParseEnvelope(leaf)
	if err != nil {
		return // not a record; the audit names it
	}
	r, err := proof.ParsePayload(env.Payload)
	if err != nil || r.NodeID != l.node && r.NodeID != l.operator || !l.signed(env, r.NodeID) {
		return // the audit names that, too
	}
	end := lostChain{seq: r.NodeSeq, hash: proof.PayloadHash(env.Payload)}
	piece := lostPiece{index: index, seq: r.NodeSeq, envelope: bytes.Clone(leaf)}
	switch {
	case r.NodeID == l.operator:
		l.own = end
		if r.Ends(l.node, "") && l.gone == nil {
			l.gone = &piece
		}
	case l.gone == nil:
		l.last = end
		l.take(r, piece)
	}
}

// take takes the next record of the node.
func (l *lostReader) take(r proof.Record, p lostPiece) {
	switch o, known := l.open[r.LeaseID]; {
	case r.Type == proof.OPEN:
		l.open[r.LeaseID] = lostLease{ID: r.LeaseID, Index: p.index, Bytes: r.Bytes, pieces: []lostPiece{p}}
	case r.Type == proof.CLOSE:
		delete(l.open, r.LeaseID)
	case r.Type == proof.KEYS:
		l.rotate(r, p)
	case known:
		if r.Type == proof.RESIZE {
			o.Bytes = r.Bytes
		}
		o.pieces = append(o.pieces, p)
		l.open[r.LeaseID] = o
	}
}

// rotate takes note of a new key of the node.
func (l *lostReader) rotate(r proof.Record, p lostPiece) {
	for _, k := range r.Keys {
		if pub, err := proof.ParsePublicKey(k.New); k.Role == proof.RoleNode && err == nil {
			l.rotated = append(l.rotated, pub)
			l.rotations = append(l.rotations, p)
		}
	}
}

// signed reports whether a key that the policy has, or that a rotation brought
// in, signed. Validity is the audit's matter.
func (l *lostReader) signed(env proof.Envelope, id string) bool {
	keys := l.policy.Node(id)
	if id == l.operator {
		keys = l.policy.Operators()
	} else if slices.ContainsFunc(l.rotated, func(k proof.PublicKey) bool { return env.VerifyKey(k) == nil }) {
		return true
	}
	return slices.ContainsFunc(keys, func(k proof.PinnedKey) bool { return env.VerifyKey(k.Key) == nil })
}

func (a *app) logNodeLostCommand() *cobra.Command {
	var policy policyFlag
	var client translog.ClientConfig
	var keyFile, certificates string
	var plan bool
	c := &cobra.Command{
		Use:   "node-lost NODE --policy FILE --operator-key FILE --log URL --cert FILE --key FILE",
		Short: "Say that a node never comes back: ends its leases in the log, signed by the operator",
		Long: "Node-lost puts a record into the log that ends all leases of a node that are open there, as lost_node. It claims only that their keys were in " +
			"volatile memory. It needs no daemon: run it on another machine, with the operator's key. A node that comes back " +
			"after this is found out by every audit: do it only when the machine is gone for good.",
		Example: "vacate log node-lost 0123456789abcdef0123456789abcdef --policy policy --operator-key operator.key \\\n" +
			"  --log https://log.example:7443 --cert operator.pem --key operator.tls.key --plan",
		Args: needArgs(1, 1, "one node's id"),
		RunE: func(c *cobra.Command, args []string) error {
			if client.URL == "" || keyFile == "" {
				return usageErrorf("--log and --operator-key are needed")
			}
			text, trust, err := policy.read(a)
			if err != nil {
				return err
			}
			if len(trust.Node(args[0])) == 0 {
				return &ExitError{Code: ExitNotFound, Err: fmt.Errorf("the policy names no node %q", args[0]), Next: "give the node's whole id, as `vacate policy show` prints it"}
			}
			signer, err := keyring.ReadOperator(keyFile, nil)
			if errors.Is(err, fs.ErrNotExist) {
				return &ExitError{Code: ExitNotFound, Err: fmt.Errorf("there is no operator's key: %w", err), Next: "give the copy of keys/operator.key that you keep away from the node"}
			}
			if err != nil {
				return err
			}
			log, err := translog.NewClient(client)
			if err != nil {
				return err
			}
			defer log.Close() //nolint:errcheck // what was added is durable
			lost := &nodeLoss{a: a, log: log, text: text, policy: trust, signer: signer, node: args[0], plan: plan, dir: certificates}
			return unreached(lost.declare(c.Context()))
		},
	}
	policy.add(c)
	f := c.Flags()
	f.StringVar(&keyFile, "operator-key", "", "file with the operator's key, of the daemon's folder of keys")
	f.StringVar(&client.URL, "log", "", "the log's URL")
	f.StringVar(&client.CertFile, "cert", "", "file with the certificate to show to the log, in PEM")
	f.StringVar(&client.KeyFile, "key", "", "file with its private key, in PEM")
	f.StringVar(&client.CAFile, "log-ca", "", "file with the certificates that the log is trusted by, in PEM (default: this host's)")
	f.StringVar(&certificates, "certificates", "", "folder for the certificates of the leases that end so, ID.certificate.json each; of a node that was declared lost before, too")
	f.BoolVar(&plan, "plan", false, "show what would be recorded; do nothing")
	return c
}

// lostView is what was, or would be, recorded.
type lostView struct {
	NodeID  string      `json:"nodeId"`
	LastSeq uint64      `json:"lastSeq"`
	Leases  []lostLease `json:"leases"`
	Plan    bool        `json:"plan"`
	Index   *uint64     `json:"index,omitempty"` // of the record in the log
	Files   []string    `json:"files,omitempty"` // certificates
}

// A nodeLoss is one run of the command.
type nodeLoss struct {
	a      *app
	log    *translog.Client
	text   []byte // the policy
	policy *proof.Policy
	signer crypto.Signer
	node   string
	plan   bool
	dir    string // for certificates, or empty
}

func (n *nodeLoss) declare(ctx context.Context) error {
	pub, err := proof.NewPublicKey(n.signer.Public())
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(n.policy.Operators(), func(k proof.PinnedKey) bool { return k.Key == pub }) {
		return &ExitError{Code: ExitRefused, Err: errors.New("the policy does not name this operator's key"), Next: "nobody would believe the record; use the key of the policy's operator line"}
	}
	l := &lostReader{node: n.node, operator: proof.OperatorID(pub), policy: n.policy, open: map[string]lostLease{}}
	note, head, err := n.read(ctx, l)
	switch {
	case err != nil:
		return err
	case l.gone != nil && n.dir == "":
		return &ExitError{Code: ExitRefused, Err: fmt.Errorf("node %s was declared lost already", n.node), Next: "for the certificates of its leases add --certificates FOLDER"}
	case l.last.seq == 0:
		return &ExitError{Code: ExitNotFound, Err: fmt.Errorf("the log has no record of node %s", n.node), Next: "name the log that this node writes to"}
	}
	v := lostView{NodeID: n.node, LastSeq: l.last.seq, Leases: []lostLease{}, Plan: n.plan}
	for _, o := range l.open {
		v.Leases = append(v.Leases, o)
	}
	slices.SortFunc(v.Leases, func(x, y lostLease) int { return strings.Compare(x.ID, y.ID) })
	if n.plan {
		return n.a.printLost(v)
	}
	if l.gone == nil {
		if l.gone, err = n.record(ctx, l, note); err != nil {
			return err
		}
	}
	v.Index = &l.gone.index
	if n.dir != "" {
		if v.Files, err = n.certify(ctx, l, v.Leases, note, head); err != nil {
			return err
		}
	}
	return n.a.printLost(v)
}

// record adds the NODE_LOST to the log, and waits until a checkpoint has it.
func (n *nodeLoss) record(ctx context.Context, l *lostReader, note []byte) (*lostPiece, error) {
	signed, err := proof.ParseCheckpoint(note)
	if err != nil {
		return nil, err
	}
	beacon := signed.Beacon()
	r := proof.Record{Type: proof.NodeLost, NodeID: l.operator, NodeSeq: l.own.seq + 1, PrevHash: l.own.hash, Beacon: &beacon, Result: proof.ResultLostNode,
		Claims: []string{proof.ClaimAsserted}, LostNode: &proof.LostNode{NodeID: n.node, LastSeq: l.last.seq, LastHash: l.last.hash}}
	if l.own.seq == 0 {
		r.PrevHash = proof.ZeroHash
	}
	payload, err := proof.EncodePayload(r)
	if err != nil {
		return nil, err
	}
	envelope, err := proof.Sign(payload, n.signer)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	at, err := n.log.Add(ctx, []translog.Leaf{{NodeID: r.NodeID, NodeSeq: r.NodeSeq, Envelope: envelope}})
	if err != nil {
		return nil, fmt.Errorf("adding the record to the log: %w", err)
	}
	if err := awaitQuorum(ctx, n.log, n.policy, at[0]); err != nil {
		return nil, fmt.Errorf("the record is in the log at index %d, and no checkpoint that the policy accepts has it yet: %w", at[0], err)
	}
	return &lostPiece{index: at[0], seq: r.NodeSeq, envelope: envelope}, nil
}

// awaitQuorum waits for a checkpoint that has the leaf at index, and that the policy
// accepts: a witness that was slow signs the next one.
func awaitQuorum(ctx context.Context, log translog.Reader, policy *proof.Policy, index uint64) error {
	for {
		note, err := translog.Await(ctx, log, index, 200*time.Millisecond)
		if err != nil {
			return err
		}
		_, quorum, err := policy.OpenCheckpoint(note)
		if err != nil || quorum {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.New("the quorum of witnesses is missing")
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// read gives all of the log to l, and returns its newest checkpoint, whose tree the
// leaves were, verified and in its canonical form.
func (n *nodeLoss) read(ctx context.Context, l *lostReader) (note []byte, head proof.Checkpoint, err error) {
	if note, err = n.log.Checkpoint(ctx); err != nil {
		return nil, head, err
	}
	if head, _, err = n.policy.OpenCheckpoint(note); err != nil {
		return nil, head, &ExitError{Code: ExitVerify, Err: fmt.Errorf("the log's checkpoint: %w", err), Next: "check that the URL is of a log that the policy names"}
	}
	if note, err = n.policy.CanonicalCheckpoint(note); err != nil {
		return nil, head, err
	}
	auditor := proof.NewAuditor(n.policy)
	bar := n.a.tally("records", head.Size)
	defer bar.end()
	err = n.log.Leaves(ctx, 0, head.Size, func(index uint64, leaf []byte) error {
		bar.at(index + 1)
		auditor.Add(index, leaf)
		l.add(index, leaf)
		return nil
	})
	if err != nil {
		return nil, head, err
	}
	for _, f := range auditor.Finish(note, n.a.now()) {
		if slices.Contains([]string{proof.FindLeafMissing, proof.FindRoot, proof.FindCheckpoint, proof.FindSplitView}, f.Code) {
			return nil, head, &ExitError{Code: ExitVerify, Err: fmt.Errorf("the log is not what its checkpoint says: %s", f.Text), Next: "record nothing in it; run `vacate log audit`"}
		}
	}
	return note, head, nil
}

func (a *app) printLost(v lostView) error {
	if a.format != formatTable {
		return encode(a.out, a.format, v)
	}
	if v.Plan {
		fmt.Fprintf(a.out, "plan: node %s, whose last record is number %d, would be declared lost, with %s; nothing was changed\n",
			v.NodeID, v.LastSeq, leasesWord(len(v.Leases)))
	} else {
		fmt.Fprintf(a.out, "node %s is declared lost, with %s: record %d of the log\n", v.NodeID, leasesWord(len(v.Leases)), *v.Index)
	}
	for _, l := range v.Leases {
		fmt.Fprintf(a.out, "  %s  %s\n", l.ID, formatSize(l.Bytes))
	}
	for _, f := range v.Files {
		fmt.Fprintf(a.out, "%s\n", printable(f))
	}
	return nil
}
