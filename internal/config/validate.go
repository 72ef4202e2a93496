package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Validate returns all faults of c, as [Faults], or nil.
func (c Config) Validate() error { return c.faults().orNil() }

func (c Config) faults() Faults {
	var fs Faults
	add := func(key, value, why string) {
		fs = append(fs, Fault{Key: key, Value: value, Why: why, Write: "write " + fieldOf(key).write})
	}
	folder := func(key, path string) {
		switch {
		case path == "":
			add(key, `""`, "is empty")
		case !filepath.IsAbs(path):
			add(key, strconv.Quote(path), "is not an absolute path")
		}
	}
	folder("state_dir", c.StateDir)
	folder("run_dir", c.RunDir)
	if f, bad := c.socketFault(); bad {
		fs = append(fs, f)
	}
	fs = append(fs, c.driveDirFaults()...)
	if c.DeviceDir != "" && !filepath.IsAbs(c.DeviceDir) {
		add("device_dir", strconv.Quote(c.DeviceDir), "is not an absolute path")
	}
	if !slices.Contains(DriveEngines, c.DriveEngine) {
		add("drive_engine", strconv.Quote(c.DriveEngine), "is not an engine")
	}
	if c.PollBudget < 0 || c.PollBudget > MaxPollBudget {
		add("poll_budget", c.PollBudget.String(), "is out of range")
	}
	if c.MaxConnections < 1 || c.MaxConnections > 65536 {
		add("max_connections", strconv.Itoa(c.MaxConnections), "is out of range")
	}
	if c.DrainDeadline < time.Millisecond || c.DrainDeadline > 10*time.Minute {
		add("drain_deadline", c.DrainDeadline.String(), "is out of range")
	}
	for _, uid := range c.Auditors {
		if slices.Contains(c.Operators, uid) {
			fs = append(fs, Fault{Key: "auditors", Value: fmt.Sprint(uid), Why: "this uid is an operator, too",
				Write: "name each uid in operators or in auditors, not in both"})
		}
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		add("log.format", strconv.Quote(c.Log.Format), "is not a format")
	}
	fs = append(fs, c.proofFaults()...)
	return append(fs, c.dangerFaults()...)
}

func (c Config) dangerFaults() Faults {
	var fs Faults
	d := c.DangerZone
	if len(d.ForceForward) > 0 && !d.Enabled {
		fs = append(fs, Fault{Key: "danger_zone.force_forward", Value: strings.Join(d.ForceForward, ","),
			Why: "has no effect while danger_zone.enabled is false", Write: "set danger_zone.enabled to true, or remove this key"})
	}
	if d.SandboxOff && !d.Enabled {
		fs = append(fs, Fault{Key: "danger_zone.sandbox", Value: "off",
			Why: "has no effect while danger_zone.enabled is false", Write: "set danger_zone.enabled to true, or remove this key"})
	}
	if d.LockedMemfd && !d.Enabled {
		fs = append(fs, Fault{Key: "danger_zone.locked_memfd", Value: "true",
			Why: "has no effect while danger_zone.enabled is false", Write: "set danger_zone.enabled to true, or remove this key"})
	}
	for _, p := range d.ForceForward {
		if !filepath.IsAbs(p) {
			fs = append(fs, Fault{Key: "danger_zone.force_forward", Value: strconv.Quote(p),
				Why: "is not an absolute path", Write: "write the path as `vacate drive list` prints it"})
		}
	}
	return fs
}

// driveDirFaults: the engine must not reach the journal.
func (c Config) driveDirFaults() Faults {
	var fs Faults
	for _, dir := range c.DriveDirs {
		f := Fault{Key: "drive_dirs", Value: strconv.Quote(dir)}
		switch rel, err := filepath.Rel(dir, c.StateDir); {
		case !filepath.IsAbs(dir):
			f.Why, f.Write = "is not an absolute path", "write "+fieldOf("drive_dirs").write
		case err == nil && rel != ".." && !strings.HasPrefix(rel, "../"):
			f.Why = fmt.Sprintf("the folder of the state, %s, lies beneath it, and the engine must not reach that", c.StateDir)
			f.Write = "name a folder that holds drives and nothing else"
		default:
			continue
		}
		fs = append(fs, f)
	}
	return fs
}

// socketFault reports a folder that makes the longest socket's path too long.
// It is found at start, not when the first lease is opened.
func (c Config) socketFault() (Fault, bool) {
	longest := c.LeaseSocket(strings.Repeat("x", leaseIDLen))
	if len(longest) <= MaxSocketPath {
		return Fault{}, false
	}
	room := MaxSocketPath - (len(longest) - len(c.RunDir))
	key, instead := "run_dir", "/run/vacate"
	if c.Dev != "" {
		key, instead = "dev", "/tmp/vacate"
	}
	return Fault{Key: key, Value: strconv.Quote(c.RunDir),
		Why: fmt.Sprintf("a lease's socket would be %s, which has %d bytes, and a unix socket's path may have %d",
			longest, len(longest), MaxSocketPath),
		Write: fmt.Sprintf("choose a folder whose absolute path has at most %d bytes, as %s", room, instead)}, true
}

// nearest is the key that looks most like an unknown one, or empty.
func nearest(key string) string {
	best, dist := "", 4 // further than this is another word
	for _, f := range fields {
		leaf := f.key[strings.LastIndexByte(f.key, '.')+1:]
		for _, known := range []string{f.key, leaf} {
			if d := distance(clip(key), known); d < dist {
				best, dist = f.key, d
			}
		}
	}
	return best
}

func clip(s string) string { return s[:min(len(s), 64)] }

// distance is the Levenshtein distance of two short strings.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diag, row[j+1] = row[j+1], min(diag+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
