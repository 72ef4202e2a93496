// Package cli is the command line: the tree of commands, what they print, and
// their exit codes. What starts processes is handed in as [Hooks].
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"charm.land/fang/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vacate/client"
	"vacate/internal/bench"
	"vacate/internal/config"
	"vacate/internal/version"
)

// Hooks are what the commands run that are not calls of the API.
type Hooks struct {
	// Serve runs the daemon until it is told to stop. It handles signals itself, and
	// loads the configuration: what an upgrade hands over to it must not end
	// because that has a fault.
	Serve func(ctx context.Context, load func() (config.Config, error)) error
	// Engine and Control are the daemon's other processes, which the first one
	// starts as `vacate engine` and `vacate control`. They run before anything of
	// the command line is made, so that they start fast and stay small.
	Engine, Control func() error
	// Devices is the process that makes block devices. What serve starts has its
	// settings already; by hand, or as a service of its own, it loads them.
	Devices func(load func() (config.Config, error)) error
	// Demo tells the story on a terminal or a pipe. ctx ends on an interrupt.
	Demo func(ctx context.Context, opts DemoOptions) error
	// Bench measures a drive.
	Bench BenchHooks
	// CSI serves the Container Storage Interface until ctx ends.
	CSI func(ctx context.Context, o CSIOptions) error
}

// BenchHooks are what `vacate bench` runs.
type BenchHooks struct {
	// Plan says what Run would do, and changes nothing.
	Plan func(o bench.Options) (bench.Plan, error)
	// Run does what was planned. ctx ends on an interrupt; tell is called before each
	// of its steps. With an error the report is not complete.
	Run func(ctx context.Context, p bench.Plan, tell func(bench.Event)) (bench.Report, error)
}

// devices is Devices without flags.
func (h Hooks) devices() func() error {
	if h.Devices == nil {
		return nil
	}
	return func() error {
		return h.Devices(func() (config.Config, error) { return config.Load(config.Sources{}) })
	}
}

// DemoOptions are what `vacate demo` was asked.
type DemoOptions struct {
	Out   io.Writer
	Color bool   // Out is a terminal that shows colours
	Dir   string // where the demo keeps its files; empty: a temporary folder
}

// Streams are where a command reads and writes, and its environment.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
	Getenv   func(string) string
}

// Standard are the process's own streams.
func Standard() Streams {
	return Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv}
}

// Main runs the command line and returns its exit code.
func Main(args []string, hooks Hooks, s Streams) int {
	if len(args) == 1 {
		if run := map[string]func() error{"engine": hooks.Engine, "control": hooks.Control, "devices": hooks.devices()}[args[0]]; run != nil {
			return child(args[0], run, s.Err)
		}
	}
	return mainIn(time.Local, args, hooks, s)
}

// mainIn is Main with the time zone that people are shown.
func mainIn(loc *time.Location, args []string, hooks Hooks, s Streams) int {
	a := newApp(hooks, s)
	a.loc = loc
	root := a.root()
	root.SetArgs(args)
	err := fang.Execute(context.Background(), root,
		fang.WithVersion(version.String()),
		fang.WithColorSchemeFunc(fang.AnsiColorScheme),
		fang.WithErrorHandler(func(_ io.Writer, _ fang.Styles, err error) { a.printError(a.err, err) }))
	return exitCode(err)
}

// Root is the tree of commands, for documentation and tests of its shape.
func Root(hooks Hooks) *cobra.Command {
	return newApp(hooks, Standard()).root()
}

// child runs one of the daemon's processes.
func child(name string, run func() error, w io.Writer) int {
	if err := run(); err != nil {
		fmt.Fprintf(w, "vacate %s: %v\n", name, err)
		return exitCode(err)
	}
	return ExitOK
}

// An app is one run of the command line.
type app struct {
	hooks  Hooks
	in     io.Reader
	out    io.Writer
	err    io.Writer
	getenv func(string) string
	loc    *time.Location // of times for people

	patience      time.Duration // see query
	upgradeWithin time.Duration // see upgrade

	addr   string // --addr
	format format // --output
}

