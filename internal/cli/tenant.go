package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/internal/keyshare"
	"vacate/proof"
)

func (a *app) tenantCommand() *cobra.Command {
	return group("tenant", "Close all that a tenant has; make a tenant's share of a key", a.tenantCloseCommand(), a.tenantShareCommand())
}

func (a *app) tenantCloseCommand() *cobra.Command {
	var out output
	var plan bool
	var wait time.Duration
	c := &cobra.Command{
		Use:   "close TENANT",
		Short: "Close all leases of a tenant, and collect their certificates in one file",
		Long: "Close destroys the keys of all leases of a tenant, then writes their certificates to one file, one a line, for " +
			"`vacate certificate verify`. Where a lease cannot be closed, the others are, and the exit code tells. It may be run again.",
		Example: "vacate tenant close acme --plan\nvacate tenant close acme --out acme.certificates.json",
		Args:    needArgs(1, 1, "one tenant's name"),
		RunE: func(_ *cobra.Command, args []string) error {
			if args[0] == "" {
				return usageErrorf("the tenant's name is empty; close leases without a tenant one by one")
			}
			if out.path == "" {
				out.path = fileName(args[0]) + ".certificates.json"
			}
			if !plan && wait > 0 {
				if err := out.free(); err != nil {
					return err
				}
			}
			return a.call(func(ctx context.Context, c *client.Client) error {
				stop := a.spin("closing")
				res, err := persist(ctx, func(ctx context.Context) (*vacatev1.TenantServiceCloseResponse, error) {
					return c.Tenants.Close(ctx, &vacatev1.TenantServiceCloseRequest{Tenant: args[0], Plan: plan})
				})
				stop()
				if err != nil {
					return err
				}
				v := tenantCloseView{Tenant: args[0], Plan: plan, Leases: leaseViews(res.GetLeases()), Failures: failureViews(res.GetFailures())}
				if plan || len(res.GetLeases()) == 0 {
					return a.printTenantClosed(res, v)
				}
				if err := a.collect(ctx, c, res.GetLeases(), out, wait, &v); err != nil {
					return errors.Join(a.printTenantClosed(res, v), err)
				}
				return a.printTenantClosed(res, v)
			})
		},
	}
	out.add(c, "file for the certificates (default TENANT.certificates.json)")
	c.Flags().BoolVar(&plan, "plan", false, "show what would be closed; do nothing")
	c.Flags().DurationVar(&wait, "wait", certificateWithin, "how long to wait for the log and its witnesses, for all certificates together; 0: write none")
	return c
}

// tenantCloseView is what became of a tenant's leases.
type tenantCloseView struct {
	Tenant    string        `json:"tenant"`
	Plan      bool          `json:"plan"`
	Leases    []leaseView   `json:"leases"`
	Failures  []failureView `json:"failures"`
	File      string        `json:"file,omitempty"`
	Missing   []string      `json:"missing,omitempty"`   // leases whose certificates are not there yet
	Witnessed bool          `json:"witnessed,omitempty"` // all have the witnesses' quorum
}

type failureView struct {
	LeaseID string `json:"leaseId"`
	Kind    string `json:"kind"`
	Text    string `json:"text"`
	Next    string `json:"next,omitempty"`
}

func failureViews(all []*vacatev1.TenantFailure) []failureView {
	vs := make([]failureView, 0, len(all))
	for _, f := range all {
		vs = append(vs, failureView{LeaseID: f.GetLeaseId(), Kind: f.GetProblem().GetKind(), Text: f.GetText(), Next: f.GetProblem().GetNext()})
	}
	return vs
}

// collect writes the certificates of leases to one file.
func (a *app) collect(ctx context.Context, c *client.Client, leases []*vacatev1.Lease, out output, wait time.Duration, v *tenantCloseView) error {
	if wait <= 0 {
		return nil
	}
	defer a.spin("waiting for the log")()
	end := time.Now().Add(wait)
	var all []byte
	v.Witnessed = true
	for _, l := range leases {
		b, witnessed, err := getCertificate(ctx, c, l.GetId(), max(time.Until(end), time.Millisecond))
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			v.Missing = append(v.Missing, l.GetId())
			continue
		}
		v.Witnessed = v.Witnessed && witnessed
		all = append(all, b...)
	}
	v.Witnessed = v.Witnessed && len(v.Missing) == 0
	if len(all) == 0 {
		return nil
	}
	if err := a.write(out, all); err != nil {
		return err
	}
	if out.path != "-" {
		v.File = out.path
	}
	return nil
}

