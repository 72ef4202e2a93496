package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"vacate/internal/bench"
)

func (a *app) benchCommand() *cobra.Command {
	size := sizeFlag{bytes: 1 << 30, set: true}
	var seconds float64
	var plan bool
	var svg string
	c := &cobra.Command{
		Use:   "bench [FOLDER|DEVICE]",
		Short: "Measure a drive as it is, and an encrypted volume on it",
		Long: "Bench loads a drive in two ways, in turn: raw, and through an encrypted volume of a daemon that it starts for " +
			"this. It prints both, and their ratio, and how fast the processor encrypts and copies.\n\n" +
			"It overwrites nothing. A folder (by default this one) gets one temporary file, which is removed at the end, also after " +
			"Ctrl-C. A device is taken only if it could be enrolled without --force, and if what would be written reads as " +
			"zeros; at the end it does so again. --plan shows what was found and would be done.",
		Example: "vacate bench\n" +
			"vacate bench --plan /dev/nvme1n1\n" +
			"vacate bench --size 4GiB --seconds 10 --svg bench.svg /srv/drives",
		Args: needArgs(0, 1, "at most one folder or device"),
		RunE: func(c *cobra.Command, args []string) error {
			if a.hooks.Bench.Plan == nil || a.hooks.Bench.Run == nil {
				return errors.New("this program was built without the benchmark")
			}
			o := bench.Options{Path: ".", Span: size.bytes, Each: time.Duration(seconds * float64(time.Second))}
			if len(args) == 1 {
				o.Path = args[0]
			}
			if err := writableFolder(svg); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			return a.bench(ctx, o, plan, svg)
		},
	}
	f := c.Flags()
	f.Var(&size, "size", "how much of the drive the raw side and the volume use, each")
	f.Float64Var(&seconds, "seconds", 3, "how long each measurement takes, on each side")
	f.BoolVar(&plan, "plan", false, "show what was found and would be done; do nothing")
	f.StringVar(&svg, "svg", "", "file for a plot of the result")
	complete(c, "size", "1GiB", "4GiB", "16GiB")
	return c
}

// writableFolder finds a slip in a file's name before minutes have passed.
func writableFolder(file string) error {
	if file == "" {
		return nil
	}
	if st, err := os.Stat(filepath.Dir(file)); err != nil || !st.IsDir() {
		return usageErrorf("--svg %s: there is no folder %s", file, filepath.Dir(file))
	}
	return nil
}

func (a *app) bench(ctx context.Context, o bench.Options, only bool, svg string) error {
	stop := a.spin("looking at " + printable(o.Path))
	p, err := a.hooks.Bench.Plan(o)
	stop()
	if err != nil {
		return err
	}
	if only {
		if err := a.printBenchPlan(p); err != nil {
			return err
		}
	}
	if bad := p.Refused(); len(bad) > 0 {
		texts := make([]string, len(bad))
		for i, f := range bad {
			texts[i] = f.Text
		}
		err := fmt.Errorf("%s cannot be measured, nothing was changed:\n  %s", p.Path, strings.Join(texts, "\n  "))
		if only {
			err = fmt.Errorf("%s would not be measured", p.Path) // its findings are printed already
		}
		return &ExitError{Code: ExitRefused, Err: err, Next: "give a folder on the drive, where a temporary file can be made"}
	}
	if only {
		return nil
	}
	show := a.progress()
	r, err := a.hooks.Bench.Run(ctx, p, show.step)
	show.end()
	if err != nil {
		return err
	}
	return a.printBench(r, svg)
}

func (a *app) printBenchPlan(p bench.Plan) error {
	if a.format != formatTable {
		return encode(a.out, a.format, p)
	}
	paint := a.paint(a.out)
	for _, f := range p.Findings {
		printFinding(a.out, paint, findingView{Code: f.Code, Text: f.Text, Refuse: f.Refuse})
	}
	takes := fmt.Sprintf("a temporary file, of which %s are written; removed at the end", formatSize(2*p.SpanBytes))
	if p.Device {
		takes = fmt.Sprintf("its first %s and its last MiB, which read as zeros at the end", formatSize(p.AreaBytes))
	}
	pairs(a.out, paint, []pair{
		{"drive", cell{text: printable(p.Path), paint: paint.bold}},
		{"kind", plain(p.Kind)},
		{"model", plain(p.Model)},
		{map[bool]string{false: "free", true: "size"}[p.Device], plain(formatSize(p.FreeBytes))},
		{"each side", plain(formatSize(p.SpanBytes))},
		{"takes", plain(takes)},
		{"time", plain("about " + bench.FormatLeft(p.Takes))},
	})
	if len(p.Refused()) == 0 {
		fmt.Fprintf(a.out, "\nplan: it would be measured; nothing was changed\n")
	}
	return nil
}

