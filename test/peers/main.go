// Command peers measures Vacate beside what people use instead, each row of a
// table with its bar: `make bench-peers` runs it, and `-only 4k-reads` one row.
// It writes docs/performance.md.
//
// # How a row is measured
//
//  1. Its contestants are started, each with 1 GiB that has been written, and
//     read back in part. They stay for the rows after it.
//  2. Each is measured once a round, one after the other: A B A B. So a drift of
//     the machine strikes all alike. A round that does not count comes first.
//  3. A row shows medians of the rounds, the least and the most of them, and
//     ratios of medians. Only ratios within one run mean anything.
//  4. Any request that fails ends the run with an error: a server that refuses is
//     fast.
//  5. Server and client are pinned to a core each, where the row does not say
//     otherwise. The client is the same for all (internal/nbdclient).
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	only   string
	rounds int
	span   time.Duration // of one measurement
	disk   string        // folder on the disk of the rows that measure it
	shm    string        // folder on a tmpfs
	env    string        // for the daemon
	bin    string        // the daemon; "" builds it
	write  string        // folder of the page to bring up to date; "" writes none
	list   bool
	size   int64  // bytes of each export: all of it is written, and asked for
	stack  string // run as the server of the row "map", in this folder
}

func main() {
	var o options
	flag.StringVar(&o.only, "only", "", "rows to measure, with commas between (default: all)")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds that count, for each row")
	flag.DurationVar(&o.span, "span", time.Second, "length of one measurement")
	flag.StringVar(&o.disk, "disk", "/var/tmp", "folder on the machine's disk")
	flag.StringVar(&o.shm, "shm", "/dev/shm", "folder on a tmpfs, with 10 GiB free")
	flag.StringVar(&o.write, "write", "", "folder (docs) whose page performance.md and plots are brought up to date with what was measured")
	flag.StringVar(&o.env, "env", "", "environment of the daemon, with commas between: VACATE_LOG__LEVEL=warn")
	flag.StringVar(&o.bin, "bin", "", "vacate to measure (default: build it from this tree)")
	flag.BoolVar(&o.list, "list", false, "list the rows, and measure nothing")
	flag.Int64Var(&o.size, "size", 1<<30, "bytes of each export, a multiple of 64 MiB")
	flag.StringVar(&o.stack, "stack", "", "(used by the row map) serve a stack with and without a map from this folder")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func run(o options) (err error) {
	if o.stack != "" {
		return serveStack(o.stack, o.size)
	}
	chosen, err := choose(o.only)
	if err != nil || o.list {
		for _, r := range chosen {
			fmt.Printf("%-16s %s\n", r.name, r.title)
		}
		return err
	}
	if o.rounds < 1 || o.span <= 0 {
		return errors.New("rounds and span must be positive")
	}
	if o.size < 64<<20 || o.size%(64<<20) != 0 {
		return errors.New("the size must be a multiple of 64 MiB")
	}
	w, err := newWorld(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	stopped := make(chan os.Signal, 1)
	signal.Notify(stopped, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(stopped)
	go func() {
		<-stopped
		w.close() //nolint:errcheck // the run ends here anyway
		os.Exit(130)
	}()
	m := thisMachine()
	fmt.Printf("%s: %s\n%d rounds of %v in turn, medians (least–most)\n", time.Now().Format("2006-01-02"), m, o.rounds, o.span)
	fresh := make(map[string]record)
	commit := thisCommit()
	for _, r := range chosen {
		res, err := measure(w, r, o)
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		res.print(os.Stdout)
		fresh[r.name] = res.keep(m, commit, o.rounds, o.span)
		if o.write != "" { // after each row, so that a run that is cut short has not been in vain
			if err := writePage(o.write, fresh); err != nil {
				return err
			}
		}
	}
	return nil
}

// choose returns the rows of that names, all of them for "".
func choose(only string) ([]row, error) {
	if only == "" {
		return rows, nil
	}
	var chosen []row
	for _, name := range strings.Split(only, ",") {
		found := false
		for _, r := range rows {
			if r.name == name {
				chosen, found = append(chosen, r), true
			}
		}
		if !found {
			return nil, fmt.Errorf("there is no row %q; -list lists them", name)
		}
	}
	return chosen, nil
}
