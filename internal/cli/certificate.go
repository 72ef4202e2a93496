package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/proof"
)

func (a *app) certificateCommand() *cobra.Command {
	return group("certificate", "Get, check and complete erasure certificates: proof that a lease's key is gone",
		a.certificateGetCommand(), a.certificateListCommand(), a.certificateReceiptCommand(), a.certificateVerifyCommand(), a.certificateShowCommand(), a.certificateCompleteCommand(), a.cipherAuditCommand())
}

// certificateWithin is how long get waits for the log and its witnesses.
const certificateWithin = 30 * time.Second

func (a *app) certificateGetCommand() *cobra.Command {
	var out output
	var wait time.Duration
	c := &cobra.Command{
		Use:   "get ID",
		Short: "Get the certificate of a lease that has ended",
		Long: "Get writes the certificate to ID.certificate.json. It waits until the log has the lease's last record and the " +
			"witnesses have signed for it; where they do not in time, the certificate says so, and a better one can be had later.",
		Example:           "vacate certificate get ID\nvacate certificate verify ID.certificate.json --policy policy",
		Args:              needArgs(1, 1, "one lease id"),
		ValidArgsFunction: a.completeEnded,
		RunE: func(_ *cobra.Command, args []string) error {
			if out.path == "" {
				if !proof.ValidLeaseID(args[0]) {
					return notFoundLease(args[0])
				}
				out.path = args[0] + ".certificate.json"
			}
			return a.call(func(ctx context.Context, c *client.Client) error {
				stop := a.spin("waiting for the log")
				b, witnessed, err := getCertificate(ctx, c, args[0], wait)
				stop()
				if err != nil {
					return err
				}
				if err := a.write(out, b); err != nil {
					return err
				}
				if !witnessed && wait > 0 {
					fmt.Fprintf(a.err, "%s the witnesses' quorum is missing; get it again later, with --force in place of this one\n", a.paint(a.err).yellow("note:"))
				}
				return a.wrote(out, "certificate of lease "+args[0], b,
					certificateFileView{LeaseID: args[0], fileView: fileView{File: out.path, SizeBytes: len(b)}, Witnessed: witnessed})
			})
		},
	}
	out.add(c, "file to write (default ID.certificate.json)")
	c.Flags().DurationVar(&wait, "wait", certificateWithin, "how long to wait for the log and its witnesses; 0 takes what there is")
	return c
}

// certificateFileView tells of a certificate that was written.
type certificateFileView struct {
	LeaseID string `json:"leaseId"`
	fileView
	Witnessed bool `json:"witnessed"` // it was waited for a quorum, and it came
}

// notFoundLease is said of what cannot be a lease's id before it names a file.
func notFoundLease(id string) error {
	return &ExitError{Code: ExitNotFound, Err: fmt.Errorf("there is no lease %q", id), Next: "see `vacate lease list --all` for the leases there are"}
}

// getCertificate gets the certificate with the witnesses' quorum, or, after wait,
// what there is.
func getCertificate(ctx context.Context, c *client.Client, id string, wait time.Duration) (b []byte, witnessed bool, err error) {
	if wait > 0 {
		within, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		begin := time.Now()
		res, err := c.Certificates.Get(within, &vacatev1.CertificateServiceGetRequest{LeaseId: id, Wait: true})
		if err == nil {
			return res.GetBundle(), true, nil
		}
		// The daemon sees the deadline too, and may answer a moment before it.
		if ctx.Err() != nil || time.Since(begin) < wait-wait/10 {
			return nil, false, err
		}
	}
	res, err := c.Certificates.Get(ctx, &vacatev1.CertificateServiceGetRequest{LeaseId: id})
	if err != nil {
		return nil, false, err
	}
	return res.GetBundle(), false, nil
}

func (a *app) certificateListCommand() *cobra.Command {
	var tenant string
	c := &cobra.Command{
		Use:   "list",
		Short: "List the certificates that there are, and will be",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.query(func(ctx context.Context, c *client.Client) error {
				res, err := c.Certificates.List(ctx, &vacatev1.CertificateServiceListRequest{Tenant: tenant})
				if err != nil {
					return err
				}
				return a.printCertificates(res.GetCertificates())
			})
		},
	}
	c.Flags().StringVar(&tenant, "tenant", "", "only leases of this tenant")
	return c
}

type certificateView struct {
	LeaseID   string `json:"leaseId"`
	Tenant    string `json:"tenant"`
	Result    string `json:"result"`
	ClosedAt  string `json:"closedAt"`
	State     string `json:"state"`
	StateWhy  string `json:"stateWhy,omitempty"`
	SizeBytes int64  `json:"sizeBytes"`
}

func (a *app) printCertificates(all []*vacatev1.Certificate) error {
	if a.format != formatTable {
		vs := make([]certificateView, 0, len(all))
		for _, c := range all {
			vs = append(vs, certificateView{LeaseID: c.GetLeaseId(), Tenant: c.GetTenant(), Result: c.GetResult(), ClosedAt: instant(c.GetClosedAt()),
				State: c.GetState(), StateWhy: c.GetStateWhy(), SizeBytes: c.GetSizeBytes()})
		}
		return encode(a.out, a.format, vs)
	}
	if len(all) == 0 {
		fmt.Fprintln(a.out, "no lease has ended yet")
		return nil
	}
	p := a.paint(a.out)
	var rows [][]cell
	for _, c := range all {
		size := "-"
		if c.GetSizeBytes() > 0 {
			size = formatSize(c.GetSizeBytes())
		}
		rows = append(rows, []cell{plain(c.GetLeaseId()), {text: c.GetState(), paint: p.certificate}, numeric(size), plain(c.GetTenant()),
			plain(c.GetResult()), plain(shortTime(c.GetClosedAt(), a.loc)), plain(oneLine(c.GetStateWhy()))})
	}
	table(a.out, p, []string{"LEASE", "CERTIFICATE", "SIZE", "TENANT", "RESULT", "ENDED", "WHY"}, rows)
	return nil
}

// oneLine is an error that has several lines.
func oneLine(s string) string { return strings.ReplaceAll(s, "\n", "; ") }

// certificate paints the word for how far a certificate is.
func (p painter) certificate(s string) string {
	if s == "ready" {
		return p.green(s)
	}
	return p.yellow(s)
}

func (a *app) certificateReceiptCommand() *cobra.Command {
	var out output
	c := &cobra.Command{
		Use:   "receipt ID",
		Short: "Get the receipt of a lease: what its tenant keeps, to demand its certificate with",
		Long: "Receipt writes the signed record of the lease's opening, with the salts of its commitments: confidential, for the tenant and its " +
			"auditor. `vacate lease open --receipt` writes the same.",
		Args:              needArgs(1, 1, "one lease id"),
		ValidArgsFunction: a.completeLeases,
		RunE: func(_ *cobra.Command, args []string) error {
			if !proof.ValidLeaseID(args[0]) {
				return notFoundLease(args[0])
			}
			if out.path == "" {
				out.path = args[0] + ".receipt.json"
			}
			return a.query(func(ctx context.Context, c *client.Client) error {
				return a.fetch(ctx, out, "receipt of lease "+args[0], func(ctx context.Context) ([]byte, error) {
					res, err := c.Certificates.Receipt(ctx, &vacatev1.CertificateServiceReceiptRequest{LeaseId: args[0]})
					return res.GetReceipt(), err
				})
			})
		},
	}
	out.add(c, "file to write (default ID.receipt.json)")
	return c
}
