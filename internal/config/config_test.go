package config

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// load runs Load on a file's text, an environment and arguments.
func load(t *testing.T, text string, environ, args []string) (Config, error) {
	t.Helper()
	set := pflag.NewFlagSet("test", pflag.ContinueOnError)
	AddFlags(set)
	if err := set.Parse(args); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "vacate.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if environ == nil {
		environ = []string{}
	}
	return Load(Sources{File: file, Environ: environ, Flags: set})
}

func TestLoadLayers(t *testing.T) {
	change := func(f func(*Config)) Config {
		c := Default()
		f(&c)
		return c
	}
	tests := []struct {
		name    string
		text    string
		environ []string
		args    []string
		want    Config
	}{
		{name: "defaults", want: Default()},
		{name: "file over default", text: "max_connections: 7\nlog: {level: debug}",
			want: change(func(c *Config) { c.MaxConnections = 7; c.Log.Level = slog.LevelDebug })},
		{name: "environment over file", text: "log: {level: debug, format: json}", environ: []string{"VACATE_LOG__LEVEL=warn"},
			want: change(func(c *Config) { c.Log.Level = slog.LevelWarn; c.Log.Format = "json" })},
		{name: "flag over environment", text: "max_connections: 1", environ: []string{"VACATE_MAX_CONNECTIONS=2"},
			args: []string{"--max-connections=3"}, want: change(func(c *Config) { c.MaxConnections = 3 })},
		{name: "lists", text: "operators: [1000]\nauditors: [7, 8]", environ: []string{"VACATE_OPERATORS=1001, 1002"},
			want: change(func(c *Config) { c.Operators = []uint32{1001, 1002}; c.Auditors = []uint32{7, 8} })},
		{name: "duration", args: []string{"--drain-deadline", "150ms"},
			want: change(func(c *Config) { c.DrainDeadline = 150 * time.Millisecond })},
		{name: "polling", text: "poll_budget: 20us", want: change(func(c *Config) { c.PollBudget = 20 * time.Microsecond })},
		{name: "no polling", text: "poll_budget: 20us", args: []string{"--poll-budget=0s"}, want: change(func(c *Config) { c.PollBudget = 0 })},
		{name: "danger zone", text: "danger_zone:\n  enabled: true\n  force_forward: [/dev/sda]",
			want: change(func(c *Config) { c.DangerZone = DangerZone{Enabled: true, ForceForward: []string{"/dev/sda"}} })},
		{name: "drive folders", text: "drive_dirs: [/dev/disk, /srv/a]", want: change(func(c *Config) { c.DriveDirs = []string{"/dev/disk", "/srv/a"} })},
		{name: "drive engine", text: "drive_engine: mmap", args: []string{"--drive-engine=io_uring"},
			want: change(func(c *Config) { c.DriveEngine = "io_uring" })},
		{name: "device folder", text: "device_dir: /srv/links", want: change(func(c *Config) { c.DeviceDir = "/srv/links" })},
		{name: "no device folder", text: "device_dir: \"\"", want: change(func(c *Config) { c.DeviceDir = "" })},
		{name: "device folder with dev", args: []string{"--dev=/tmp/v"}, want: change(func(c *Config) { c.UseDev("/tmp/v"); c.DeviceDir = "/dev/vacate" })},
		{name: "drive folders from flags", text: "drive_dirs: [/dev/disk]", args: []string{"--drive-dir=/srv/a,b", "--drive-dir", "/dev"},
			want: change(func(c *Config) { c.DriveDirs = []string{"/srv/a,b", "/dev"} })},
		{name: "sandbox off", text: "danger_zone: {enabled: true, sandbox: off}",
			want: change(func(c *Config) { c.DangerZone = DangerZone{Enabled: true, SandboxOff: true} })},
		{name: "locked memfd", text: "danger_zone: {enabled: true, locked_memfd: true}",
			want: change(func(c *Config) { c.DangerZone = DangerZone{Enabled: true, LockedMemfd: true} })},
		{name: "sandbox on", environ: []string{"VACATE_DANGER_ZONE__SANDBOX=on"}, want: Default()},
		{name: "dev derives the folders", args: []string{"--dev=/tmp/v"},
			want: change(func(c *Config) { c.Dev, c.RunDir, c.StateDir = "/tmp/v", "/tmp/v", "/tmp/v/state" })},
		{name: "variables of others", environ: []string{"VACATE_ADDR=/x", "VACATE_SERVICE_HOST=10.0.0.1", "VACATE_PORT_80_TCP=tcp://10.0.0.1:80"},
			want: Default()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := load(t, tt.text, tt.environ, tt.args)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("configuration (-want +got):\n%s", d)
			}
		})
	}
}

