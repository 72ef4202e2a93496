package cli

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/config"
)

var update = flag.Bool("update", false, "write the golden files")

// clock is the only thing that a golden file cannot hold: the time a change was seen.
var clock = regexp.MustCompile(`(?m)^\d\d:\d\d:\d\d  `)

func golden(t *testing.T, name, got string) {
	t.Helper()
	goldenIn(t, "testdata", name, got)
}

func goldenIn(t *testing.T, dir, name, got string) {
	t.Helper()
	file := filepath.Join(dir, name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("output differs from %s (run with -update to accept):\n%s", file, got)
	}
}

// TestGolden keeps what each command prints, in each format.
func TestGolden(t *testing.T) {
	_, sock := startFake(t)
	tests := []struct {
		name string
		args string
		code int
	}{
		{"lease-open", "lease open --size 10GiB --tenant acme", 0},
		{"lease-open-vm", "lease open --size 10GiB --export nbd,vhost-user --queues 4 --read-only", 0},
		{"lease-open-qemu", "lease open --size 10GiB --export vhost-user --export nbd --print-config qemu", 0},
		{"lease-show-vm", "lease show " + idVM, 0},
		{"lease-show-libvirt", "lease show " + idVM + " --print-config libvirt", 0},
		{"lease-show-cloud-hypervisor", "lease show " + idVM + " --print-config cloud-hypervisor", 0},
		{"lease-show-firecracker", "lease show " + idVM + " --print-config firecracker", 0},
		{"lease-list", "lease list", 0},
		{"lease-list-all", "lease list --all", 0},
		{"lease-list-none", "lease list --tenant nobody", 0},
		{"lease-show", "lease show " + idOpen, 0},
		{"lease-show-lost", "lease show " + idLost, 0},
		{"lease-limit", "lease limit " + idOpen + " --limit iops=500,bandwidth=200MiB/s --limit iops-burst=3000", 0},
		{"lease-limit-none", "lease limit " + idOpen + " --limit none", 0},
		{"lease-resize", "lease resize " + idOpen + " --size 20GiB", 0},
		{"lease-resize-plan", "lease resize " + idOpen + " --size 20GiB --plan", 0},
		{"lease-open-attach", "lease open --size 10GiB --attach", 0},
		{"lease-list-attached", "lease list --tenant attached", 0},
		{"lease-attach", "lease attach " + idOpen, 0},
		{"lease-detach", "lease detach " + idOpen, 0},
		{"lease-close", "lease close " + idClosed, 0},
		{"lease-close-all", "lease close " + idClosed + " " + idErased + " " + idLost, 0},
		{"lease-watch", "lease watch " + idClosed + " " + idLost, 0},
		{"drive-enroll", "drive enroll ./new", 0},
		{"drive-enroll-plan", "drive enroll --plan ./new", 0},
		{"drive-enroll-plan-refused", "drive enroll --plan ./used", 4},
		{"drive-list", "drive list", 0},
		{"drive-show", "drive show /dev/nvme1n1", 0},
		{"stop-plan", "stop --plan", 0},
		{"stop", "stop --erase", 0},
		{"status", "status", 0},
	}
	for _, tt := range tests {
		for _, format := range []string{"table", "json", "yaml"} {
			t.Run(tt.name+"/"+format, func(t *testing.T) {
				sock := sock
				if tt.name == "stop" { // which ends the daemon
					_, sock = startFake(t)
				}
				r := run(t, sock, Hooks{}, append(strings.Fields(tt.args), "-o", format)...)
				if r.code != tt.code {
					t.Errorf("exit code %d, want %d: %s", r.code, tt.code, r.err)
				}
				if strings.ContainsRune(r.out+r.err, '\x1b') {
					t.Errorf("escape codes off a terminal: %q", r.out)
				}
				golden(t, tt.name+"."+format, clock.ReplaceAllString(r.out, "HH:MM:SS  "))
			})
		}
	}
}

// TestSameInJSONAndYAML checks that the two formats say the same.
func TestSameInJSONAndYAML(t *testing.T) {
	_, sock := startFake(t)
	var j, y any
	if err := json.Unmarshal([]byte(run(t, sock, Hooks{}, "lease", "list", "--all", "-o", "json").out), &j); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal([]byte(run(t, sock, Hooks{}, "lease", "list", "--all", "-o", "yaml").out), &y); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(y)
	if err != nil {
		t.Fatal(err)
	}
	a, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	if string(a) != string(b) {
		t.Errorf("JSON:\n%s\nYAML:\n%s", a, b)
	}
}

