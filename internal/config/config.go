// Package config is the daemon's configuration: its keys, where their values
// come from, and what is wrong with them.
//
// # How a value is found
//
//  1. [Default] gives every key its default.
//  2. The YAML file (--config, or [DefaultFile] where it exists) overrides it.
//  3. The environment overrides the file: VACATE_ and the key in capitals, with
//     "__" for each level (VACATE_LOG__LEVEL is log.level), lists with commas.
//  4. Flags override the environment.
//
// Decoding is strict: an unknown key or a value of the wrong type is a [Fault],
// and [Load] returns all faults at once, the ones of [Config.Validate] included.
package config

import (
	"log/slog"
	"path/filepath"
	"time"
)

// DefaultFile is read when no file is named, if it exists and --dev is not used.
const DefaultFile = "/etc/vacate/vacate.yaml"

// MaxSocketPath is the longest path of a unix socket in bytes: sun_path holds
// 108 with the terminating zero (unix(7)).
const MaxSocketPath = 107

// DevDriveBytes is the size of the sparse file that --dev enrols as a drive.
const DevDriveBytes = 8 << 30

// leaseIDLen is the length of a lease's id, which is part of its sockets' paths.
const leaseIDLen = 16

// Config is the daemon's configuration. [Load] and [Default] make one; it is
// not changed after that. It goes to the daemon's other processes as JSON.
type Config struct {
	// Dev is the folder of --dev, absolute, or empty. With it StateDir is
	// Dev/state and RunDir is Dev.
	Dev string `json:"dev,omitempty"`
	// StateDir holds the journal: what must survive a reboot. Absolute.
	StateDir string `json:"stateDir"`
	// RunDir holds the sockets. Absolute; unix sockets limit its length.
	RunDir string `json:"runDir"`
	// DriveDirs are the folders beneath which drives may be enrolled: the engine
	// can open nothing else (package sandbox). Absolute; the folder of the state
	// is not beneath one.
	DriveDirs []string `json:"driveDirs,omitempty"`
	// DeviceDir is the folder for links to the leases' block devices. Absolute; empty:
	// there are none.
	DeviceDir string `json:"deviceDir,omitempty"`
	// DriveEngine is how requests reach the drives, where it is possible: one of
	// [DriveEngines].
	DriveEngine string `json:"driveEngine"`
	// PollBudget is how long a connection that has just been active looks for more
	// to do before its thread sleeps, where that pays. 0, for not at all, to 50 µs.
	PollBudget time.Duration `json:"pollBudget"`
	// MaxConnections is how many clients may be connected at once, over all
	// leases. 1 ≤ MaxConnections ≤ 65536.
	MaxConnections int `json:"maxConnections"`
	// DrainDeadline is how long a close waits for I/O in flight, after the key
	// is destroyed, before it reports "erased". 1 ms to 10 min.
	DrainDeadline time.Duration `json:"drainDeadline"`
	// Operators are uids that may call everything, besides root and the
	// daemon's own.
	Operators []uint32 `json:"operators,omitempty"`
	// Auditors are uids that may see everything and change nothing.
	Auditors []uint32 `json:"auditors,omitempty"`
	// Log says what is logged and how.
	Log Log `json:"log"`
	// Metrics says what /metrics exports.
	Metrics Metrics `json:"metrics"`
	// Proof says where records go, and who signs them.
	Proof Proof `json:"proof"`
	// Certificates says how long they are kept.
	Certificates Certificates `json:"certificates"`
	// DangerZone holds the switches that make things less safe or slower.
	DangerZone DangerZone `json:"dangerZone"`
}

// Log says what is logged to standard error, and how.
type Log struct {
	Level  slog.Level `json:"level"`
	Format string     `json:"format"` // "text" or "json"
}

// Metrics says what /metrics exports.
type Metrics struct {
	// PerLease exports series for each lease. Up to 1024 leases times 9 series.
	PerLease bool `json:"perLease"`
}

