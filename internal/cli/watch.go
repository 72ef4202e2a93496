package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
)

func (a *app) leaseWatchCommand() *cobra.Command {
	var tenant string
	c := &cobra.Command{
		Use:   "watch [ID…]",
		Short: "Print leases as they change, until interrupted or all that were named have ended",
		Long: "Print leases as they are, and each again whenever its state or its limits change. " +
			"With ids, it ends when all of them have ended. With -o json each line is one lease.",
		Args:              needArgs(0, -1, "lease ids"),
		ValidArgsFunction: a.completeLeases,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.call(func(ctx context.Context, c *client.Client) error {
				return a.watch(ctx, c, &vacatev1.LeaseServiceWatchRequest{Ids: args, Tenant: tenant})
			})
		},
	}
	c.Flags().StringVar(&tenant, "tenant", "", "only leases of this tenant")
	return c
}

func (a *app) watch(ctx context.Context, c *client.Client, req *vacatev1.LeaseServiceWatchRequest) error {
	stream, err := c.Leases.Watch(ctx, req)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // its error was told by Err, or does not matter any more
	left := make(map[string]bool)
	for _, id := range req.GetIds() {
		left[id] = true
	}
	for stream.Receive() {
		l := stream.Msg().GetLease()
		if err := a.printChange(a.out, l); err != nil {
			return err
		}
		if s := l.GetState(); s == vacatev1.LeaseState_LEASE_STATE_CLOSED || s == vacatev1.LeaseState_LEASE_STATE_LOST {
			delete(left, l.GetId())
		}
		if len(req.GetIds()) > 0 && len(left) == 0 {
			return nil
		}
	}
	if err := stream.Err(); err != nil {
		if ctx.Err() != nil {
			return nil // an interrupt is how a watch ends
		}
		return err
	}
	return &ExitError{Code: ExitFailed, Err: errors.New("the daemon ended the watch"), Next: "see `vacate status`"}
}

func (a *app) printChange(w io.Writer, l *vacatev1.Lease) error {
	if a.format != formatTable {
		return encodeLine(w, a.format, leaseViewOf(l))
	}
	p, state := a.paint(w), stateName(l.GetState())
	line := fmt.Sprintf("%s  %s  %s  %s", time.Now().In(a.loc).Format("15:04:05"), l.GetId(),
		p.state(state)+strings.Repeat(" ", max(0, len("opening")-len(state))), formatSize(l.GetSizeBytes()))
	if l.GetTenant() != "" {
		line += "  " + printable(l.GetTenant())
	}
	if text := limitsText(l.GetLimits()); text != "" {
		line += "  " + text
	}
	if l.GetErasure() != nil {
		line += "  " + erasureText(l)
	}
	_, err := fmt.Fprintln(w, line)
	return err
}