// TestErrors checks exit codes, what is said, and that it says what to do next.
func TestErrors(t *testing.T) {
	_, sock := startFake(t)
	long := "/" + strings.Repeat("x", 200)
	tests := []struct {
		args string
		code int
		want []string // on standard error
	}{
		{"lease close nope", ExitNotFound, []string{`error: there is no lease "nope"`, "next: see `vacate lease list --all`"}},
		{"lease close nope " + idClosed, ExitNotFound, []string{`no lease "nope"`}},
		{"lease show nope", ExitNotFound, []string{`error: there is no lease "nope"`}},
		{"lease open --size 4097", ExitUsage, []string{"error: not a multiple of 4096"}},
		{"lease open --size 2TiB", ExitFailed, []string{"error: there is not that much space", "next: 900 GiB are free"}},
		{"lease open", ExitUsage, []string{"error: the lease's size is missing: write --size 1GiB"}},
		{"lease open --size 10G", ExitUsage, []string{"10GiB (powers of 1024)", "see `vacate lease open --help`"}},
		{"lease open --size=-5GiB", ExitUsage, []string{"is negative"}},
		{"lease open --size 1GiB --uid nosuchuser", ExitUsage, []string{"no such user"}},
		{"lease open --size 1GiB extra", ExitUsage, []string{`takes no arguments, and was given "extra"`}},
		{"lease open --size 1GiB --limit 5000", ExitUsage, []string{`"5000" is not a limit; write iops=5000`, "see `vacate lease open --help`"}},
		{"lease attach", ExitUsage, []string{"wants one lease id"}},
		{"lease attach nope", ExitNotFound, []string{`there is no lease "nope"`}},
		{"lease attach " + idVM, ExitFailed, []string{"not made on this host: no ublk_drv", "next: modprobe ublk_drv"}},
		{"lease detach", ExitUsage, []string{"wants one lease id"}},
		{"lease detach nope", ExitNotFound, []string{`there is no lease "nope"`}},
		{"lease detach " + idVM, ExitRefused, []string{"mounted at /srv/acme", "next: unmount it"}},
		{"lease resize " + idOpen, ExitUsage, []string{"the new size is missing", "--size 200GiB"}},
		{"lease resize --size 20GiB", ExitUsage, []string{"wants one lease id"}},
		{"lease resize --size 20G x", ExitUsage, []string{"20GiB (powers of 1024)"}},
		{"lease resize --size 1GiB nope", ExitNotFound, []string{`there is no lease "nope"`}},
		{"lease resize --plan --size 1GiB nope", ExitNotFound, []string{`there is no lease "nope"`}},
		{"lease resize --size 4096 " + idOpen, ExitRefused, []string{"never made smaller"}},
		{"lease limit " + idOpen, ExitUsage, []string{"the limits are missing", "--limit none"}},
		{"lease limit --limit none", ExitUsage, []string{"wants one lease id"}},
		{"lease limit --limit iops=1k x", ExitUsage, []string{`iops: "1k" is not a number of requests`}},
		{"lease limit --limit iops=4294967296 x", ExitUsage, []string{"up to 2^32 - 1"}},
		{"lease limit --limit iops=-1 x", ExitUsage, []string{"is not a number of requests"}},
		{"lease limit --limit iops=0 x", ExitUsage, []string{"a limit of 0 lets nothing through"}},
		{"lease limit --limit iops=1,iops=2 x", ExitUsage, []string{"iops is given twice"}},
		{"lease limit --limit iops=1, x", ExitUsage, []string{`"" is not a limit`}},
		{"lease limit --limit bandwidth=200M x", ExitUsage, []string{"bandwidth: size", "200MiB (powers of 1024)"}},
		{"lease limit --limit none --limit iops=1 x", ExitUsage, []string{"none takes every limit away"}},
		{"lease limit --limit iops=1 --limit none x", ExitUsage, []string{"none takes every limit away"}},
		{"lease limit --limit none nope", ExitNotFound, []string{`there is no lease "nope"`}},
		{"lease limit --limit none " + idClosed, ExitRefused, []string{"only an open lease can be limited"}},
		{"lease close", ExitUsage, []string{"wants at least one lease id"}},
		{"lease clsoe x", ExitUsage, []string{`there is no command "vacate lease clsoe"`, "did you mean `vacate lease close`?"}},
		{"laese", ExitUsage, []string{`there is no command "vacate laese"`, "did you mean `vacate lease`?"}},
		{"lease list -o xml", ExitUsage, []string{"write table, json or yaml"}},
		{"lease list --nope", ExitUsage, []string{"unknown flag: --nope", "see `vacate lease list --help`"}},
		{"drive enroll ./used", ExitRefused, []string{`in the way (signature): an ext4 file system labelled "home"`, "error: enrolling used was refused", "next: use another drive"}},
		{"drive enroll --force ./used", ExitUsage, []string{"--force wants the drive typed again", "add --confirm"}},
		{"drive enroll --confirm x ./used", ExitUsage, []string{"--confirm goes with --force"}},
		{"drive enroll --plan ./mounted", ExitRefused, []string{"--force does not override it"}},
		{"drive show /dev/none", ExitNotFound, []string{"no such drive"}},
		{"stop", ExitRefused, []string{"error: 1 lease is open", "next: close it, or stop with --erase"}},
		{"status --addr /nonexistent/sock", ExitFailed, []string{"error: no daemon answers at /nonexistent/sock: no such file or directory", "vacate serve --dev ./vacate-dev", "--addr or VACATE_ADDR"}},
		{"status --addr " + long, ExitFailed, []string{"at most 107 bytes"}},
		{"lease watch", ExitFailed, []string{"the daemon ended the watch"}},
		{"serve --max-connections 0 --log-level loud --dev /tmp/v", ExitUsage, []string{"2 faults", "max_connections = 0 (--max-connections): is out of range", "log.level"}},
	}
	hooks := Hooks{Serve: func(_ context.Context, load func() (config.Config, error)) error { _, err := load(); return err }}
	for _, tt := range tests {
		t.Run(tt.args[:min(len(tt.args), 40)], func(t *testing.T) {
			r := run(t, sock, hooks, strings.Fields(tt.args)...)
			if r.code != tt.code {
				t.Errorf("exit code %d, want %d", r.code, tt.code)
			}
			for _, want := range tt.want {
				if !strings.Contains(r.err, want) {
					t.Errorf("error leaves out %q:\n%s", want, r.err)
				}
			}
			if strings.Count(r.err, "error:") != 1 {
				t.Errorf("not one error is printed:\n%s", r.err)
			}
		})
	}
}

