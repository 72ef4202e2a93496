// Command bench measures what Vacate promises and prints it: time from the
// gate to the destroyed key, time to open, memory, time to delete a volume of the
// CSI driver, and time to restart. `make bench` runs it. It asserts nothing:
// figures of one machine are no test. How fast a volume is, beside peers, is
// test/peers' business.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"vacate/test/daemon"
)

type options struct {
	closes  int
	dir     string
	deletes bool
}

func main() {
	var o options
	flag.IntVar(&o.closes, "closes", 1000, "closes to measure for each size")
	flag.StringVar(&o.dir, "dir", "", "folder for journal and files (default: a temporary one)")
	flag.BoolVar(&o.deletes, "deletes", false, "measure the CSI driver's DeleteVolume alone")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(o options) (err error) {
	dir, err := os.MkdirTemp(o.dir, "vb")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	bin, err := install(dir)
	if err != nil {
		return err
	}
	printMachine()
	if o.deletes {
		return deletes(bin, dir, o.closes)
	}
	drives := filepath.Join(dir, "drives")
	if err := os.Mkdir(drives, 0o700); err != nil {
		return err
	}
	d, err := daemon.Start(bin, filepath.Join(dir, "d"), daemon.Options{Env: []string{"VACATE_LOG__LEVEL=warn"}, Args: []string{"--drive-dir", drives}})
	if err != nil {
		return err
	}
	defer d.Kill()
	if err := lives(d, o, drives); err != nil {
		return fmt.Errorf("opening and closing: %w", err)
	}
	if err := memory(d, drives, o.closes*len(sizes)); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	if err := d.Stop(); err != nil {
		return err
	}
	if err := deletes(bin, dir, o.closes); err != nil {
		return fmt.Errorf("deleting volumes: %w", err)
	}
	if err := hung(bin, dir); err != nil {
		return fmt.Errorf("a drive that hangs: %w", err)
	}
	if err := restart(bin, dir); err != nil {
		return fmt.Errorf("restarting: %w", err)
	}
	return nil
}

// install builds the binary and copies it, as cp does. One that the linker has
// just written lies in the page cache in pieces of 2 MiB, which the kernel maps
// whole: memory would be counted that nobody uses (about 8 MiB a process).
func install(dir string) (string, error) {
	built, err := daemon.Build(dir)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "installed")
	if out, err := exec.Command("cp", built, path).CombinedOutput(); err != nil {
		return "", fmt.Errorf("copying the binary: %w\n%s", err, out)
	}
	return path, nil
}

func printMachine() {
	model := "unknown processor"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				model = strings.Trim(name, "\t :\n")
				break
			}
		}
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease") //nolint:errcheck // printed as empty
	fmt.Printf("%s, %d cores of %s, Linux %s, %s\n", time.Now().Format("2006-01-02"), runtime.NumCPU(), model,
		strings.TrimSpace(string(kernel)), runtime.Version())
}

// quantiles prints the spread of a list of durations.
func quantiles(all []time.Duration) string {
	slices.Sort(all)
	at := func(q float64) time.Duration { return all[min(len(all)-1, int(q*float64(len(all))))] }
	return fmt.Sprintf("median %v, 99th percentile %v, longest %v (%d)",
		at(0.5).Round(time.Microsecond), at(0.99).Round(time.Microsecond), all[len(all)-1].Round(time.Microsecond), len(all))
}
