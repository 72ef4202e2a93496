package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
)

func (a *app) leaseAttachCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "attach ID",
		Short: "Make a block device under /dev/vacate for an open lease",
		Long: "Attach makes the lease's volume a block device of this host, /dev/vacate/ID, which belongs to the lease's user, " +
			"and prints its path when it can be opened. A lease that has one keeps it. The device goes when the lease is closed, or with `vacate lease detach`. " +
			"`vacate status` says what makes block devices here.",
		Example:           "vacate lease attach ID\nmkfs.ext4 /dev/vacate/ID",
		Args:              needArgs(1, 1, "one lease id"),
		ValidArgsFunction: a.completeLeases,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.call(func(ctx context.Context, c *client.Client) error {
				defer a.spin("attaching " + printable(args[0]))()
				res, err := persist(ctx, func(ctx context.Context) (*vacatev1.LeaseServiceAttachResponse, error) {
					return c.Leases.Attach(ctx, &vacatev1.LeaseServiceAttachRequest{Id: args[0]})
				})
				if err != nil {
					return err
				}
				return a.printDevice(res.GetLease())
			})
		},
	}
}

func (a *app) leaseDetachCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "detach ID",
		Short: "Take a lease's block device away; the lease stays open",
		Long: "Detach takes the lease's block device away and leaves the lease open: its data is there when it is attached again. " +
			"A device that is mounted or held open is not taken away; what uses it is named. A lease without one stays as it is.",
		Args:              needArgs(1, 1, "one lease id"),
		ValidArgsFunction: a.completeLeases,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.call(func(ctx context.Context, c *client.Client) error {
				defer a.spin("detaching " + printable(args[0]))()
				res, err := persist(ctx, func(ctx context.Context) (*vacatev1.LeaseServiceDetachResponse, error) {
					return c.Leases.Detach(ctx, &vacatev1.LeaseServiceDetachRequest{Id: args[0]})
				})
				if err != nil {
					return err
				}
				return a.printDevice(res.GetLease())
			})
		},
	}
}

// printDevice prints a lease by its device.
func (a *app) printDevice(l *vacatev1.Lease) error {
	if a.format != formatTable {
		return encode(a.out, a.format, leaseViewOf(l))
	}
	_, err := fmt.Fprintf(a.out, "%s  %s\n", l.GetId(), orDash(printable(deviceText(l))))
	return err
}

// deviceText is a lease's block device and what serves it; empty without one.
func deviceText(l *vacatev1.Lease) string {
	if l.GetDevice() == "" {
		return ""
	}
	return l.GetDevice() + " (" + l.GetDeviceKind() + ")"
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// devicesText says how leases get block devices on a host, and why not better.
func devicesText(d *vacatev1.Devices) string {
	if d == nil {
		return "" // an older daemon
	}
	text := d.GetKind()
	if text == "" {
		text = "none"
	}
	if d.GetCount() > 0 {
		text += fmt.Sprintf(", %d attached", d.GetCount())
	}
	if d.GetWhy() != "" {
		text += ": " + d.GetWhy()
	}
	return text
}