// TestErrorAsJSON checks that programs get errors they can read.
func TestErrorAsJSON(t *testing.T) {
	_, sock := startFake(t)
	r := run(t, sock, Hooks{}, "drive", "enroll", "./used", "-o", "json")
	if r.code != ExitRefused || r.out != "" {
		t.Errorf("exit code %d, output %q", r.code, r.out)
	}
	golden(t, "error.json", regexp.MustCompile(`"object": ".*/used"`).ReplaceAllString(r.err, `"object": "PATH/used"`))
}

// TestCloseGoesOn checks that a lease that cannot be closed does not keep the
// next one open.
func TestCloseGoesOn(t *testing.T) {
	_, sock := startFake(t)
	r := run(t, sock, Hooks{}, "lease", "close", "nope", idClosed)
	if !strings.Contains(r.out, idClosed+"  closed  key destroyed 143.2 µs after the gate shut, read back as zeros, I/O drained") {
		t.Errorf("output:\n%s", r.out)
	}
}

func TestRequests(t *testing.T) {
	f, sock := startFake(t)
	run(t, sock, Hooks{}, "lease", "open", "--size", "1.5GiB", "--tenant", "T", "--drive", "D", "--ttl", "90s", "--logical-block", "4096", "--idempotency-key", "K", "--uid", "1234")
	if o := f.opened; o.GetSizeBytes() != 3<<29 || o.GetTenant() != "T" || o.GetDrive() != "D" || o.GetTtl().AsDuration().Seconds() != 90 ||
		o.GetLogicalBlock() != 4096 || o.GetIdempotencyKey() != "K" || o.GetUid() != 1234 {
		t.Errorf("request %v", o)
	}
	run(t, sock, Hooks{}, "lease", "open", "--size", "4096")
	if o := f.opened; o.Uid != nil || o.GetTtl() != nil || o.GetSizeBytes() != 4096 {
		t.Errorf("request %v", o)
	}
	run(t, sock, Hooks{}, "lease", "open", "--size", "4096", "--uid", "root")
	if o := f.opened; o.Uid == nil || o.GetUid() != 0 {
		t.Errorf("request %v", o)
	}
	run(t, sock, Hooks{}, "lease", "open", "--size", "4096", "--limit", "iops=7,bandwidth-burst=1GiB", "--limit", "bandwidth=1kB,iops-burst=9")
	want := &vacatev1.Limits{Iops: 7, IopsBurst: 9, BandwidthBytes: 1000, BandwidthBurstBytes: 1 << 30}
	if o := f.opened; !proto.Equal(o.GetLimits(), want) {
		t.Errorf("request %v", o)
	}
	f.recovers = 2
	if r := run(t, sock, Hooks{}, "lease", "limit", idOpen, "--limit", "iops=7,bandwidth=1kB,bandwidth-burst=1GiB,iops-burst=9"); r.code != 0 || f.recovers != 0 ||
		f.limit.GetId() != idOpen || !proto.Equal(f.limit.GetLimits(), want) {
		t.Errorf("request %v, exit code %d, %s", f.limit, r.code, r.err)
	}
	f.recovers = 2
	if r := run(t, sock, Hooks{}, "lease", "resize", idOpen, "--size", "20GiB"); r.code != 0 || f.recovers != 0 ||
		f.resize.GetId() != idOpen || f.resize.GetSizeBytes() != 20<<30 || f.resize.GetPlan() {
		t.Errorf("request %v, exit code %d, %s", f.resize, r.code, r.err)
	}
	run(t, sock, Hooks{}, "lease", "open", "--size", "4096", "--limit", "none")
	if o := f.opened; o.Limits != nil {
		t.Errorf("request %v", o)
	}
	run(t, sock, Hooks{}, "drive", "enroll", "--force", "--confirm", "S123", "./used")
	if e := f.enroll; !filepath.IsAbs(e.GetPath()) || !e.GetForce() || e.GetConfirm() != "S123" || e.GetPlan() {
		t.Errorf("request %v", e)
	}
	run(t, sock, Hooks{}, "stop", "--erase")
	if s := f.stop; !s.GetErase() || s.GetPlan() {
		t.Errorf("request %v", s)
	}
}

