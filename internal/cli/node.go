package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/internal/config"
	"vacate/internal/version"
)

func (a *app) serveCommand() *cobra.Command {
	var file string
	var check bool
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon",
		Long: "Serve runs the daemon until it is told to stop. With --dev it needs no root and no set-up: it keeps everything " +
			"under one folder, and makes a sparse 8 GiB file there as its drive. " +
			"Flags override the environment (VACATE_STATE_DIR, VACATE_LOG__LEVEL), which overrides the file.",
		Example: "vacate serve --dev ./vacate-dev\nvacate serve --config /etc/vacate/vacate.yaml --check-config",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			load := func() (config.Config, error) { return config.Load(config.Sources{File: file, Flags: c.Flags()}) }
			if check {
				cfg, err := load()
				if err != nil {
					return err
				}
				return a.printConfig(cfg)
			}
			if a.hooks.Serve == nil {
				return errors.New("this program was built without the daemon")
			}
			return a.hooks.Serve(c.Context(), load)
		},
	}
	c.Flags().StringVar(&file, "config", "", "file with the configuration, in YAML (default "+config.DefaultFile+" where it exists)")
	c.Flags().BoolVar(&check, "check-config", false, "print the values in force, or all that is wrong with them; start nothing")
	config.AddFlags(c.Flags())
	complete(c, "log-level", "debug", "info", "warn", "error")
	complete(c, "log-format", "text", "json")
	return c
}

// devicesCommand is the process that makes block devices, with flags; without any,
// [Main] runs it. It is for a daemon that has no privileges to start one, and says
// where that keeps its sockets.
func (a *app) devicesCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:    "devices",
		Short:  "Make block devices for a daemon without privileges (needs root)",
		Args:   noArgs,
		Hidden: true,
		RunE: func(c *cobra.Command, _ []string) error {
			if a.hooks.Devices == nil {
				return errors.New("this program was built without the daemon")
			}
			return a.hooks.Devices(func() (config.Config, error) {
				return config.Load(config.Sources{File: file, Flags: c.Flags()})
			})
		},
	}
	c.Flags().StringVar(&file, "config", "", "file with the daemon's configuration, in YAML (default "+config.DefaultFile+" where it exists)")
	config.AddFlags(c.Flags())
	return c
}

func (a *app) printConfig(cfg config.Config) error {
	if a.format == formatJSON {
		return encode(a.out, a.format, configViewOf(cfg))
	}
	if a.format == formatTable {
		fmt.Fprintln(a.out, "# config ok; these values are in force")
	}
	_, err := a.out.Write(cfg.YAML())
	return err
}

func (a *app) demoCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "demo",
		Short: "See the leak on a plain volume, then what Vacate does about it (20 seconds, no root)",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if a.hooks.Demo == nil {
				return errors.New("this program was built without the demo")
			}
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return a.hooks.Demo(ctx, DemoOptions{Out: a.out, Color: a.paint(a.out).on, Dir: dir})
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "folder for the demo's files (default: a temporary one)")
	return c
}

func (a *app) stopCommand() *cobra.Command {
	req := &vacatev1.NodeServiceStopRequest{}
	c := &cobra.Command{
		Use:   "stop",
		Short: "Stop the daemon; with leases open this is refused",
		Long: "Stop ends the daemon. With leases open it is refused, because their keys live in its memory only: stopping is " +
			"erasing. --erase closes all leases first; --plan shows which ones.",
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.call(func(ctx context.Context, c *client.Client) error {
				stop := a.spin("stopping")
				res, err := c.Node.Stop(ctx, req)
				if err == nil && res.GetStopping() {
					err = waitGone(ctx, c.Socket())
				}
				stop()
				if err != nil {
					return err
				}
				return a.printStop(res)
			})
		},
	}
	c.Flags().BoolVar(&req.Erase, "erase", false, "close all leases first; what they hold is erased")
	c.Flags().BoolVar(&req.Plan, "plan", false, "show what would be done; do nothing")
	return c
}

// goneWithin is how long a daemon that was told to stop may take to be gone.
const goneWithin = 15 * time.Second

// waitGone waits until the daemon has removed its socket, the last thing that it
// does: whoever starts another one after `vacate stop` finds the folder free.
func waitGone(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, goneWithin)
	defer cancel()
	for {
		if _, err := os.Lstat(socket); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the daemon was told to stop, and %s is still there after %v: see the daemon's log", socket, goneWithin)
		}
	}
}

