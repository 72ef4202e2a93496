package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"vacate/test/daemon"
)

// memory prints the resident memory of the daemon's processes.
func memory(d *daemon.Daemon, before int) error {
	fmt.Printf("\nResident memory after %d leases, with one open, 1 GiB of it written\n", before)
	total := 0
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
		total += kib["VmRSS"]
		fmt.Printf("  %-8s %6.1f MiB (anonymous %.1f, files %.1f, shared %.1f)\n", name, mib(kib["VmRSS"]), mib(kib["RssAnon"]), mib(kib["RssFile"]), mib(kib["RssShmem"]))
	}
	fmt.Printf("  together %6.1f MiB; the program's pages, which all three share, are counted three times\n", mib(total))
	return nil
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