func newApp(hooks Hooks, s Streams) *app {
	return &app{hooks: hooks, in: s.In, out: s.Out, err: s.Err, getenv: s.Getenv, format: formatTable, loc: time.Local,
		patience: patience, upgradeWithin: upgradeWithin}
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "vacate",
		Short: "Local SSDs for VMs and containers, at the drive's speed, that forget",
		Long: "Vacate gives the space of local SSDs to tenants as encrypted volumes. When a tenant leaves, its key is " +
			"destroyed within a millisecond, and the next tenant reads zeros.",
		Example: "# a daemon that needs no root, and a volume from it\n" +
			"vacate serve --dev ./vacate-dev\n" +
			"vacate lease open --size 1GiB --tenant acme\n" +
			"# when the tenant leaves\n" +
			"vacate lease close ID",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &ExitError{Code: ExitUsage, Err: flagError(err), Next: fmt.Sprintf("see `%s --help`", c.CommandPath())}
	})
	root.PersistentFlags().StringVar(&a.addr, "addr", "", "socket of the daemon (default $VACATE_ADDR, then "+client.DefaultSocket+", then ./vacate-dev/vacate.sock)")
	root.PersistentFlags().VarP(&a.format, "output", "o", "how to print: table, json or yaml")
	complete(root, "output", "table", "json", "yaml")
	root.AddCommand(a.serveCommand(), a.devicesCommand(), a.demoCommand(), a.stopCommand(), a.upgradeCommand(), a.statusCommand(),
		a.driveCommand(), a.leaseCommand(), a.tenantCommand(), a.certificateCommand(), a.logCommand(), a.policyCommand(), a.keysCommand(),
		a.statementCommand(), a.benchCommand(), a.csiCommand(), a.versionCommand())
	return root
}

// flagError is what a flag's value says is wrong with it, without the words
// that the parser wraps around.
func flagError(err error) error {
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) {
		return fmt.Errorf("--%s: %w", invalid.GetFlag().Name, errors.Unwrap(err))
	}
	return err
}

// group is a command that only holds others.
func group(use, short string, children ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: noArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(children...)
	return c
}

// noArgs refuses arguments; for a group they are the name of no command.
func noArgs(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	what := fmt.Errorf("%s takes no arguments, and was given %q", c.CommandPath(), args[0])
	next := fmt.Sprintf("see `%s --help`", c.CommandPath())
	if c.HasSubCommands() {
		what = fmt.Errorf("there is no command %q", c.CommandPath()+" "+args[0])
		c.SuggestionsMinimumDistance = 2
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			next = fmt.Sprintf("did you mean `%s %s`?", c.CommandPath(), near[0])
		}
	}
	return &ExitError{Code: ExitUsage, Err: what, Next: next}
}

// needArgs wants between least and most arguments; most < 0 is no limit.
func needArgs(least, most int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) >= least && (most < 0 || len(args) <= most) {
			return nil
		}
		err := fmt.Errorf("%s wants %s, and was given %d arguments", c.CommandPath(), what, len(args))
		return &ExitError{Code: ExitUsage, Err: err, Next: fmt.Sprintf("see `%s --help`", c.CommandPath())}
	}
}

// complete gives a flag its values for shell completion.
func complete(c *cobra.Command, flag string, values ...string) {
	if err := c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic("cli: completing --" + flag + ": " + err.Error())
	}
}

// socket is the daemon's address: --addr, VACATE_ADDR, the system's daemon, or
// the one that `make run` started here.
func (a *app) socket() string {
	for _, s := range []string{a.addr, a.getenv("VACATE_ADDR")} {
		if s != "" {
			return strings.TrimPrefix(s, "unix://")
		}
	}
	const dev = "vacate-dev/vacate.sock"
	if !isSocket(client.DefaultSocket) && isSocket(dev) {
		return dev
	}
	return client.DefaultSocket
}

func isSocket(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().Type() == os.ModeSocket
}

// call runs f with a client of the daemon. The context ends on an interrupt.
func (a *app) call(f func(ctx context.Context, c *client.Client) error) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c := client.Dial(a.socket())
	defer c.Close()
	err := f(ctx, c)
	if err != nil && ctx.Err() != nil {
		return &ExitError{Code: ExitFailed, Err: errors.New("interrupted"), Next: "what the daemon was asked before, it carries out"}
	}
	return err
}

// patience is how long a question may wait for its answer. The keeper holds the
// socket while control starts anew, so that a call may find nobody behind it.
const patience = 10 * time.Second

// query is call for what the daemon answers at once, unless something is wrong.
func (a *app) query(f func(ctx context.Context, c *client.Client) error) error {
	return a.call(func(ctx context.Context, c *client.Client) error {
		ctx, cancel := context.WithTimeout(ctx, a.patience)
		defer cancel()
		err := f(ctx, c)
		if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return &ExitError{Code: ExitFailed, Err: fmt.Errorf("the daemon at %s has taken the call, and not answered for %v", a.socket(), a.patience),
				Next: "see its log: the process that answers may be unable to start; volumes are served all the same"}
		}
		return err
	})
}

// dialHint says what to do when no daemon answers.
func dialHint(e *client.DialError) string {
	switch {
	case errors.Is(e, syscall.EACCES):
		return "ask the owner of that folder to let you in, or name another daemon's socket with --addr or VACATE_ADDR"
	case errors.Is(e, syscall.ENAMETOOLONG), errors.Is(e, syscall.EINVAL):
		return fmt.Sprintf("a unix socket's path has at most %d bytes; name a shorter one with --addr or VACATE_ADDR", config.MaxSocketPath)
	}
	return "start one with `vacate serve --dev ./vacate-dev` (no root needed) or `systemctl start vacate`, or name its socket with --addr or VACATE_ADDR"
}
