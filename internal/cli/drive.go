package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
)

func (a *app) driveCommand() *cobra.Command {
	return group("drive", "Enrol and show drives", a.driveEnrollCommand(), a.driveListCommand(), a.driveShowCommand())
}

func (a *app) driveEnrollCommand() *cobra.Command {
	req := &vacatev1.DriveServiceEnrollRequest{}
	c := &cobra.Command{
		Use:   "enroll PATH",
		Short: "Take a drive into use; what it holds is given up",
		Long: "Enroll inspects a file, block device, partition or logical volume, and takes it into use. " +
			"It refuses what is mounted or held, and what has a partition table, a file system, or any other signature. " +
			"--plan shows what was found and what would be done. --force overrides a signature, never a mount, and wants the " +
			"drive's serial number or path typed again.",
		Example: "vacate drive enroll --plan /dev/nvme1n1\n" +
			"vacate drive enroll /dev/nvme1n1\n" +
			"vacate drive enroll --force --confirm S4EVNX0N123456 /dev/nvme1n1",
		Args: needArgs(1, 1, "the path of one drive"),
		RunE: func(_ *cobra.Command, args []string) error {
			path, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			req.Path = path
			if req.GetConfirm() != "" && !req.GetForce() {
				return usageErrorf("--confirm goes with --force")
			}
			return a.call(func(ctx context.Context, c *client.Client) error { return a.enroll(ctx, c, req) })
		},
	}
	f := c.Flags()
	f.BoolVar(&req.Plan, "plan", false, "show what was found and would be done; do nothing")
	f.BoolVar(&req.Force, "force", false, "give up what the drive holds")
	f.StringVar(&req.Confirm, "confirm", "", "with --force: the drive's serial number or path, typed again")
	complete(c, "confirm")
	return c
}

func (a *app) enroll(ctx context.Context, c *client.Client, req *vacatev1.DriveServiceEnrollRequest) error {
	if req.GetForce() && !req.GetPlan() && req.GetConfirm() == "" {
		if err := a.askConfirm(ctx, c, req); err != nil {
			return err
		}
	}
	res, err := c.Drives.Enroll(ctx, req)
	if err != nil {
		if fs := client.ProblemOf(err).GetFindings(); refused(fs, false) {
			err = &ExitError{Code: exitCode(err), Err: err, Next: forceHint(req, fs)}
		}
		return err
	}
	if a.format != formatTable {
		err = encode(a.out, a.format, enrolmentView{Drive: driveViewOf(res.GetDrive()), Findings: findingViews(res.GetFindings()), Enrolled: res.GetEnrolled()})
	} else {
		a.printEnrolment(req, res)
	}
	if err == nil && !res.GetEnrolled() && refused(res.GetFindings(), req.GetForce()) {
		// The findings are printed already; the code tells scripts.
		err = &ExitError{Code: ExitRefused, Err: fmt.Errorf("%s would not be enrolled", req.GetPath()), Next: forceHint(req, res.GetFindings())}
	}
	return err
}

// askConfirm lets a person type the serial or path again. A script must give it.
func (a *app) askConfirm(ctx context.Context, c *client.Client, req *vacatev1.DriveServiceEnrollRequest) error {
	if !a.terminal(a.in) || !a.terminal(a.err) {
		return &ExitError{Code: ExitUsage, Err: errors.New("--force wants the drive typed again"),
			Next: "add --confirm with the drive's serial number or path"}
	}
	res, err := c.Drives.Enroll(ctx, &vacatev1.DriveServiceEnrollRequest{Path: req.GetPath(), Plan: true, Force: true})
	if err != nil {
		return err
	}
	p := a.paint(a.err)
	for _, f := range findingViews(res.GetFindings()) {
		printFinding(a.err, p, f)
	}
	what := "path"
	if res.GetDrive().GetSerial() != "" {
		what = "serial number or path"
	}
	fmt.Fprintf(a.err, "All that %s holds will be lost. Type its %s again to go on: ", printable(req.GetPath()), what)
	line, err := bufio.NewReader(io.LimitReader(a.in, 4096)).ReadString('\n')
	if req.Confirm = strings.TrimSpace(line); req.GetConfirm() == "" {
		return &ExitError{Code: ExitRefused, Err: errors.Join(errors.New("not confirmed; nothing was changed"), ignoreEOF(err))}
	}
	return nil
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// refused tells whether findings keep a drive from being enrolled.
func refused(fs []*vacatev1.Finding, force bool) bool {
	for _, f := range fs {
		if f.GetRefuse() && (!force || !f.GetForce()) {
			return true
		}
	}
	return false
}

func forceHint(req *vacatev1.DriveServiceEnrollRequest, fs []*vacatev1.Finding) string {
	if refused(fs, true) {
		return "mend what was found; --force does not override it"
	}
	return fmt.Sprintf("if nothing of it is needed: vacate drive enroll --force --confirm SERIAL-OR-PATH %s", req.GetPath())
}

func (a *app) printEnrolment(req *vacatev1.DriveServiceEnrollRequest, res *vacatev1.DriveServiceEnrollResponse) {
	p := a.paint(a.out)
	for _, f := range findingViews(res.GetFindings()) {
		printFinding(a.out, p, f)
	}
	a.showDrive(res.GetDrive())
	switch {
	case res.GetEnrolled():
		fmt.Fprintf(a.out, "\n%s\n", p.green("enrolled"))
	case !refused(res.GetFindings(), req.GetForce()):
		fmt.Fprintf(a.out, "\nplan: it would be enrolled, and all that it holds given up; nothing was changed\n")
	}
}

func printFinding(w io.Writer, p painter, f findingView) {
	word, paint := printable(f.Code), p.dim
	switch {
	case f.Refuse && f.Force:
		word, paint = "in the way ("+word+")", p.yellow
	case f.Refuse:
		word, paint = "refused ("+word+")", p.red
	}
	fmt.Fprintf(w, "%s %s\n", paint(word+":"), printable(f.Text))
}

func (a *app) driveListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the enrolled drives",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.query(func(ctx context.Context, c *client.Client) error {
				res, err := c.Drives.List(ctx, &vacatev1.DriveServiceListRequest{})
				if err != nil {
					return err
				}
				return a.printDrives(res.GetDrives())
			})
		},
	}
}

