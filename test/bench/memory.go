package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"vacate/internal/nbdclient"
	"vacate/test/daemon"
)

const memoryBytes = 1 << 30 // written to the lease that is open meanwhile

// memory prints the resident memory of the daemon's processes, with a lease open on
// a drive in the folder, after as many that were closed before. The drive is on a
// disk: one in memory is mapped, and would be counted as the engine's.
func memory(d *daemon.Daemon, drives string, before int) error {
	drive := filepath.Join(drives, "memory")
	if err := errors.Join(os.WriteFile(drive, nil, 0o600), os.Truncate(drive, memoryBytes+64<<20)); err != nil {
		return err
	}
	if _, err := d.Run("drive", "enroll", drive); err != nil {
		return err
	}
	l, err := d.Open("--drive", drive, "--size", fmt.Sprint(memoryBytes))
	if err != nil {
		return err
	}
	c, err := nbdclient.Dial(l.URI(), nbdclient.Options{})
	if err != nil {
		return err
	}
	if err := errors.Join(fill(c, memoryBytes), c.Close()); err != nil {
		return err
	}
	if err := printMemory(d, before); err != nil {
		return err
	}
	_, err = d.Run("lease", "close", l.ID)
	return err
}

func printMemory(d *daemon.Daemon, before int) error {
	fmt.Printf("\nResident memory after %d leases, with one open, 1 GiB of it written\n", before)
	total, shares := 0, 0
	for _, name := range []string{"keeper", "engine", "control"} {
		pid := d.PID()
		if name != "keeper" {
			var err error
			if pid, err = d.Child(name); err != nil {
				return err
			}
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return err
		}
		kib := map[string]int{}
		for line := range strings.Lines(string(b)) {
			key, value, _ := strings.Cut(line, ":")
			var n int
			if _, err := fmt.Sscanf(strings.TrimSpace(value), "%d kB", &n); err == nil {
				kib[key] = n
			}
		}
		share, err := proportional(pid)
		if err != nil {
			return err
		}
		total, shares = total+kib["VmRSS"], shares+share
		fmt.Printf("  %-8s %6.1f MiB (anonymous %.1f, files %.1f, shared %.1f)\n", name, mib(kib["VmRSS"]), mib(kib["RssAnon"]), mib(kib["RssFile"]), mib(kib["RssShmem"]))
	}
	fmt.Printf("  together %6.1f MiB; with pages that processes share counted once (PSS) %.1f MiB\n", mib(total), mib(shares))
	return nil
}

// proportional is a process' proportional set size in KiB: a page that n
// processes share counts as 1/n.
func proportional(pid int) (kib int, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			_, err = fmt.Sscanf(strings.TrimSpace(rest), "%d kB", &kib)
			return kib, err
		}
	}
	return 0, fmt.Errorf("process %d has no Pss", pid)
}

func mib(kib int) float64 { return float64(kib) / 1024 }

// medium names the file system and device that dir is on.
func medium(dir string) string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "unknown"
	}
	best, what := "", "unknown"
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		before, after, ok := strings.Cut(string(line), " - ")
		if !ok || len(strings.Fields(before)) < 5 {
			continue
		}
		point, kind := f[4], strings.Fields(after)
		if len(kind) >= 2 && len(point) > len(best) && (dir == point || strings.HasPrefix(dir, strings.TrimSuffix(point, "/")+"/")) {
			best, what = point, kind[0]+" on "+kind[1]
		}
	}
	return what
}
