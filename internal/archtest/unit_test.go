package archtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// unitSettings are what deploy/README.md promises of the unit.
var unitSettings = map[string][]string{
	"Unit.RefuseManualStop":            {"yes"},
	"Unit.Wants":                       {"vacate-devices.service"},
	"Service.Type":                     {"notify"},
	"Service.NotifyAccess":             {"main"},
	"Service.ExecStart":                {"/usr/bin/vacate serve"},
	"Service.ExecReload":               {"/usr/bin/vacate upgrade"},
	"Service.Restart":                  {"on-failure"},
	"Service.RestartPreventExitStatus": {"2 4"},
	"Service.KillMode":                 {"process"},
	"Service.KillSignal":               {"SIGTERM"},
	"Service.TimeoutStopSec":           {"infinity"},
	"Service.WatchdogSec":              {"2min"},
	"Service.WatchdogSignal":           {"SIGKILL"},
	"Service.OOMScoreAdjust":           {"-1000"},
	"Service.OOMPolicy":                {"continue"},
	"Service.LimitMEMLOCK":             {"infinity"},
	"Service.LimitCORE":                {"0"},
	"Service.LimitNOFILE":              {"262144"},
	"Service.StateDirectory":           {"vacate"},
	"Service.StateDirectoryMode":       {"0700"},
	"Service.RuntimeDirectory":         {"vacate"},
	"Service.RuntimeDirectoryPreserve": {"yes"},
	"Service.CapabilityBoundingSet":    {"CAP_CHOWN CAP_IPC_LOCK CAP_SETPCAP CAP_SYS_NICE"},
	"Service.NoNewPrivileges":          {"yes"},
	"Service.PrivateNetwork":           {"yes"},
	"Service.RestrictAddressFamilies":  {"AF_UNIX"},
	// What would stop the daemon, or erase its leases.
	"Service.PrivateDevices":   nil,
	"Service.ProtectClock":     nil,
	"Service.RestrictRealtime": nil,
	"Service.DevicePolicy":     nil,
	"Service.RuntimeMaxSec":    nil,
	"Unit.Requires":            nil,
	"Unit.BindsTo":             nil,
	"Unit.PartOf":              nil,
	"Unit.RequiresMountsFor":   nil,
}

// devicesSettings are the same of the unit for block devices.
var devicesSettings = map[string][]string{
	"Unit.Before":                      {"vacate.service"},
	"Unit.Wants":                       {"modprobe@ublk_drv.service"},
	"Unit.After":                       {"modprobe@ublk_drv.service"},
	"Service.ExecStart":                {"/usr/bin/vacate devices"},
	"Service.Restart":                  {"on-failure"},
	"Service.RestartPreventExitStatus": {"2 4"},
	"Service.OOMScoreAdjust":           {"-1000"},
	"Service.CapabilityBoundingSet":    {"CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_SYS_ADMIN CAP_SYS_PTRACE"},
	"Service.NoNewPrivileges":          {"yes"},
	"Service.DevicePolicy":             {"closed"},
	"Service.DeviceAllow":              {"/dev/ublk-control rw", "char-ublk-char rw", "block-blkext r", "block-nbd r"},
	"Service.RestrictAddressFamilies":  {"AF_UNIX AF_NETLINK"},
	"Install.WantedBy":                 {"vacate.service"},
	// What would keep it from its devices, or give the daemon's folder to root.
	"Service.PrivateDevices":        nil,
	"Service.PrivateNetwork":        nil,
	"Service.ProtectKernelTunables": nil,
	"Service.ProtectProc":           nil,
	"Service.RuntimeDirectory":      nil,
	// A daemon must not end with it.
	"Unit.PartOf":    nil,
	"Unit.Conflicts": nil,
}

// readUnit reads a unit of deploy and checks that it has settings.
func readUnit(t *testing.T, name string, settings map[string][]string) map[string][]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root(t), "deploy", name))
	if err != nil {
		t.Fatal(err)
	}
	unit, bad := parseUnit(string(b))
	for _, line := range bad {
		t.Errorf("%s: %q is no line of a unit", name, line)
	}
	for key, want := range settings {
		if got := unit[key]; !slices.Equal(got, want) {
			t.Errorf("%s: %s is %q, want %q", name, key, got, want)
		}
	}
	return unit
}

func TestUnit(t *testing.T) {
	readUnit(t, "vacate-devices.service", devicesSettings)
	unit := readUnit(t, "vacate.service", unitSettings)
	// Whatever stops the unit, leases are erased only when the host goes down.
	stop := strings.Join(unit["Service.ExecStop"], "")
	before, after, erases := strings.Cut(stop, "stop --erase")
	if !erases || !strings.Contains(before, "is-system-running)\" = stopping ]") || strings.Contains(after, "--erase") {
		t.Errorf("ExecStop is %q", stop)
	}
	script, err := os.ReadFile(filepath.Join(root(t), "deploy", "vacate.sh"))
	if err != nil {
		t.Fatal(err)
	}
	caps := strings.Fields(strings.ToLower(strings.ReplaceAll(strings.Join(unit["Service.CapabilityBoundingSet"], " "), "CAP_", "+")))
	for _, want := range []string{"-all," + strings.Join(caps, ","), "ulimit -c 0", "ulimit -n " + strings.Join(unit["Service.LimitNOFILE"], ""), "-1000"} {
		if !strings.Contains(string(script), want) {
			t.Errorf("vacate.sh lacks %q, which the unit has", want)
		}
	}
}

// TestUnitVerified asks systemd, where it is installed, about the unit with a
// program that is there.
func TestUnitVerified(t *testing.T) {
	verifier, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Log("systemd-analyze is not installed: TestUnit has read the unit, nobody else")
		return
	}
	for _, name := range []string{"vacate.service", "vacate-devices.service"} {
		b, err := os.ReadFile(filepath.Join(root(t), "deploy", name))
		if err != nil {
			t.Fatal(err)
		}
		for text, fails := range map[string]bool{"": false, "NoSuchSetting=yes\n": true} {
			unit := filepath.Join(t.TempDir(), name)
			planted := strings.Replace(strings.ReplaceAll(string(b), "/usr/bin/vacate", "/bin/true"), "[Service]\n", "[Service]\n"+text, 1)
			if err := os.WriteFile(unit, []byte(planted), 0o644); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(verifier, "verify", "--man=no", unit).CombinedOutput()
			if complains := err != nil || strings.Contains(string(out), name); complains != fails {
				t.Errorf("systemd-analyze verify of %s with %q: %v\n%s", name, text, err, out)
			}
		}
	}
}

// parseUnit reads settings as SECTION.KEY (systemd.syntax(7)), and the lines that
// are none.
func parseUnit(text string) (settings map[string][]string, bad []string) {
	settings = make(map[string][]string)
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		key, value, ok := strings.Cut(line, "=")
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case line[0] == '[' && line[len(line)-1] == ']':
			section = line[1 : len(line)-1]
		case !ok || section == "" || strings.ContainsAny(key, " \t") || strings.HasSuffix(line, `\`):
			bad = append(bad, line)
		default:
			settings[section+"."+key] = append(settings[section+"."+key], value)
		}
	}
	return settings, bad
}
