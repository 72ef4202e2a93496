package cli

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
)

func (a *app) leaseResizeCommand() *cobra.Command {
	var size sizeFlag
	req := &vacatev1.LeaseServiceResizeRequest{}
	c := &cobra.Command{
		Use:   "resize ID --size SIZE",
		Short: "Make an open lease's volume larger, while it is in use",
		Long: "Resize gives a volume more space behind its end, which reads zeros. Virtual machines are told where their program listens; " +
			"NBD clients go on with the size that they know, and see the new one when they connect again. Requests wait for a moment, none fails. " +
			"A volume never gets smaller. --plan shows where the space would come from.",
		Example: "vacate lease resize ID --size 200GiB\n" +
			"# where the space would come from\n" +
			"vacate lease resize ID --size 200GiB --plan",
		Args:              needArgs(1, 1, "one lease id"),
		ValidArgsFunction: a.completeLeases,
		RunE: func(_ *cobra.Command, args []string) error {
			if !size.set {
				return usageErrorf("the new size is missing: write --size 200GiB")
			}
			req.Id, req.SizeBytes = args[0], size.bytes
			return a.call(func(ctx context.Context, c *client.Client) error { return a.resizeLease(ctx, c, req) })
		},
	}
	f := c.Flags()
	f.Var(&size, "size", "size that the volume shall have, as 200GiB; a multiple of 4096 bytes")
	f.BoolVar(&req.Plan, "plan", false, "show where the space would come from; do nothing")
	complete(c, "size")
	return c
}

func (a *app) resizeLease(ctx context.Context, c *client.Client, req *vacatev1.LeaseServiceResizeRequest) error {
	was := &vacatev1.Lease{}
	if req.GetPlan() && a.format == formatTable {
		res, err := c.Leases.Get(ctx, &vacatev1.LeaseServiceGetRequest{Id: req.GetId()})
		if err != nil {
			return err
		}
		was = res.GetLease()
	}
	res, err := persist(ctx, func(ctx context.Context) (*vacatev1.LeaseServiceResizeResponse, error) {
		return c.Leases.Resize(ctx, req)
	})
	if err != nil {
		return err
	}
	l := res.GetLease()
	if a.format != formatTable {
		return encode(a.out, a.format, leaseViewOf(l))
	}
	if !req.GetPlan() {
		_, err = fmt.Fprintf(a.out, "%s  %s\n", l.GetId(), formatSize(l.GetSizeBytes()))
		return err
	}
	fmt.Fprintf(a.out, "%s  %s, now %s\n", l.GetId(), formatSize(l.GetSizeBytes()), formatSize(was.GetSizeBytes()))
	for _, more := range moreExtents(was, l) {
		fmt.Fprintf(a.out, "  takes %s\n", more)
	}
	_, err = fmt.Fprintln(a.out, "plan: its volume would get larger; nothing was changed")
	return err
}

// moreExtents says what lease l has beyond what it was: "2 extents of /dev/x".
func moreExtents(was, l *vacatev1.Lease) (all []string) {
	more := map[string]int64{}
	var drives []string
	for _, p := range l.GetPieces() {
		if more[p.GetDrive()] += int64(p.GetExtents()); !slices.Contains(drives, p.GetDrive()) {
			drives = append(drives, p.GetDrive())
		}
	}
	for _, p := range was.GetPieces() {
		more[p.GetDrive()] -= int64(p.GetExtents())
	}
	for _, d := range drives {
		switch n := more[d]; {
		case n == 1:
			all = append(all, "1 extent of "+d)
		case n > 1:
			all = append(all, fmt.Sprintf("%d extents of %s", n, d))
		}
	}
	if all == nil {
		all = []string{"no more extents: its last one has room"}
	}
	return all
}