func TestServe(t *testing.T) {
	var got config.Config
	hooks := Hooks{Serve: func(_ context.Context, load func() (config.Config, error)) (err error) { got, err = load(); return err }}
	dir := t.TempDir()
	if r := run(t, "", hooks, "serve", "--dev", dir, "--max-connections", "5"); r.code != 0 {
		t.Fatalf("exit code %d: %s", r.code, r.err)
	}
	if got.Dev != dir || got.MaxConnections != 5 || got.APISocket() != filepath.Join(dir, "vacate.sock") {
		t.Errorf("configuration %+v", got)
	}
	got = config.Config{}
	r := run(t, "", hooks, "serve", "--dev", dir, "--check-config")
	if r.code != 0 || got.RunDir != "" || !strings.HasPrefix(r.out, "# config ok") || !strings.Contains(r.out, "max_connections: 128") {
		t.Errorf("exit code %d, served %v:\n%s", r.code, got.RunDir != "", r.out)
	}
	hooks.Serve = func(context.Context, func() (config.Config, error)) error {
		return &ExitError{Code: ExitRefused, Err: errors.New("held"), Next: "wait"}
	}
	if r := run(t, "", hooks, "serve", "--dev", dir); r.code != ExitRefused || r.err != "error: held\nnext: wait\n" {
		t.Errorf("exit code %d, %q", r.code, r.err)
	}
}

func TestDemo(t *testing.T) {
	hooks := Hooks{Demo: func(_ context.Context, o DemoOptions) error {
		if o.Color {
			t.Error("colours off a terminal")
		}
		_, err := io.WriteString(o.Out, "story of "+o.Dir)
		return err
	}}
	if r := run(t, "", hooks, "demo", "--dir", "d"); r.code != 0 || r.out != "story of d" {
		t.Errorf("%+v", r)
	}
}

