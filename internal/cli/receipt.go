package cli

import (
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	vacatev1 "vacate/api/vacate/v1"
)

// proofFlags are those of `lease open` that are about proof.
type proofFlags struct {
	eraseBy, share string
	receipt        output
}

func (p *proofFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&p.eraseBy, "erase-by", "", "promise in the lease's record that its key is destroyed by this time, as 2026-12-24T18:00:00Z or 24h from now")
	f.StringVar(&p.share, "tenant-share", "", "file with the tenant's sealed share of the key, of `vacate tenant share`")
	f.StringVar(&p.receipt.path, "receipt", "", "file to write the receipt to, for the tenant; confidential")
}

func (p *proofFlags) set(a *app, req *vacatev1.LeaseServiceOpenRequest) (err error) {
	if err := p.receipt.free(); err != nil {
		return err
	}
	if p.eraseBy != "" {
		t, err := parseInstant(p.eraseBy, a.now())
		if err != nil {
			return usageErrorf("--erase-by %s: %v", p.eraseBy, err)
		}
		req.EraseBy = timestamppb.New(t)
	}
	if p.share != "" {
		req.Share, err = a.readShare(p.share)
	}
	return err
}

// keep writes the receipt. The lease is open, whatever becomes of it.
func (p *proofFlags) keep(a *app, res *vacatev1.LeaseServiceOpenResponse) error {
	if p.receipt.path == "" {
		return nil
	}
	id := res.GetLease().GetId()
	if len(res.GetReceipt()) == 0 {
		return &ExitError{Code: ExitFailed, Err: fmt.Errorf("lease %s is open, and has no receipt yet: %s", id, res.GetReceiptWhy()),
			Next: "get it later: `vacate certificate receipt " + id + "`"}
	}
	if err := a.write(p.receipt, res.GetReceipt()); err != nil {
		return &ExitError{Code: ExitFailed, Err: fmt.Errorf("lease %s is open, and its receipt was not written: %w", id, err),
			Next: "get it again: `vacate certificate receipt " + id + "`"}
	}
	return nil
}

// keyText says whose key a lease has, for people.
func keyText(l *vacatev1.Lease) string {
	text := map[string]string{"node": "made by the node", "split": "made of the node's share and the tenant's", "tenant": "the tenant's"}[l.GetKeyMode()]
	if text != "" && l.GetKeyReleased() {
		text += "; released to the tenant while the lease was open"
	}
	return text
}