// DangerZone holds switches that need Enabled, so that none is in force by
// accident. The daemon's status shows them.
type DangerZone struct {
	Enabled bool `json:"enabled"`
	// ForceForward are paths of drives whose flush class is "forward", whatever
	// was probed. There is no switch for the reverse.
	ForceForward []string `json:"forceForward,omitempty"`
	// SandboxOff leaves engine and control every right of the user who runs them.
	SandboxOff bool `json:"sandboxOff,omitempty"`
	// LockedMemfd keeps keys in an ordinary locked memfd although the kernel has
	// memfd_secret.
	LockedMemfd bool `json:"lockedMemfd,omitempty"`
}

// MaxPollBudget is the longest PollBudget.
const MaxPollBudget = 50 * time.Microsecond

// DriveEngines are the ways that requests may reach a drive. With the first, each
// drive gets the best that it can have.
var DriveEngines = []string{"auto", "io_uring", "mmap", "pread"}

// Default is the configuration that an empty file gives.
func Default() Config {
	return Config{
		StateDir:       "/var/lib/vacate",
		RunDir:         "/run/vacate",
		DriveDirs:      []string{"/dev"},
		DeviceDir:      "/dev/vacate",
		DriveEngine:    DriveEngines[0],
		PollBudget:     MaxPollBudget,
		MaxConnections: 128,
		DrainDeadline:  2 * time.Second,
		Log:            Log{Level: slog.LevelInfo, Format: "text"},
		Metrics:        Metrics{PerLease: true},
		Proof:          Proof{NodeKey: KeyPlaces[0], OperatorKey: KeyPlaces[0], TPM: "/dev/tpmrm0", SpoolMax: 16384},
		Certificates:   Certificates{Keep: 6 * Year},
	}
}

// UseDev points c at a folder that holds everything, as --dev does. dir must be
// absolute.
func (c *Config) UseDev(dir string) {
	c.Dev, c.RunDir, c.StateDir = dir, dir, filepath.Join(dir, "state")
}

// APISocket is the path of the API's socket.
func (c Config) APISocket() string { return filepath.Join(c.RunDir, "vacate.sock") }

// AdminSocket is the path of the socket with /livez, /readyz and /metrics.
func (c Config) AdminSocket() string { return filepath.Join(c.RunDir, "admin.sock") }

// DevicesSocket is the path of the socket of the process that makes block devices.
func (c Config) DevicesSocket() string { return filepath.Join(c.RunDir, "devices.sock") }

// LeasesDir is the folder with one folder of sockets for each lease.
func (c Config) LeasesDir() string { return filepath.Join(c.RunDir, "leases") }

// LeaseSocket is the path of a lease's NBD socket. That of vhost-user is 7 bytes
// longer: a folder with room for the one alone is not refused, as daemons run in
// such; leases that want the other are.
func (c Config) LeaseSocket(id string) string {
	return filepath.Join(c.LeasesDir(), id, "nbd.sock")
}

// Journal is the path of the database.
func (c Config) Journal() string { return filepath.Join(c.StateDir, "journal.db") }

// LockFile is the path of the file that keeps a second daemon off the state folder.
func (c Config) LockFile() string { return filepath.Join(c.StateDir, "lock") }

// DevDrive is the path of the file that --dev enrols; empty without --dev.
func (c Config) DevDrive() string {
	if c.Dev == "" {
		return ""
	}
	return filepath.Join(c.Dev, "drive.img")
}

// ForceForward are the paths of danger_zone.force_forward, if it is in force.
func (c Config) ForceForward() []string {
	if !c.DangerZone.Enabled {
		return nil
	}
	return c.DangerZone.ForceForward
}

// SandboxOff is danger_zone.sandbox, if it is in force.
func (c Config) SandboxOff() bool { return c.DangerZone.Enabled && c.DangerZone.SandboxOff }

// LockedMemfd is danger_zone.locked_memfd, if it is in force.
func (c Config) LockedMemfd() bool { return c.DangerZone.Enabled && c.DangerZone.LockedMemfd }

// DangerInForce names the switches of danger_zone that have an effect, for the
// status of the daemon.
func (c Config) DangerInForce() []string {
	var on []string
	for _, p := range c.ForceForward() {
		on = append(on, "force_forward "+p)
	}
	if c.SandboxOff() {
		on = append(on, "sandbox off")
	}
	if c.LockedMemfd() {
		on = append(on, "locked_memfd")
	}
	return on
}