// TestChildren checks that the daemon's processes run without a command line.
func TestChildren(t *testing.T) {
	hooks := Hooks{Engine: func() error { return nil }, Control: func() error { return errors.New("no pipe") }}
	var errs strings.Builder
	s := Streams{Out: io.Discard, Err: &errs, Getenv: func(string) string { return "" }}
	if code := Main([]string{"engine"}, hooks, s); code != 0 {
		t.Errorf("engine: exit code %d", code)
	}
	if code := Main([]string{"control"}, hooks, s); code != ExitFailed || errs.String() != "vacate control: no pipe\n" {
		t.Errorf("control: exit code %d, %q", code, errs.String())
	}
}

func TestVersion(t *testing.T) {
	if r := run(t, "", Hooks{}, "version"); r.code != 0 || !strings.HasPrefix(r.out, "vacate ") || !strings.Contains(r.out, "linux/") {
		t.Errorf("%+v", r)
	}
	var v struct{ Version, Go, Platform string }
	if err := json.Unmarshal([]byte(run(t, "", Hooks{}, "version", "-o", "json").out), &v); err != nil || v.Version == "" || v.Go == "" || v.Platform == "" {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestHelp checks that every command has a help, a man page, and examples that
// name only commands and flags that exist.
func TestHelp(t *testing.T) {
	root := Root(Hooks{})
	for _, c := range append(root.Commands(), root) {
		r := run(t, "", Hooks{}, append(strings.Fields(c.CommandPath())[1:], "--help")...)
		if r.code != 0 || !strings.Contains(r.out, c.CommandPath()) || !strings.Contains(r.out, "--output") {
			t.Errorf("help of %s: exit code %d\n%s", c.CommandPath(), r.code, r.out)
		}
		for line := range strings.Lines(c.Example) {
			args := strings.Fields(line)
			if args[0] == "#" {
				continue
			}
			sub, rest, err := root.Find(args[1:])
			if err != nil || sub == root {
				t.Errorf("example %q is no command: %v", line, err)
				continue
			}
			if err := sub.ParseFlags(rest); err != nil {
				t.Errorf("example %q: %v", line, err)
			}
		}
	}
}

// TestCompletion checks that values, leases and drives are completed, and that
// without a daemon nothing is said.
func TestCompletion(t *testing.T) {
	_, sock := startFake(t)
	tests := []struct {
		sock string
		args []string
		want []string
	}{
		{sock, []string{"lease", "close", ""}, []string{idOpen + "\tacme 10 GiB", idErased}},
		{sock, []string{"lease", "show", ""}, []string{idOpen}},
		{sock, []string{"drive", "show", ""}, []string{"/dev/nvme1n1\t900 GiB free"}},
		{sock, []string{"lease", "open", "--drive", ""}, []string{"/dev/nvme1n1"}},
		{sock, []string{"lease", "list", "-o", ""}, []string{"table", "json", "yaml"}},
		{sock, []string{"lease", "open", "--logical-block", ""}, []string{"512", "4096"}},
		{sock, []string{"lease", "limit", ""}, []string{idOpen}},
		{sock, []string{"lease", "open", "--limit", ""}, []string{"iops=", "bandwidth-burst=", "none"}},
		{sock, []string{"lease", "limit", "--limit", "iops=5,"}, []string{"iops=5,bandwidth="}},
		{sock, []string{"le"}, []string{"lease"}},
		{"/nonexistent/sock", []string{"lease", "close", ""}, []string{":4"}},
	}
	for _, tt := range tests {
		r := run(t, tt.sock, Hooks{}, append([]string{"__complete"}, tt.args...)...)
		for _, want := range tt.want {
			if r.code != 0 || !strings.Contains(r.out, want) {
				t.Errorf("completing %q leaves out %q:\n%s", tt.args, want, r.out)
			}
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if r := run(t, "", Hooks{}, "completion", shell); r.code != 0 || !strings.Contains(r.out, "vacate") {
			t.Errorf("completion %s: exit code %d", shell, r.code)
		}
	}
}