// fileName is a tenant's name as a file's: it may be anything.
func fileName(tenant string) string {
	return strings.Map(func(r rune) rune {
		if r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '_'
	}, tenant)
}

func (a *app) printTenantClosed(res *vacatev1.TenantServiceCloseResponse, v tenantCloseView) error {
	if a.format != formatTable {
		if err := encode(a.out, a.format, v); err != nil {
			return err
		}
	} else {
		a.showTenantClosed(res, v)
	}
	if len(v.Failures) == 0 {
		return nil
	}
	f := v.Failures[0]
	return &ExitError{Code: ExitFailed, Err: fmt.Errorf("%s of tenant %s could not be closed, the first of them %s: %s",
		leasesWord(len(v.Failures)), printable(v.Tenant), f.LeaseID, f.Text), Next: "run the same command again; see `vacate lease list --tenant " + printable(v.Tenant) + "`"}
}

func (a *app) showTenantClosed(res *vacatev1.TenantServiceCloseResponse, v tenantCloseView) {
	switch n := len(res.GetLeases()); {
	case v.Plan:
		fmt.Fprintf(a.out, "plan: %s of tenant %s would be closed, and what they hold erased; nothing was changed\n", leasesWord(n), printable(v.Tenant))
		for _, l := range res.GetLeases() {
			fmt.Fprintf(a.out, "  %s  %s  %s\n", l.GetId(), formatSize(l.GetSizeBytes()), stateName(l.GetState()))
		}
		return
	case n == 0 && len(v.Failures) == 0:
		fmt.Fprintf(a.out, "tenant %s has no open lease that you may close\n", printable(v.Tenant))
		return
	}
	for _, l := range res.GetLeases() {
		a.printClosed(l)
	}
	p := a.paint(a.out)
	if v.File != "" {
		fmt.Fprintf(a.out, "%s  certificates of %s\n", printable(v.File), leasesWord(len(res.GetLeases())-len(v.Missing)))
	}
	for _, id := range v.Missing {
		fmt.Fprintf(a.out, "%s the certificate of %s is not there yet: vacate certificate get %s\n", p.yellow("note:"), id, id)
	}
	if v.File != "" && len(v.Missing) == 0 && !v.Witnessed {
		fmt.Fprintf(a.out, "%s the witnesses' quorum is missing from some; get them again later\n", p.yellow("note:"))
	}
}

// A sealedShare is what the tenant gives to whoever opens the lease.
type sealedShare struct {
	V       int    `json:"v"` // 1
	LeaseID string `json:"leaseId"`
	Sealed  []byte `json:"sealed"` // base64
}

func (a *app) tenantShareCommand() *cobra.Command {
	var policy policyFlag
	var keep, out output
	c := &cobra.Command{
		Use:   "share PREPARED --policy FILE",
		Short: "Make a tenant's share of a lease's key, sealed for the node: on the tenant's own machine",
		Long: "Share checks that the policy's node signed what `vacate lease prepare` wrote, makes 64 random bytes, and seals them to the key in " +
			"it. The sealed share is for the operator; only that node can open it, for that lease, once. The share itself stays with you: " +
			"you need it to audit the lease's ciphertext, and for nothing else. Destroy it when the lease has ended.",
		Example: "vacate tenant share ID.prepared.json --policy policy",
		Args:    needArgs(1, 1, "the file that `vacate lease prepare` wrote"),
		RunE: func(_ *cobra.Command, args []string) error {
			_, trust, err := policy.read(a)
			if err != nil {
				return err
			}
			b, err := a.readFile(args[0], maxDocument)
			if err != nil {
				return err
			}
			prepared, recipient, err := trust.OpenPrepared(b, a.now())
			if err != nil {
				return &ExitError{Code: ExitVerify, Err: fmt.Errorf("%s: %w", args[0], err), Next: "seal nothing to it; ask the operator for another"}
			}
			return a.makeShare(prepared, recipient, keep, out)
		},
	}
	policy.add(c)
	c.Flags().StringVar(&keep.path, "keep", "", "file for your share, secret (default LEASE.share)")
	out.add(c, "file for the operator (default LEASE.sealed.json)")
	return c
}