// TestLoadFaults checks that every fault is found at once, and says key, value,
// place and what to write.
func TestLoadFaults(t *testing.T) {
	tests := []struct {
		name    string
		text    string
		environ []string
		args    []string
		want    []string // in each line, in order
	}{
		{name: "all at once",
			text:    "max_connections: 0\nlog: {level: loud, format: xml}\ndrain_deadline: 2\nstate_dirr: /x\noperators: [-1]",
			environ: []string{"VACATE_RUN_DIR=relative"},
			want: []string{
				"drain_deadline = 2 (FILE): has no unit; write a time with its unit, from 1ms to 10m, as 2s",
				`log.level = "loud" (FILE): is not a level; write debug, info, warn or error`,
				"operators = [-1] (FILE): holds -1, which no user can have; write a list of uids as `id -u NAME` prints them",
				`state_dirr = "/x" (FILE): there is no such key; did you mean state_dir?`,
				`run_dir = "relative" (VACATE_RUN_DIR): is not an absolute path; write the absolute path of a folder for sockets`,
				"max_connections = 0 (FILE): is out of range; write a number from 1 to 65536",
				`log.format = "xml" (FILE): is not a format; write text or json`,
			}},
		{name: "unknown variable", environ: []string{"VACATE_LOGLEVEL=debug"},
			want: []string{`loglevel = "debug" (VACATE_LOGLEVEL): there is no such key; did you mean log.level?`}},
		{name: "unknown, like nothing", text: "zebra: 1",
			want: []string{"zebra = 1 (FILE): there is no such key; remove it, or see docs/config.md for the keys there are"}},
		{name: "wrong types", text: "state_dir: 7\nmetrics: {per_lease: maybe}\nrun_dir:\noperators: {a: 1}",
			want: []string{
				`metrics.per_lease = "maybe" (FILE): is not what belongs here; write true or false`,
				"operators.a = 1 (FILE): there is no such key",
				"run_dir = null (FILE): has no value",
				"state_dir = 7 (FILE): is a number",
			}},
		{name: "not YAML", text: "a: [", want: []string{"FILE: yaml:"}},
		{name: "polling", text: "poll_budget: 51us",
			want: []string{`poll_budget = 51µs (FILE): is out of range; write a time with its unit, from 0s to 50us`}},
		{name: "engine", text: "drive_engine: aio",
			want: []string{`drive_engine = "aio" (FILE): is not an engine; write auto, io_uring, mmap or pread`}},
		{name: "flag", args: []string{"--max-connections=many"},
			want: []string{`max_connections = "many" (--max-connections): is not a whole number; write a number from 1 to 65536`}},
		{name: "operator and auditor", text: "operators: [5]\nauditors: [5]",
			want: []string{"auditors = 5 (FILE): this uid is an operator, too; name each uid in operators or in auditors, not in both"}},
		{name: "danger zone off", text: "danger_zone: {force_forward: [/dev/sda, sdb]}",
			want: []string{
				"danger_zone.force_forward = /dev/sda,sdb (FILE): has no effect while danger_zone.enabled is false; set danger_zone.enabled to true, or remove this key",
				`danger_zone.force_forward = "sdb" (FILE): is not an absolute path`,
			}},
		{name: "sandbox off without the danger zone", text: "danger_zone: {sandbox: off}",
			want: []string{"danger_zone.sandbox = off (FILE): has no effect while danger_zone.enabled is false"}},
		{name: "locked memfd without the danger zone", text: "danger_zone: {locked_memfd: true}",
			want: []string{"danger_zone.locked_memfd = true (FILE): has no effect while danger_zone.enabled is false"}},
		{name: "sandbox otherwise", text: "danger_zone: {sandbox: maybe}",
			want: []string{`danger_zone.sandbox = "maybe" (FILE): is not what belongs here; write on or off`}},
		{name: "device folder", text: "device_dir: vacate",
			want: []string{`device_dir = "vacate" (FILE): is not an absolute path; write the absolute path of a folder for links`}},
		{name: "drive folders", text: "drive_dirs: [drives, /, /var, /var/lib/vacate, /var/lib/vacate2, /dev]",
			want: []string{
				`drive_dirs = "drives" (FILE): is not an absolute path; write a list of absolute paths of folders, as /dev`,
				`drive_dirs = "/" (FILE): the folder of the state, /var/lib/vacate, lies beneath it`,
				`drive_dirs = "/var" (FILE): the folder of the state`,
				`drive_dirs = "/var/lib/vacate" (FILE): the folder of the state, /var/lib/vacate, lies beneath it, and the engine must not reach that; name a folder`,
			}},
		{name: "dev and state_dir", text: "state_dir: /x", args: []string{"--dev", "/tmp/v"},
			want: []string{`state_dir = "/x" (FILE): dev keeps everything under one folder, so this has no place beside it; leave out state_dir or dev`}},
		{name: "path too long", args: []string{"--dev", "/tmp/" + strings.Repeat("d", 70)},
			want: []string{`(--dev): a lease's socket would be /tmp/`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := load(t, tt.text, tt.environ, tt.args)
			var faults Faults
			if !errors.As(err, &faults) {
				t.Fatalf("Load = %v, want Faults", err)
			}
			if len(faults) != len(tt.want) {
				t.Fatalf("%d faults, want %d:\n%v", len(faults), len(tt.want), err)
			}
			for i, f := range faults {
				if f.Source != "" && strings.HasSuffix(f.Source, "vacate.yaml") {
					f.Source = "FILE"
				}
				if got := f.String(); !strings.Contains(got, tt.want[i]) {
					t.Errorf("fault %d = %s\nwant %s", i, got, tt.want[i])
				}
				if !strings.Contains(err.Error(), f.Why) {
					t.Errorf("the error leaves out %q", f.Why)
				}
			}
		})
	}
}

