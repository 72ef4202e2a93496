package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
)

func (a *app) leaseCommand() *cobra.Command {
	return group("lease", "Prepare, open, show, attach, resize, limit and close leases: one tenant's hold on one volume",
		a.leaseOpenCommand(), a.leasePrepareCommand(), a.leaseListCommand(), a.leaseShowCommand(), a.leaseAttachCommand(), a.leaseDetachCommand(), a.leaseResizeCommand(), a.leaseLimitCommand(), a.leaseCloseCommand(), a.leaseWatchCommand())
}

const leaseOpenExample = "vacate lease open --size 10GiB --tenant acme\n" +
	"# for another user's process, on one drive, gone after a day at the latest\n" +
	"vacate lease open --size 1TiB --tenant acme --uid libvirt-qemu --drive /dev/nvme1n1 --ttl 24h\n" +
	"# a share of a drive\n" +
	"vacate lease open --size 100GiB --tenant acme --limit iops=5000,bandwidth=200MiB\n" +
	"# erased by a time, and a receipt for the tenant, to demand the certificate with\n" +
	"vacate lease open --size 10GiB --tenant acme --erase-by 24h --receipt acme.receipt.json\n" +
	"# a block device of this host, /dev/vacate/ID\n" +
	"vacate lease open --size 10GiB --tenant acme --attach\n" +
	"# for a virtual machine, and what to paste into its configuration\n" +
	"vacate lease open --size 20GiB --tenant acme --uid libvirt-qemu --export vhost-user --print-config libvirt"

func (a *app) leaseOpenCommand() *cobra.Command {
	var size sizeFlag
	var limits limitsFlag
	var exports exportFlags
	var program programFlag
	var proofs proofFlags
	var tenant, drive, uid, key string
	var logical uint32
	var ttl time.Duration
	var attach bool
	c := &cobra.Command{
		Use:     "open --size SIZE",
		Short:   "Open a lease: a new volume that reads zeros, and a way to reach it",
		Example: leaseOpenExample,
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if !size.set {
				return usageErrorf("the lease's size is missing: write --size 1GiB")
			}
			req := &vacatev1.LeaseServiceOpenRequest{SizeBytes: size.bytes, Tenant: tenant, Drive: driveName(drive),
				LogicalBlock: logical, IdempotencyKey: key, Limits: limits.limits, Attach: attach}
			if err := exports.set(c, req); err != nil {
				return err
			}
			if program.name != "" && !slices.Contains(exports.kinds, exportVhostUser) {
				return usageErrorf("--print-config is for virtual machines: add --export vhost-user")
			}
			if c.Flags().Changed("ttl") {
				req.Ttl = durationpb.New(ttl)
			}
			if uid != "" {
				n, err := parseUID(uid)
				if err != nil {
					return err
				}
				req.Uid = &n
			}
			if err := proofs.set(a, req); err != nil {
				return err
			}
			return a.call(func(ctx context.Context, c *client.Client) error {
				res, err := openLease(ctx, c, req)
				if err != nil {
					return err
				}
				return errors.Join(a.printOpened(res.GetLease(), program), proofs.keep(a, res))
			})
		},
	}
	f := c.Flags()
	f.Var(&size, "size", "size of the volume, as 10GiB; a multiple of 4096 bytes")
	f.StringVar(&tenant, "tenant", "", "who the lease is for: any name")
	f.StringVar(&drive, "drive", "", "path or UUID of the drive to take (default: by free space)")
	f.DurationVar(&ttl, "ttl", 0, "close the lease by itself after this time, as 24h (default: never)")
	f.Lookup("ttl").DefValue = "" // the help says it already
	f.Uint32Var(&logical, "logical-block", 0, "logical block size in bytes, 512 or 4096 (default 512)")
	f.StringVar(&key, "idempotency-key", "", "a second open with the same key returns the lease of the first (default: random)")
	f.StringVar(&uid, "uid", "", "user, by name or number, that may connect to the volume (default: you)")
	f.BoolVar(&attach, "attach", false, "make a block device of this host, too: /dev/vacate/ID")
	exports.add(c)
	program.add(c)
	proofs.add(c)
	f.Var(&limits, "limit", limitsUsage+" (default: unlimited)")
	complete(c, "size")
	a.completeLimits(c)
	complete(c, "logical-block", "512", "4096")
	a.completeDrives(c, "drive")
	return c
}