// printBench prints a result, and writes the plot. Requests that failed are an
// error, once all is printed.
func (a *app) printBench(r bench.Report, svg string) error {
	var err error
	if a.format != formatTable {
		err = encode(a.out, a.format, r)
	} else {
		a.showBench(r)
	}
	if err == nil && svg != "" {
		err = os.WriteFile(svg, bench.SVG(r), 0o644)
	}
	if err == nil && r.Errors > 0 {
		err = &ExitError{Code: ExitFailed, Err: fmt.Errorf("%d requests failed: %s", r.Errors, firstBenchError(r)), Next: "see the kernel's log: the drive may be failing"}
	}
	return err
}

func firstBenchError(r bench.Report) string {
	for _, row := range r.Rows {
		if row.Raw.FirstError != "" {
			return row.Name + ", raw: " + row.Raw.FirstError
		}
		if row.Volume.FirstError != "" {
			return row.Name + ", on the volume: " + row.Volume.FirstError
		}
	}
	return "it is not known how"
}

func (a *app) showBench(r bench.Report) {
	p := a.paint(a.out)
	way := "O_DIRECT, "
	if !r.Drive.Direct {
		way = "page cache, "
	}
	pairs(a.out, p, []pair{
		{"drive", cell{text: printable(r.Drive.Path), paint: p.bold}},
		{"kind", plain(r.Drive.Kind)},
		{"model", plain(r.Drive.Model)},
		{"raw", plain(way + r.Drive.RawEngine)},
		{"volume", plain("AES-256-XTS over NBD; engine " + r.Drive.Engine + ", flush " + r.Drive.Flush)},
		{"host", plain(fmt.Sprintf("%s, %d cores, Linux %s", r.Host.Processor, r.Host.Cores, r.Host.Kernel))},
	})
	fmt.Fprintln(a.out)
	a.benchTable(p, r.Rows)
	fmt.Fprintln(a.out)
	a.benchPlot(p, r.Rows)
	fmt.Fprintln(a.out)
	var rows [][]cell
	for _, s := range r.Processor {
		used := ""
		if s.Used {
			used = "used here"
		}
		rows = append(rows, []cell{plain(s.Name), numeric(bench.FormatRate(s.BytesPerSecond)), plain(used)})
	}
	table(a.out, p, []string{"ONE CORE", "SPEED", ""}, rows)
}

// benchTable prints all figures. Errors have a column only where there are any.
func (a *app) benchTable(p painter, all []bench.Row) {
	head := []string{"WORKLOAD", "RAW/S", "RAW", "P50", "P99", "VOLUME/S", "VOLUME", "P50", "P99", "RATIO"}
	failed := slices.ContainsFunc(all, func(r bench.Row) bool { return r.Raw.Errors+r.Volume.Errors > 0 })
	if failed {
		head = append(head, "RAW ERRORS", "VOLUME ERRORS")
	}
	figure := func(f bench.Figure) []cell {
		return []cell{numeric(bench.FormatCount(f.PerSecond)), numeric(bench.FormatRate(f.BytesPerSecond)),
			numeric(bench.FormatTime(f.P50Ns)), numeric(bench.FormatTime(f.P99Ns))}
	}
	var rows [][]cell
	for _, r := range all {
		row := slices.Concat([]cell{plain(r.Name)}, figure(r.Raw), figure(r.Volume),
			[]cell{{text: bench.FormatRatio(r.Ratio), paint: p.bold, right: true}})
		if failed {
			for _, n := range []int64{r.Raw.Errors, r.Volume.Errors} {
				row = append(row, cell{text: fmt.Sprint(n), paint: map[bool]func(string) string{true: p.red}[n > 0], right: true})
			}
		}
		rows = append(rows, row)
	}
	table(a.out, p, head, rows)
}

// plotBar is the longest bar on a terminal, in characters.
const plotBar = 40

func (a *app) benchPlot(p painter, all []bench.Row) {
	wide := 0
	for _, r := range all {
		wide = max(wide, utf8.RuneCountInString(r.Name))
	}
	for _, r := range all {
		raw, volume := bench.Parts(r)
		fmt.Fprintf(a.out, "%-*s  raw     %s %s\n", wide, r.Name, p.dim(bar(raw, plotBar)), bench.Label(r, r.Raw))
		fmt.Fprintf(a.out, "%-*s  volume  %s %s, %s\n", wide, "", p.green(bar(volume, plotBar)), bench.Label(r, r.Volume), bench.FormatRatio(r.Ratio))
	}
}

// bar is a bar of part of n characters, 0 ≤ part ≤ 1, to an eighth of one.
func bar(part float64, n int) string {
	const eighths = "▏▎▍▌▋▊▉█"
	all := int(part*float64(n*8) + 0.5)
	s := strings.Repeat("█", all/8)
	if rest := all % 8; rest > 0 {
		s += string([]rune(eighths)[rest-1])
	}
	return s
}
