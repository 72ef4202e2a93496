package cli

import (
	"context"
	"crypto"
	"errors"
	"fmt"
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

	last lostChain            // of the node
	own  lostChain            // of the operator
	open map[string]lostLease // leases of the node that are open
	gone bool                 // a NODE_LOST names it already
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
}

// add takes the next record of the log.
func (l *lostReader) add(index uint64, leaf []byte) error {
	env, err := proof.ParseEnvelope(leaf)
	if err != nil {
		return nil // not a record; the audit names it
	}
	r, err := proof.ParsePayload(env.Payload)
	if err != nil || r.NodeID != l.node && r.NodeID != l.operator {
		return nil
	}
	if !l.signed(env, r.NodeID) {
		return nil // the audit names that, too
	}
	end := lostChain{seq: r.NodeSeq, hash: proof.PayloadHash(env.Payload)}
	if r.NodeID == l.operator {
		l.own = end
		if r.Type == proof.NodeLost && r.LostNode.NodeID == l.node {
			l.gone = true
		}
		return nil
	}
	l.last = end
	switch r.Type {
	case proof.OPEN:
		l.open[r.LeaseID] = lostLease{ID: r.LeaseID, Index: index, Bytes: r.Bytes}
	case proof.CLOSE:
		delete(l.open, r.LeaseID)
	}
	return nil
}

// signed reports whether a key that the policy has, or that a rotation brought
// in, signed. Validity is the audit's matter.
func (l *lostReader) signed(env proof.Envelope, id string) bool {
	keys := l.policy.Node(id)
	if id == l.operator {
		keys = l.policy.Operators()
	}
	return slices.ContainsFunc(keys, func(k proof.PinnedKey) bool { return env.VerifyKey(k.Key) == nil })
}

func (a *app) logNodeLostCommand() *cobra.Command {
	var policy policyFlag
	var client translog.ClientConfig
	var keyFile string
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
		RunE: func(_ *cobra.Command, args []string) error {
			if client.URL == "" || keyFile == "" {
				return usageErrorf("--log and --operator-key are needed")
			}
			_, trust, err := policy.read(a)
			if err != nil {
				return err
			}
			if len(trust.Node(args[0])) == 0 {
				return &ExitError{Code: ExitNotFound, Err: fmt.Errorf("the policy names no node %q", args[0]), Next: "give the node's whole id, as `vacate policy show` prints it"}
			}
			signer, err := keyring.ReadOperator(keyFile, nil)
			if err != nil {
				return err
			}
			log, err := translog.NewClient(client)
			if err != nil {
				return err
			}
			defer log.Close() //nolint:errcheck // what was added is durable
			return a.nodeLost(context.Background(), log, trust, signer, args[0], plan)
		},
	}
	policy.add(c)
	f := c.Flags()
	f.StringVar(&keyFile, "operator-key", "", "file with the operator's key, of the daemon's folder of keys")
	f.StringVar(&client.URL, "log", "", "the log's URL")
	f.StringVar(&client.CertFile, "cert", "", "file with the certificate to show to the log, in PEM")
	f.StringVar(&client.KeyFile, "key", "", "file with its private key, in PEM")
	f.StringVar(&client.CAFile, "log-ca", "", "file with the certificates that the log is trusted by, in PEM (default: this host's)")
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
}

func (a *app) nodeLost(ctx context.Context, log *translog.Client, trust *proof.Policy, signer crypto.Signer, node string, plan bool) error {
	pub, err := proof.NewPublicKey(signer.Public())
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(trust.Operators(), func(k proof.PinnedKey) bool { return k.Key == pub }) {
		return &ExitError{Code: ExitRefused, Err: errors.New("the policy does not name this operator's key"), Next: "nobody would believe the record; use the key of the policy's operator line"}
	}
	l := &lostReader{node: node, operator: proof.OperatorID(pub), policy: trust, open: map[string]lostLease{}}
	head, err := a.readLost(ctx, log, trust, l)
	switch {
	case err != nil:
		return err
	case l.gone:
		return &ExitError{Code: ExitRefused, Err: fmt.Errorf("node %s was declared lost already", node)}
	case l.last.seq == 0:
		return &ExitError{Code: ExitNotFound, Err: fmt.Errorf("the log has no record of node %s", node), Next: "name the log that this node writes to"}
	}
	v := lostView{NodeID: node, LastSeq: l.last.seq, Leases: []lostLease{}, Plan: plan}
	for _, o := range l.open {
		v.Leases = append(v.Leases, o)
	}
	slices.SortFunc(v.Leases, func(x, y lostLease) int { return strings.Compare(x.ID, y.ID) })
	if plan {
		return a.printLost(v)
	}
	beacon := head.Beacon()
	r := proof.Record{Type: proof.NodeLost, NodeID: l.operator, NodeSeq: l.own.seq + 1, PrevHash: l.own.hash, Beacon: &beacon, Result: proof.ResultLostNode,
		Claims: []string{proof.ClaimAsserted}, LostNode: &proof.LostNode{NodeID: node, LastSeq: l.last.seq, LastHash: l.last.hash}}
	if l.own.seq == 0 {
		r.PrevHash = proof.ZeroHash
	}
	index, err := addRecord(ctx, log, r, signer)
	if err != nil {
		return err
	}
	v.Index = &index
	return a.printLost(v)
}

// readLost gives all of a log to l, and returns its newest checkpoint, verified,
// whose tree the leaves were.
func (a *app) readLost(ctx context.Context, log logSource, trust *proof.Policy, l *lostReader) (head proof.Checkpoint, err error) {
	note, err := log.Checkpoint(ctx)
	if err != nil {
		return head, err
	}
	if head, _, err = trust.OpenCheckpoint(note); err != nil {
		return head, &ExitError{Code: ExitVerify, Err: fmt.Errorf("the log's checkpoint: %w", err), Next: "check that the URL is of a log that the policy names"}
	}
	auditor := proof.NewAuditor(trust)
	bar := a.tally("records", head.Size)
	defer bar.end()
	err = log.Leaves(ctx, 0, head.Size, func(index uint64, leaf []byte) error {
		bar.at(index + 1)
		auditor.Add(index, leaf)
		return l.add(index, leaf)
	})
	if err != nil {
		return head, err
	}
	for _, f := range auditor.Finish(note, a.now()) {
		if slices.Contains([]string{proof.FindLeafMissing, proof.FindRoot, proof.FindCheckpoint, proof.FindSplitView}, f.Code) {
			return head, &ExitError{Code: ExitVerify, Err: fmt.Errorf("the log is not what its checkpoint says: %s", f.Text), Next: "record nothing in it; run `vacate log audit`"}
		}
	}
	return head, nil
}

// addRecord signs a record, adds it to a log, and waits until a checkpoint has it.
func addRecord(ctx context.Context, log *translog.Client, r proof.Record, signer crypto.Signer) (uint64, error) {
	payload, err := proof.EncodePayload(r)
	if err != nil {
		return 0, err
	}
	envelope, err := proof.Sign(payload, signer)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	at, err := log.Add(ctx, []translog.Leaf{{NodeID: r.NodeID, NodeSeq: r.NodeSeq, Envelope: envelope}})
	if err != nil {
		return 0, fmt.Errorf("adding the record to the log: %w", err)
	}
	if _, err := translog.Await(ctx, log, at[0], 200*time.Millisecond); err != nil {
		return 0, fmt.Errorf("the record is in the log at index %d, and no checkpoint has it yet: %w", at[0], err)
	}
	return at[0], nil
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
	return nil
}