func (a *app) printStop(res *vacatev1.NodeServiceStopResponse) error {
	if a.format != formatTable {
		return encode(a.out, a.format, stopView{Leases: orEmpty(res.GetLeases()), Stopping: res.GetStopping()})
	}
	n := len(res.GetLeases())
	switch {
	case res.GetStopping() && n > 0:
		fmt.Fprintf(a.out, "%s closed; stopped\n", leasesWord(n))
	case res.GetStopping():
		fmt.Fprintln(a.out, "stopped")
	case n > 0:
		fmt.Fprintf(a.out, "plan: stopping needs --erase, and would erase %s; nothing was changed\n", leasesWord(n))
	default:
		fmt.Fprintln(a.out, "plan: no leases are open, the daemon would stop; nothing was changed")
	}
	for _, id := range res.GetLeases() {
		fmt.Fprintln(a.out, "  "+printable(id))
	}
	return nil
}

func leasesWord(n int) string {
	if n == 1 {
		return "1 lease"
	}
	return strconv.Itoa(n) + " leases"
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the daemon: processes, space, leases, warnings",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.query(func(ctx context.Context, c *client.Client) error {
				res, err := c.Node.Status(ctx, &vacatev1.NodeServiceStatusRequest{})
				if err != nil {
					return err
				}
				if a.format != formatTable {
					return encode(a.out, a.format, statusViewOf(res))
				}
				a.showStatus(res)
				return nil
			})
		},
	}
}

func (a *app) showStatus(s *vacatev1.NodeServiceStatusResponse) {
	p := a.paint(a.out)
	ready := cell{text: "yes", paint: p.green}
	if !s.GetReady() {
		ready = cell{text: strings.TrimSuffix("no: "+printable(s.GetReadyWhy()), ": "), paint: p.red}
	}
	lines := []pair{
		{"ready", ready},
		{"version", versionsCell(p, s)},
		{"node", plain(s.GetNodeId())},
		{"since", plain(shortTime(s.GetStartedAt(), a.loc))},
		{"leases", plain(leaseCounts(s.GetLeases()))},
		{"drives", plain(strconv.Itoa(int(s.GetDrives())))},
		{"space", plain(fmt.Sprintf("%s free of %s", formatSize(s.GetFreeBytes()), formatSize(s.GetCapacityBytes())))},
	}
	if e := s.GetEngine(); e != nil {
		lines = append(lines,
			pair{"clients", plain(fmt.Sprintf("%d of %d", s.GetConnections(), e.GetMaxConnections()))},
			pair{"engine", plain(engineText(e))},
			pair{"cipher", plain(e.GetCipher())},
			pair{"keys", plain(e.GetKeyStore())},
			pair{"buffers", plain(e.GetBuffers())},
			pair{"sandbox", plain(printable(e.GetSandbox()))})
	} else {
		lines = append(lines, pair{"engine", cell{text: "none", paint: p.red}})
	}
	lines = append(lines, pair{"block devices", plain(printable(devicesText(s.GetDevices())))})
	if up := s.GetLastUpgrade(); up != "" {
		c := plain(up)
		if up != upgradeDone {
			c.paint = p.yellow
		}
		lines = append(lines, pair{"last upgrade", c})
	}
	for _, w := range s.GetWarnings() {
		lines = append(lines, pair{"warning", cell{text: printable(w), paint: p.yellow}})
	}
	for _, d := range s.GetDangerZone() {
		lines = append(lines, pair{"danger zone", cell{text: printable(d), paint: p.red}})
	}
	pairs(a.out, p, lines)
}

// engineText says which process serves the volumes, and how many did before it.
func engineText(e *vacatev1.Engine) string {
	text := fmt.Sprintf("pid %d", e.GetPid())
	switch n := e.GetGeneration(); {
	case n == 2:
		text += ", took over once"
	case n > 2:
		text += fmt.Sprintf(", took over %d times", n-1)
	}
	return text
}

// leaseCounts lists the states that leases are in, in the order of their life.
func leaseCounts(n map[string]uint32) string {
	var parts []string
	for _, state := range []string{"opening", "open", "closing", "erased", "closed", "lost"} {
		if n[state] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n[state], state))
		}
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			v := version.Get()
			if a.format != formatTable {
				return encode(a.out, a.format, v)
			}
			line := "vacate " + v.Version
			if v.Commit != "" {
				line += " " + v.Commit[:min(len(v.Commit), 12)]
				if v.Modified {
					line += " (modified)"
				}
			}
			fmt.Fprintf(a.out, "%s %s %s\n", line, v.Go, v.Platform)
			return nil
		},
	}
}