func (a *app) printDrives(drives []*vacatev1.Drive) error {
	if a.format != formatTable {
		vs := make([]driveView, 0, len(drives))
		for _, d := range drives {
			vs = append(vs, driveViewOf(d))
		}
		return encode(a.out, a.format, vs)
	}
	if len(drives) == 0 {
		fmt.Fprintln(a.out, "no drives; enrol one with `vacate drive enroll --plan PATH`, then without --plan")
		return nil
	}
	p := a.paint(a.out)
	var rows [][]cell
	for _, d := range drives {
		rows = append(rows, []cell{
			plain(d.GetPath()), {text: printable(d.GetState()), paint: p.state}, numeric(formatSize(d.GetSizeBytes())), numeric(formatSize(d.GetFreeBytes())),
			numeric(formatSize(d.GetLeasedBytes())), numeric(formatSize(d.GetQuarantinedBytes())), plain(d.GetEngine()), plain(d.GetFlush()), plain(d.GetModel()),
		})
	}
	table(a.out, p, []string{"DRIVE", "STATE", "SIZE", "FREE", "LEASED", "QUARANTINED", "ENGINE", "FLUSH", "MODEL"}, rows)
	return nil
}

// driveName makes a path that was typed relative to this folder one that the
// daemon knows. UUIDs and serial numbers stay as they are.
func driveName(s string) string {
	if s == "" || filepath.IsAbs(s) {
		return s
	}
	if _, err := os.Stat(s); err != nil {
		return s
	}
	if abs, err := filepath.Abs(s); err == nil {
		return abs
	}
	return s
}

func (a *app) driveShowCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "show DRIVE",
		Short: "Show one drive, by path, UUID or serial number",
		Args:  needArgs(1, 1, "one drive"),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.query(func(ctx context.Context, c *client.Client) error {
				res, err := c.Drives.Get(ctx, &vacatev1.DriveServiceGetRequest{Drive: driveName(args[0])})
				if err != nil {
					return err
				}
				if a.format != formatTable {
					return encode(a.out, a.format, driveViewOf(res.GetDrive()))
				}
				a.showDrive(res.GetDrive())
				return nil
			})
		},
	}
	c.ValidArgsFunction = a.completeDriveArgs
	return c
}

func (a *app) showDrive(d *vacatev1.Drive) {
	p := a.paint(a.out)
	engine := d.GetEngine()
	if d.GetDirect() {
		engine += ", O_DIRECT"
	}
	if why := d.GetEngineWhy(); why != "" {
		engine += ": " + why
	}
	failed := ""
	if d.GetErrors() > 0 {
		failed = strings.TrimSuffix(fmt.Sprintf("%d, the last: %s", d.GetErrors(), d.GetLastError()), ", the last: ")
	}
	optional := func(n int64) string {
		if n == 0 {
			return ""
		}
		return formatSize(n)
	}
	extents := ""
	if d.GetExtents() > 0 {
		extents = fmt.Sprintf("%d of %s", d.GetExtents(), formatSize(d.GetExtentBytes()))
	}
	pairs(a.out, p, []pair{
		{"drive", cell{text: printable(d.GetPath()), paint: p.bold}},
		{"state", cell{text: printable(d.GetState()), paint: p.state}},
		{"why", plain(d.GetStateWhy())},
		{"uuid", plain(d.GetUuid())},
		{"kind", plain(d.GetKind())},
		{"model", plain(d.GetModel())},
		{"serial", plain(d.GetSerial())},
		{"size", plain(formatSize(d.GetSizeBytes()))},
		{"free", plain(optional(d.GetFreeBytes()))},
		{"leased", plain(optional(d.GetLeasedBytes()))},
		{"quarantined", plain(optional(d.GetQuarantinedBytes()))},
		{"engine", plain(engine)},
		{"flush", plain(strings.TrimSuffix(d.GetFlush()+": "+d.GetFlushWhy(), ": "))},
		{"blocks", plain(fmt.Sprintf("%d bytes logical, %d physical", d.GetLogicalBlock(), d.GetPhysicalBlock()))},
		{"extents", plain(extents)},
		{"errors", plain(failed)},
		{"mended", plain(strings.Join(d.GetRepaired(), ", "))},
	})
}