func (a *app) makeShare(d proof.Prepared, recipient []byte, keep, out output) error {
	if keep.path == "" {
		keep.path = d.LeaseID + ".share"
	}
	if out.path == "" {
		out.path = d.LeaseID + ".sealed.json"
	}
	if _, err := os.Lstat(keep.path); err == nil {
		return &ExitError{Code: ExitRefused, Err: fmt.Errorf("%s is there already: a share is used once", keep.path),
			Next: "name another file with --keep, or remove it if its lease has ended"}
	}
	if err := out.free(); err != nil {
		return err
	}
	var share [keyshare.ShareSize]byte
	defer clear(share[:])
	keyshare.NewShare(&share)
	sealed, err := keyshare.SealShare(recipient, d.LeaseID, &share)
	if err != nil {
		return &ExitError{Code: ExitVerify, Err: fmt.Errorf("sealing the share: %w", err), Next: "ask the operator for another prepared lease"}
	}
	doc, err := proof.Encode(sealedShare{V: 1, LeaseID: d.LeaseID, Sealed: sealed})
	if err != nil {
		return err
	}
	if err := a.write(keep, share[:]); err != nil {
		return err
	}
	if err := a.write(out, append(doc, '\n')); err != nil {
		return err
	}
	v := shareView{LeaseID: d.LeaseID, NodeID: d.NodeID, ExpiresAt: d.ExpiresAt, Share: keep.path, Sealed: out.path}
	if a.format != formatTable {
		return encode(a.out, a.format, v)
	}
	pairs(a.out, a.paint(a.out), []pair{{"lease", plain(v.LeaseID)}, {"node", plain(v.NodeID)}, {"until", plain(v.ExpiresAt)},
		{"for the operator", plain(v.Sealed)}, {"keep secret", plain(v.Share)}})
	return nil
}

// shareView tells of a share that was made.
type shareView struct {
	LeaseID   string `json:"leaseId"`
	NodeID    string `json:"nodeId"`
	ExpiresAt string `json:"expiresAt"`
	Share     string `json:"share"`
	Sealed    string `json:"sealed"`
}

// readShare reads what tenantShareCommand wrote for the operator.
func (a *app) readShare(path string) (*vacatev1.Share, error) {
	b, err := a.readFile(path, 64<<10)
	if err != nil {
		return nil, err
	}
	body, ok := strings.CutSuffix(string(b), "\n")
	s, err := proof.Decode[sealedShare]([]byte(body))
	if err == nil && (!ok || s.V != 1 || !proof.ValidLeaseID(s.LeaseID)) {
		err = errors.New("it has no newline at its end, or another version, or no lease's id")
	}
	if err != nil {
		return nil, &ExitError{Code: ExitUsage, Err: fmt.Errorf("%s is no sealed share: %w", path, err), Next: "give the file as `vacate tenant share` wrote it for you"}
	}
	return &vacatev1.Share{LeaseId: s.LeaseID, Sealed: s.Sealed}, nil
}

func (a *app) leasePrepareCommand() *cobra.Command {
	var out output
	c := &cobra.Command{
		Use:   "prepare",
		Short: "Reserve a lease's id, and make a key that the tenant seals its share of the lease's key to",
		Long: "Prepare writes a file for the tenant, signed by the node. The tenant makes its share with it (`vacate tenant share`), and gives back a " +
			"sealed one for `vacate lease open --tenant-share`, within ten minutes: then the key to seal to is destroyed.",
		Example: "vacate lease prepare\nvacate lease open --size 10GiB --tenant acme --tenant-share ID.sealed.json --receipt ID.receipt.json",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.call(func(ctx context.Context, c *client.Client) error {
				res, err := c.Leases.Prepare(ctx, &vacatev1.LeaseServicePrepareRequest{})
				if err != nil {
					return err
				}
				if out.path == "" {
					out.path = printable(res.GetLeaseId()) + ".prepared.json"
				}
				if err := a.write(out, res.GetPrepared()); err != nil {
					return err
				}
				return a.wrote(out, "for the tenant, until "+shortTime(res.GetExpiresAt(), a.loc), res.GetPrepared(),
					preparedView{LeaseID: res.GetLeaseId(), ExpiresAt: instant(res.GetExpiresAt()), fileView: fileView{File: out.path, SizeBytes: len(res.GetPrepared())}})
			})
		},
	}
	out.add(c, "file for the tenant (default ID.prepared.json)")
	return c
}

type preparedView struct {
	LeaseID   string `json:"leaseId"`
	ExpiresAt string `json:"expiresAt"`
	fileView
}
