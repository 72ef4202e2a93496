package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
)

// upgradeDone is the outcome of an upgrade that went well; others say what failed.
const upgradeDone = "done"

// upgradeWithin is how long an upgrade may take, from asked to told: more than all
// that the keeper grants its steps, those of falling back included.
const upgradeWithin = 90 * time.Second

// settled is for how long an upgrade's outcome must stand: the last step, in which
// the keeper becomes the new program, follows the first word of success.
const settled = 300 * time.Millisecond

func (a *app) upgradeCommand() *cobra.Command {
	var plan bool
	c := &cobra.Command{
		Use:   "upgrade",
		Short: "Replace the daemon by the program that now lies in its place; leases stay open",
		Long: "Upgrade starts the program that lies at the daemon's path in place of the one that runs: engine, control and " +
			"keeper, one after the other. Leases stay open, and clients notice a pause of milliseconds. A program that does " +
			"not start, or does not take over, changes nothing: the old one goes on. It ends when all three processes are " +
			"the new program's, or when the upgrade has failed.",
		Example: "# after the new program was put in the place of the old one\nvacate upgrade --plan\nvacate upgrade",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.call(func(ctx context.Context, c *client.Client) error { return a.upgrade(ctx, c, plan) })
		},
	}
	c.Flags().BoolVar(&plan, "plan", false, "show what runs and what would; do nothing")
	return c
}

// A program is what lies at the daemon's path.
type programView struct {
	Path    string `json:"path"`
	Version string `json:"version,omitempty"`
	Error   string `json:"error,omitempty"` // why it did not tell
}

type processesView struct {
	Keeper  processView `json:"keeper"`
	Engine  processView `json:"engine"`
	Control processView `json:"control"`
}

type processView struct {
	Version string `json:"version"`
	PID     int32  `json:"pid,omitempty"`
}

type upgradeView struct {
	Program  programView    `json:"program"`
	Before   processesView  `json:"before"`
	After    *processesView `json:"after,omitempty"`
	Upgraded bool           `json:"upgraded"`
	Outcome  string         `json:"outcome,omitempty"`
}

func processesOf(s *vacatev1.NodeServiceStatusResponse) processesView {
	return processesView{
		Keeper:  processView{Version: s.GetKeeperVersion()},
		Engine:  processView{Version: s.GetEngine().GetVersion(), PID: s.GetEngine().GetPid()},
		Control: processView{Version: s.GetVersion(), PID: s.GetPid()},
	}
}

func (a *app) upgrade(ctx context.Context, c *client.Client, plan bool) error {
	before, err := statusOf(ctx, c, a.patience)
	if err != nil {
		return err
	}
	v := upgradeView{Program: programAt(ctx, before.GetBinary()), Before: processesOf(before)}
	a.printBefore(v)
	if plan {
		return a.printPlan(v)
	}
	began := time.Now()
	stop := a.spin("upgrading")
	after, err := a.replace(ctx, c, before)
	stop()
	if err != nil {
		return err
	}
	now := processesOf(after)
	v.After, v.Outcome, v.Upgraded = &now, after.GetLastUpgrade(), after.GetLastUpgrade() == upgradeDone
	if a.format != formatTable {
		if err := encode(a.out, a.format, v); err != nil {
			return err
		}
	} else {
		a.printProcesses("now", now)
	}
	if !v.Upgraded {
		return &ExitError{Code: ExitFailed, Err: fmt.Errorf("the upgrade has %s", v.Outcome),
			Next: "the old program goes on, and leases are open as before; the daemon's log says more"}
	}
	if a.format == formatTable {
		fmt.Fprintf(a.out, "upgraded in %.1f s; leases: %s\n", time.Since(began).Seconds(), leaseCounts(after.GetLeases()))
	}
	return nil
}