// TestSocketPathLimit checks the limit to the byte, and that the hint holds.
func TestSocketPathLimit(t *testing.T) {
	const room = MaxSocketPath - len("/leases/abcdefghijklmnop/nbd.sock")
	for _, n := range []int{room - 1, room, room + 1} {
		dir := "/" + strings.Repeat("d", n-1)
		c := Default()
		c.UseDev(dir)
		err := c.Validate()
		if fits := len(c.LeaseSocket("abcdefghijklmnop")) <= MaxSocketPath; fits != (err == nil) {
			t.Errorf("a folder of %d bytes: %v", n, err)
		}
		if err != nil && !strings.Contains(err.Error(), "at most 74 bytes") {
			t.Errorf("the error does not say how long the folder may be: %v", err)
		}
	}
	if room != 74 {
		t.Errorf("room = %d", room)
	}
}

func TestFileFaults(t *testing.T) {
	big := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(big, make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/nonexistent/x.yaml": "no such file",
		t.TempDir():           "is not a file",
		big:                   "more than the 1048576",
	} {
		_, err := Load(Sources{File: path, Environ: []string{}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Load(%s) = %v, want %q", path, err, want)
		}
	}
}

// TestRoundTrips checks that a configuration survives both ways in which it is
// written: as the file that --check-config prints, and as JSON between processes.
func TestRoundTrips(t *testing.T) {
	full := Default()
	full.MaxConnections, full.DrainDeadline = 5, 1500*time.Millisecond
	full.Operators, full.Auditors = []uint32{1000}, []uint32{1001, 1002}
	full.Log = Log{slog.LevelError, "json"}
	full.Metrics.PerLease = false
	full.DangerZone = DangerZone{Enabled: true, ForceForward: []string{"/dev/sda", "/dev/sdb"}, SandboxOff: true}
	full.DriveEngine, full.PollBudget, full.DeviceDir = "pread", 0, ""
	full.DriveDirs = []string{"/dev/disk", "/srv/drives"}
	dev := Default()
	dev.UseDev("/tmp/v")
	for _, c := range []Config{Default(), full, dev} {
		got, err := load(t, string(c.YAML()), nil, nil)
		if err != nil {
			t.Fatalf("loading what YAML printed: %v\n%s", err, c.YAML())
		}
		if d := cmp.Diff(c, got); d != "" {
			t.Errorf("YAML (-want +got):\n%s", d)
		}
		b, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		var back Config
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c, back); d != "" {
			t.Errorf("JSON (-want +got):\n%s", d)
		}
	}
}

// TestReference checks that docs/config.md names every key, and no other.
func TestReference(t *testing.T) {
	b, err := os.ReadFile("../../docs/config.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[string]bool)
	for line := range strings.Lines(string(b)) {
		if key, ok := strings.CutPrefix(line, "| `"); ok {
			documented[key[:strings.IndexByte(key, '`')]] = true
		}
	}
	for _, f := range fields {
		if !documented[f.key] {
			t.Errorf("docs/config.md does not name %s", f.key)
		}
		delete(documented, f.key)
	}
	for key := range documented {
		t.Errorf("docs/config.md names %s, which is no key", key)
	}
}

// FuzzBytes feeds files to the decoder: whatever they hold, there is a
// configuration that is valid, or there are faults that can be printed.
func FuzzBytes(f *testing.F) {
	for _, seed := range []string{
		"", "a: [", "log: {level: debug}", "log: 3", "log.level: info", "? [a]\n: b", "1: 2\n3: {4: 5}",
		"operators: [1, two, 3.5, null]", "drain_deadline: 2s", "danger_zone:\n  enabled: yes", "a: &a [*a]",
		"state_dir: \"\\0\"", "---\na: 1\n---\nb: 2", "dev: x", "? {a: b}\n: c", "log: {? 1 : {level: 2}}",
		"max_connections: 18446744073709551615", "max_connections: 0x10", "<<: {dev: /x}", "!!binary a: b",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l := newLoader()
		l.bytes("FILE", b)
		c, err := l.decode()
		if err != nil {
			if strings.TrimSpace(err.Error()) == "configuration:" {
				t.Errorf("%q: an error that says nothing", b)
			}
			return
		}
		if err := c.Validate(); err != nil {
			t.Errorf("%q gives an invalid configuration: %v", b, err)
		}
		back := newLoader()
		back.bytes("YAML", c.YAML())
		again, err := back.decode()
		if err != nil {
			t.Fatalf("%q: what YAML printed does not load: %v\n%s", b, err, c.YAML())
		}
		if d := cmp.Diff(c, again); d != "" {
			t.Errorf("%q: what YAML printed is not the same (-want +got):\n%s", b, d)
		}
	})
}