// openLease opens a lease. Without a key of the caller's it takes one of its own,
// so that the call can be repeated when it was cut off. What was opened then, but
// undone by a restart before anybody was told, is opened anew.
// A tenant's share can be used once, so that there nothing is opened anew.
func openLease(ctx context.Context, c *client.Client, req *vacatev1.LeaseServiceOpenRequest) (*vacatev1.LeaseServiceOpenResponse, error) {
	own := req.IdempotencyKey == ""
	for n := 0; ; n++ {
		if own {
			req.IdempotencyKey = randomKey()
		}
		res, err := persist(ctx, func(ctx context.Context) (*vacatev1.LeaseServiceOpenResponse, error) { return c.Leases.Open(ctx, req) })
		if err != nil {
			return nil, err
		}
		if !own || res.GetLease().GetState() <= vacatev1.LeaseState_LEASE_STATE_OPEN || n == 3 || req.GetShare() != nil {
			return res, nil
		}
	}
}

// parseUID reads a uid, or the name of a user of this host.
func parseUID(s string) (uint32, error) {
	text := s
	if strings.Trim(s, "0123456789") != "" {
		u, err := user.Lookup(s)
		if err != nil {
			return 0, usageErrorf("--uid %s: there is no such user on this host", s)
		}
		text = u.Uid
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n == 1<<32-1 {
		return 0, usageErrorf("--uid %s: no user has this number", s)
	}
	return uint32(n), nil
}

// printOpened prints a lease that was opened, and how to use it; or only what to
// paste for a program.
func (a *app) printOpened(l *vacatev1.Lease, program programFlag) error {
	if done, err := a.printFor(l, program); done {
		return err
	}
	p := a.paint(a.out)
	lines := []pair{
		{"lease", cell{text: l.GetId(), paint: p.bold}},
		{"state", cell{text: stateName(l.GetState()), paint: p.state}},
		{"size", plain(formatSize(l.GetSizeBytes()))},
		{"tenant", plain(l.GetTenant())},
		{"drive", plain(driveOf(l))},
		{"limits", plain(limitsText(l.GetLimits()))},
		{"expires", plain(shortTime(l.GetExpiresAt(), a.loc))},
	}
	for _, e := range l.GetExports() {
		lines = append(lines, pair{e.GetKind(), plain(exportText(e))})
	}
	lines = append(lines, pair{"device", plain(deviceText(l))})
	pairs(a.out, p, lines)
	if try := tryText(l); len(try) > 0 {
		fmt.Fprintf(a.out, "\n%s\n  %s\n", p.dim("try:"), strings.Join(try, "\n  "))
	}
	return nil
}

// printFor prints a lease for a program: as JSON or YAML, with what to paste
// where that is wanted; or only that. Where it reports false, a person is to see
// the lease.
func (a *app) printFor(l *vacatev1.Lease, program programFlag) (done bool, err error) {
	text, err := program.text(l)
	switch {
	case err != nil:
		return true, err
	case a.format != formatTable:
		v := leaseViewOf(l)
		v.Config = text
		return true, encode(a.out, a.format, v)
	case text != "":
		_, err = io.WriteString(a.out, text)
		return true, err
	}
	return false, nil
}

// driveOf is the drives of a lease in a few words.
func driveOf(l *vacatev1.Lease) string {
	seen := make(map[string]bool)
	for _, p := range l.GetPieces() {
		seen[p.GetDriveUuid()] = true
	}
	if len(seen) > 1 {
		return fmt.Sprintf("%s and %d more", l.GetDrive(), len(seen)-1)
	}
	return l.GetDrive()
}

// shellQuote quotes a word for a shell: a URI has a question mark.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func (a *app) leaseListCommand() *cobra.Command {
	var tenant string
	var all bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the leases that you may see",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.query(func(ctx context.Context, c *client.Client) error {
				res, err := c.Leases.List(ctx, &vacatev1.LeaseServiceListRequest{Tenant: tenant, IncludeEnded: all})
				if err != nil {
					return err
				}
				return a.printLeases(res.GetLeases(), all)
			})
		},
	}
	c.Flags().StringVar(&tenant, "tenant", "", "only leases of this tenant")
	c.Flags().BoolVar(&all, "all", false, "leases that ended, too")
	return c
}

func (a *app) printLeases(leases []*vacatev1.Lease, all bool) error {
	if a.format != formatTable {
		return encode(a.out, a.format, leaseViews(leases))
	}
	if len(leases) == 0 {
		if all {
			fmt.Fprintln(a.out, "no leases")
		} else {
			fmt.Fprintln(a.out, "no open leases; open one with `vacate lease open --size 1GiB`, see those that ended with --all")
		}
		return nil
	}
	p := a.paint(a.out)
	var rows [][]cell
	for _, l := range leases {
		rows = append(rows, []cell{
			plain(l.GetId()), {text: stateName(l.GetState()), paint: p.state}, numeric(formatSize(l.GetSizeBytes())), numeric(written(l)),
			numeric(clients(l)), plain(orDash(l.GetDevice())), plain(l.GetTenant()), plain(driveOf(l)), plain(shortTime(l.GetOpenedAt(), a.loc)), plain(l.GetResult()),
		})
	}
	table(a.out, p, []string{"LEASE", "STATE", "SIZE", "WRITTEN", "CLIENTS", "DEVICE", "TENANT", "DRIVE", "OPENED", "RESULT"}, rows)
	return nil
}