// replace asks for the upgrade and waits for its end, over the end of the process
// that was asked.
func (a *app) replace(ctx context.Context, c *client.Client, before *vacatev1.NodeServiceStatusResponse) (*vacatev1.NodeServiceStatusResponse, error) {
	if _, err := c.Node.Upgrade(ctx, &vacatev1.NodeServiceUpgradeRequest{}); err != nil && !cutOff(err) {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, a.upgradeWithin)
	defer cancel()
	var since time.Time // when the last control was seen first that tells of success
	var teller int32
	var refused time.Time // since when nobody listens
	for {
		st, err := statusOf(ctx, c, 2*time.Second)
		var gone *client.DialError
		if !errors.As(err, &gone) {
			refused = time.Time{}
		} else if refused.IsZero() {
			refused = time.Now()
		}
		switch {
		case !refused.IsZero() && time.Since(refused) >= time.Second: // the keeper never stops listening
			return nil, &ExitError{Code: ExitFailed, Err: fmt.Errorf("the daemon ended during the upgrade: %w", gone),
				Next: "start it again; it records what was lost, and the daemon's log says why it ended"}
		case err != nil || !newer(before, st): // away, or the old one
			teller = 0
		case st.GetLastUpgrade() != upgradeDone:
			return st, nil
		case teller != st.GetPid():
			teller, since = st.GetPid(), time.Now()
		case time.Since(since) >= settled:
			return st, nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, &ExitError{Code: ExitFailed, Err: fmt.Errorf("the upgrade was begun, and has not ended within %v", a.upgradeWithin),
				Next: "see `vacate status` and the daemon's log"}
		}
	}
}

// newer reports whether st tells of an upgrade that was begun after before:
// control and engine are others.
func newer(before, st *vacatev1.NodeServiceStatusResponse) bool {
	return st.GetLastUpgrade() != "" && st.GetEngine() != nil && st.GetEngine().GetId() != before.GetEngine().GetId() &&
		(st.GetPid() != before.GetPid() || !st.GetStartedAt().AsTime().Equal(before.GetStartedAt().AsTime()))
}

func statusOf(ctx context.Context, c *client.Client, patience time.Duration) (*vacatev1.NodeServiceStatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return c.Node.Status(ctx, &vacatev1.NodeServiceStatusRequest{})
}

func (a *app) printBefore(v upgradeView) {
	if a.format != formatTable {
		return
	}
	p := a.paint(a.out)
	program := plain(v.Program.Path)
	switch {
	case v.Program.Error != "":
		program = cell{text: printable(v.Program.Path + ": " + v.Program.Error), paint: p.yellow}
	case v.Program.Version != "":
		program.text += "  " + printable(v.Program.Version)
	}
	pairs(a.out, p, []pair{{"program", program}})
	a.printProcesses("runs", v.Before)
}

func (a *app) printProcesses(when string, ps processesView) {
	text := func(name string, p processView) string {
		parts := []string{name, p.Version}
		if p.Version == "" {
			parts[1] = "of unknown version"
		}
		if p.PID != 0 {
			parts = append(parts, fmt.Sprintf("(pid %d)", p.PID))
		}
		return strings.Join(parts, " ")
	}
	pairs(a.out, a.paint(a.out), []pair{{fmt.Sprintf("%-7s", when),
		plain(strings.Join([]string{text("keeper", ps.Keeper), text("engine", ps.Engine), text("control", ps.Control)}, ", "))}})
}

// printPlan says what an upgrade would do.
func (a *app) printPlan(v upgradeView) error {
	if a.format != formatTable {
		if err := encode(a.out, a.format, v); err != nil {
			return err
		}
	} else if v.Program.Error == "" {
		fmt.Fprintln(a.out, "plan: engine, control and keeper would become this program's, and leases stay open; nothing was changed")
	}
	if v.Program.Error != "" {
		return &ExitError{Code: ExitFailed, Err: errors.New("the program in the daemon's place does not tell its version: " + v.Program.Error),
			Next: "put one there that does; the daemon would refuse to upgrade to one that does not start"}
	}
	return nil
}

// versionsCell is one version where all processes have it, else all three.
func versionsCell(p painter, s *vacatev1.NodeServiceStatusResponse) cell {
	c := plain(s.GetVersion())
	for _, other := range []string{s.GetKeeperVersion(), s.GetEngine().GetVersion()} {
		if other != "" && other != s.GetVersion() {
			return cell{paint: p.yellow, text: printable(fmt.Sprintf("keeper %s, engine %s, control %s",
				s.GetKeeperVersion(), s.GetEngine().GetVersion(), s.GetVersion()))}
		}
	}
	return c
}
