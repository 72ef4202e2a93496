package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/internal/cipheraudit"
	"vacate/internal/keyshare"
	"vacate/internal/nbdclient"
	"vacate/proof"
)

// auditFlags are those of the audit of ciphertext.
type auditFlags struct {
	policy                 policyFlag
	receipt, share, volume string
	sample                 int
	out                    output
}

func (a *app) cipherAuditCommand() *cobra.Command {
	var f auditFlags
	c := &cobra.Command{
		Use:   "audit-ciphertext ID --policy FILE --receipt FILE",
		Short: "As a tenant, check that an open lease's drive holds nothing but ciphertext under its committed key",
		Long: "Audit-ciphertext gets the lease's key from the node, sealed to a key of yours, and checks it against the commitment in the receipt. Then it " +
			"draws blocks at random, reads them raw and through the volume, and compares. That the key was released is recorded first, and for " +
			"good: from then on the lease's end proves nothing against copies of the key, yours included. Blocks that were never written do not count.",
		Example: "vacate certificate audit-ciphertext ID --policy policy --receipt ID.receipt.json\n" +
			"vacate certificate verify ID.certificate.json --policy policy --opened ID.receipt.json --ciphertext-audit ID.audit.json",
		Args:              needArgs(1, 1, "one lease id"),
		ValidArgsFunction: a.completeLeases,
		RunE: func(_ *cobra.Command, args []string) error {
			if f.receipt == "" {
				return usageErrorf("--receipt is missing: the audit is against what the node committed to when it opened the lease")
			}
			open, salts, err := a.opening(args[0], f)
			if err != nil {
				return err
			}
			if f.share == "" && open.KeyMode == proof.ModeSplit {
				return usageErrorf("the lease's key was made of two shares: add --share with the file that `vacate tenant share` kept for you")
			}
			if f.out.path == "" {
				f.out.path = args[0] + ".audit.json"
			}
			if err := f.out.free(); err != nil { // before the key is released for it
				return err
			}
			return a.call(func(ctx context.Context, c *client.Client) error { return a.auditCiphertext(ctx, c, open, salts, f) })
		},
	}
	f.policy.add(c)
	fl := c.Flags()
	fl.StringVar(&f.receipt, "receipt", "", "file with the receipt of the lease's opening")
	fl.StringVar(&f.share, "share", "", "file with your share of the key, of a lease that was opened with one")
	fl.StringVar(&f.volume, "volume", "", "the volume as you read it: a block device (default: the lease's NBD export)")
	fl.IntVar(&f.sample, "sample", cipheraudit.DefaultSample, "how many written blocks to compare")
	f.out.add(c, "file for the report (default ID.audit.json)")
	return c
}

// opening reads the receipt and checks who signed it.
func (a *app) opening(id string, f auditFlags) (r proof.Record, s proof.Salts, err error) {
	_, trust, err := f.policy.read(a)
	if err != nil {
		return r, s, err
	}
	b, err := a.readFile(f.receipt, maxDocument)
	if err != nil {
		return r, s, err
	}
	rejected := func(err error) error {
		return &ExitError{Code: ExitVerify, Err: fmt.Errorf("%s: %w", f.receipt, err), Next: "give the receipt of this lease, and the policy that you pinned"}
	}
	receipt, err := proof.ParseReceipt(b)
	if err != nil {
		return r, s, rejected(err)
	}
	if r, err = receipt.Open(); err != nil {
		return r, s, rejected(err)
	}
	env, err := proof.ParseEnvelope(receipt.Envelope)
	if err != nil {
		return r, s, rejected(err)
	}
	err = fmt.Errorf("the policy names no node %s", r.NodeID)
	for _, k := range trust.Node(r.NodeID) {
		if err = env.VerifyKey(k.Key); err == nil {
			break
		}
	}
	if err == nil && r.LeaseID != id {
		err = fmt.Errorf("it is of lease %s", r.LeaseID)
	}
	if err != nil {
		return r, s, rejected(err)
	}
	return r, receipt.Salts, nil
}

func (a *app) auditCiphertext(ctx context.Context, c *client.Client, open proof.Record, salts proof.Salts, f auditFlags) error {
	volume, blocks, err := a.volumeOf(ctx, c, open.LeaseID, f.volume)
	if err != nil {
		return err
	}
	defer volume.Close() //nolint:errcheck // it was only read
	key, err := a.releasedKey(ctx, c, open, salts, f.share)
	if err != nil {
		return err
	}
	defer clear(key[:])
	bar := a.tally("blocks", uint64(f.sample))
	report, err := cipheraudit.Run(ctx, cipheraudit.Config{Key: key, Blocks: blocks, Sample: f.sample, Plain: volume,
		Raw: func(ctx context.Context, blocks []uint64) ([][]byte, error) {
			res, err := c.Leases.RawBlocks(ctx, &vacatev1.LeaseServiceRawBlocksRequest{Id: open.LeaseID, Blocks: blocks})
			return res.GetBlocks(), err
		},
		Progress: func(done, _ int) { bar.at(uint64(done)) },
	})
	bar.end()
	if err != nil {
		return err
	}
	return a.printCipherAudit(open, report, f.out)
}