func written(l *vacatev1.Lease) string {
	if l.GetStats() == nil {
		return "-"
	}
	return formatSize(int64(l.GetStats().GetWrittenBytes()))
}

func clients(l *vacatev1.Lease) string {
	if l.GetStats() == nil {
		return "-"
	}
	return strconv.Itoa(int(l.GetStats().GetConnections()))
}

func (a *app) leaseShowCommand() *cobra.Command {
	var program programFlag
	c := &cobra.Command{
		Use:               "show ID",
		Short:             "Show one lease, ended ones included",
		Args:              needArgs(1, 1, "one lease id"),
		ValidArgsFunction: a.completeLeases,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.query(func(ctx context.Context, c *client.Client) error {
				res, err := c.Leases.Get(ctx, &vacatev1.LeaseServiceGetRequest{Id: args[0]})
				if err != nil {
					return err
				}
				if done, err := a.printFor(res.GetLease(), program); done {
					return err
				}
				a.showLease(res.GetLease())
				return nil
			})
		},
	}
	program.add(c)
	return c
}

func (a *app) showLease(l *vacatev1.Lease) {
	p := a.paint(a.out)
	lines := []pair{
		{"lease", cell{text: l.GetId(), paint: p.bold}},
		{"state", cell{text: stateName(l.GetState()), paint: p.state}},
		{"result", plain(l.GetResult())},
		{"note", plain(l.GetText())},
		{"size", plain(formatSize(l.GetSizeBytes()))},
		{"logical block", plain(fmt.Sprintf("%d bytes", l.GetLogicalBlock()))},
		{"limits", plain(limitsText(l.GetLimits()))},
		{"tenant", plain(l.GetTenant())},
		{"uid", plain(strconv.Itoa(int(l.GetUid())))},
		{"opened", plain(shortTime(l.GetOpenedAt(), a.loc))},
		{"expires", plain(shortTime(l.GetExpiresAt(), a.loc))},
		{"erased by", plain(shortTime(l.GetEraseBy(), a.loc))},
		{"key", plain(keyText(l))},
		{"ended", plain(shortTime(l.GetClosedAt(), a.loc))},
	}
	for _, e := range l.GetExports() {
		lines = append(lines, pair{e.GetKind(), plain(exportText(e))})
	}
	lines = append(lines, pair{"device", plain(deviceText(l))})
	for _, pc := range l.GetPieces() {
		lines = append(lines, pair{"space", plain(fmt.Sprintf("%s, %d extents from %d", pc.GetDrive(), pc.GetExtents(), pc.GetFirstExtent()))})
	}
	if s := l.GetStats(); s != nil {
		lines = append(lines,
			pair{"clients", plain(strconv.Itoa(int(s.GetConnections())))},
			pair{"holds data", plain(formatSize(int64(s.GetWrittenBytes())))},
			pair{"read", plain(fmt.Sprintf("%s in %d requests", formatSize(int64(s.GetReadBytes())), s.GetReads()))},
			pair{"written", plain(fmt.Sprintf("%s in %d requests", formatSize(int64(s.GetWriteBytes())), s.GetWrites()))},
			pair{"discards", plain(strconv.FormatUint(s.GetDiscards(), 10))},
			pair{"flushes", plain(strconv.FormatUint(s.GetFlushes(), 10))},
			pair{"errors", plain(strconv.FormatUint(s.GetErrors(), 10))},
			pair{"queues", plain(queuesText(s))})
	}
	if l.GetErasure() != nil {
		lines = append(lines, pair{"erasure", plain(erasureText(l))})
	}
	pairs(a.out, p, lines)
}

// erasureText says what was observed when a lease's key was destroyed, and no
// more. REQUIRES: l has an erasure.
func erasureText(l *vacatev1.Lease) string {
	e := l.GetErasure()
	parts := []string{fmt.Sprintf("key destroyed %s after the gate shut", micros(e.GetGateToKeyDestroyedNs()))}
	if e.GetReadBack() {
		parts = append(parts, "read back as zeros")
	} else {
		parts = append(parts, "NOT read back")
	}
	switch {
	case e.GetDrained():
		parts = append(parts, "I/O drained")
	case e.GetQuarantined() && l.GetText() != "": // which says until when
		parts = append(parts, "space quarantined")
	case e.GetQuarantined():
		parts = append(parts, "space quarantined until I/O has drained")
	default:
		parts = append(parts, "I/O not seen to drain")
	}
	return strings.Join(parts, ", ")
}

// micros is a time in microseconds, the unit in which erasures are told.
func micros(ns int64) string {
	return strconv.FormatFloat(float64(ns)/1e3, 'f', 1, 64) + " µs"
}