// releasedKey asks for the lease's key, and checks that it is the committed one.
func (a *app) releasedKey(ctx context.Context, c *client.Client, open proof.Record, salts proof.Salts, shareFile string) (*[keyshare.KeySize]byte, error) {
	var share *[keyshare.ShareSize]byte
	if shareFile != "" {
		b, err := a.readFile(shareFile, maxDocument)
		if err != nil {
			return nil, err
		}
		if len(b) != keyshare.ShareSize {
			return nil, usageErrorf("%s has %d bytes, and a share has %d: give the file that `vacate tenant share` kept for you", shareFile, len(b), keyshare.ShareSize)
		}
		share = (*[keyshare.ShareSize]byte)(b)
		defer clear(share[:])
	}
	var seed keyshare.Seed
	seed.Fill()
	defer clear(seed[:])
	recipient, err := seed.Public()
	if err != nil {
		return nil, err
	}
	res, err := c.Leases.ReleaseKey(ctx, &vacatev1.LeaseServiceReleaseKeyRequest{Id: open.LeaseID, Recipient: recipient})
	if err != nil {
		return nil, err
	}
	released, err := seed.OpenRelease(open.LeaseID, res.GetSealed())
	if err == nil {
		err = released.Check(open.LeaseID, keyshare.Commitments{Key: open.KeyCommit, KeySalt: salts.Key, Node: open.NodeCommit, NodeSalt: salts.Node,
			Share: open.ShareCommit, ShareSalt: salts.Share}, share)
	}
	if err != nil {
		return nil, &ExitError{Code: ExitVerify, Err: fmt.Errorf("what the node released: %w", err), Next: "keep the receipt and this message as evidence"}
	}
	return &released.Key, nil
}

// A volumeReader is a volume as its tenant reads it.
type volumeReader interface {
	io.ReaderAt
	io.Closer
}

// volumeOf opens the tenant's view of a volume, and counts its blocks.
func (a *app) volumeOf(ctx context.Context, c *client.Client, id, path string) (volumeReader, uint64, error) {
	res, err := c.Leases.Get(ctx, &vacatev1.LeaseServiceGetRequest{Id: id})
	if err != nil {
		return nil, 0, err
	}
	if st := res.GetLease().GetStats(); st != nil && st.GetWrittenBytes() == 0 {
		return nil, 0, errNothingWritten // before the key is released for nothing
	}
	blocks := uint64(res.GetLease().GetSizeBytes()) / cipheraudit.BlockSize
	if path != "" {
		f, err := os.Open(path)
		return f, blocks, err
	}
	for _, e := range res.GetLease().GetExports() {
		if e.GetKind() == "nbd" {
			n, err := nbdclient.Dial(e.GetUri(), nbdclient.Options{})
			if err != nil {
				return nil, 0, fmt.Errorf("reading the volume over NBD: %w", err)
			}
			return n, blocks, nil
		}
	}
	return nil, 0, &ExitError{Code: ExitUsage, Err: errors.New("the lease has no NBD export to read the volume through"), Next: "name its block device with --volume"}
}

var errNothingWritten = &ExitError{Code: ExitFailed, Err: errors.New("no written block was found: there is nothing to compare"), Next: "write to the volume first"}

// cipherAuditView is what an audit of ciphertext found.
type cipherAuditView struct {
	LeaseID   string   `json:"leaseId"`
	OK        bool     `json:"ok"`
	Sampled   uint64   `json:"sampled"`
	Matched   uint64   `json:"matched"`
	Unwritten uint64   `json:"unwritten"`
	Of        uint64   `json:"of"`
	Differ    []uint64 `json:"differ"`
	File      string   `json:"file,omitempty"`
}

func (a *app) printCipherAudit(open proof.Record, r cipheraudit.Report, out output) error {
	v := cipherAuditView{LeaseID: open.LeaseID, OK: len(r.Differ) == 0 && r.Sampled > 0, Sampled: r.Sampled, Matched: r.Matched, Unwritten: r.Unwritten,
		Of: r.Of, Differ: orEmpty(r.Differ)}
	if r.Sampled > 0 {
		b, err := proof.CipherAudit{LeaseID: open.LeaseID, KeyCommit: open.KeyCommit, Sampled: r.Sampled, Matched: r.Matched, Of: r.Of}.Marshal()
		if err != nil {
			return err
		}
		if err := a.write(out, b); err != nil {
			return err
		}
		v.File = out.path
	}
	if a.format != formatTable {
		if err := encode(a.out, a.format, v); err != nil {
			return err
		}
	} else if r.Sampled > 0 {
		pairs(a.out, a.paint(a.out), []pair{
			{"compared", plain(fmt.Sprintf("%d written blocks of a volume of %d", r.Sampled, r.Of))},
			{"encrypted", plain(fmt.Sprintf("%d, under the key that the node committed to", r.Matched))},
			{"unwritten", plain(strconv.FormatUint(r.Unwritten, 10))},
			{"odds", plain(fmt.Sprintf("%.1f %% that one block in a thousand that is not would have been found", 100*r.Odds(0.001)))},
			{"report", plain(v.File)}})
	}
	switch {
	case r.Sampled == 0:
		return errNothingWritten
	case !v.OK:
		return &ExitError{Code: ExitVerify, Err: fmt.Errorf("%d blocks are not what the committed key encrypts, the first of them block %d", len(r.Differ), r.Differ[0]),
			Next: "stop using the volume while it is audited, and audit again; if it stays so, keep the report as evidence"}
	}
	return nil
}
