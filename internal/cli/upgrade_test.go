package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// program writes a program that prints text.
func program(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vacate")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask is
		t.Fatal(err)
	}
	return path
}

const tellsVersion = `[ "$*" = "version -o json" ] && echo '{"version":"v0.2.0","commit":"0123456789abcdef","go":"go","platform":"p"}'`

func TestUpgrade(t *testing.T) {
	for _, tt := range []struct {
		name    string
		program string
		mode    os.FileMode
		outcome string
		args    string
		code    int
		out     []string
		err     []string
	}{
		{"done", tellsVersion, 0o755, "done", "upgrade", 0,
			[]string{"v0.2.0 0123456789ab\n", "runs     keeper v0.1.0, engine v0.1.0 (pid 43), control v0.1.0 (pid 42)\n",
				"now      keeper v0.2.0, engine v0.2.0 (pid 53), control v0.2.0 (pid 52)\n", "upgraded in ", "leases: 1 open, 1 erased"}, nil},
		{"failed", tellsVersion, 0o755, "failed: its engine does not take over", "upgrade", 1,
			[]string{"now      keeper v0.1.0, engine v0.1.0 (pid 53), control v0.1.0 (pid 52)\n"},
			[]string{"error: the upgrade has failed: its engine does not take over", "next: the old program goes on"}},
		{"does not start", "exit 3", 0o755, "", "upgrade", 1, []string{"running it: exit status 3"},
			[]string{"error: the new program does not start; nothing was changed", "next: see the log"}},
		{"plan", tellsVersion, 0o755, "done", "upgrade --plan", 0, []string{"v0.2.0 0123456789ab", "plan: ", "nothing was changed"}, nil},
		{"plan without a program", "echo hello", 0o755, "done", "upgrade --plan", 1, nil, []string{"is none: hello", "next: "}},
		{"plan with a program of others", tellsVersion, 0o777, "done", "upgrade --plan", 1, nil, []string{"is not run", "can change it"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, sock := startFake(t)
			f.program, f.upgrade = program(t, tt.program, tt.mode), tt.outcome
			r := run(t, sock, Hooks{}, strings.Fields(tt.args)...)
			if r.code != tt.code {
				t.Errorf("exit code %d, want %d", r.code, tt.code)
			}
			for _, want := range tt.out {
				if !strings.Contains(r.out, want) {
					t.Errorf("output leaves out %q:\n%s", want, r.out)
				}
			}
			for _, want := range tt.err {
				if !strings.Contains(r.err, want) {
					t.Errorf("error leaves out %q:\n%s", want, r.err)
				}
			}
			if strings.Contains(tt.args, "--plan") && f.ended != "" {
				t.Error("a plan upgraded")
			}
			if strings.ContainsAny(r.out+r.err, "\x1b\r") {
				t.Errorf("control characters off a terminal: %q", r.out+r.err)
			}
		})
	}
}

func TestUpgradeAsJSON(t *testing.T) {
	f, sock := startFake(t)
	f.program, f.upgrade = program(t, tellsVersion, 0o755), "done"
	var v upgradeView
	if err := json.Unmarshal([]byte(run(t, sock, Hooks{}, "upgrade", "-o", "json").out), &v); err != nil {
		t.Fatal(err)
	}
	if !v.Upgraded || v.Outcome != "done" || v.Program.Version != "v0.2.0 0123456789ab" || v.Before.Engine.PID != 43 || v.After.Engine.PID != 53 ||
		v.After.Keeper.Version != "v0.2.0" {
		t.Errorf("%+v, after %+v", v, v.After)
	}
}

// TestUpgradeThatNeverEnds: nothing is claimed.
func TestUpgradeThatNeverEnds(t *testing.T) {
	f, sock := startFake(t)
	f.program, f.upgrade = program(t, tellsVersion, 0o755), "never"
	var out strings.Builder
	a := newApp(Hooks{}, Streams{Out: &out, Err: &out, Getenv: func(string) string { return sock }})
	a.upgradeWithin = 200 * time.Millisecond
	root := a.root()
	root.SetArgs([]string{"upgrade"})
	root.SilenceErrors, root.SilenceUsage = true, true
	if err := root.Execute(); exitCode(err) != ExitFailed || !strings.Contains(err.Error(), "has not ended") {
		t.Errorf("%v", err)
	}
}

// TestCutOff: an open and a close whose daemon ends meanwhile are asked again, the
// open with the same key.
func TestCutOff(t *testing.T) {
	f, sock := startFake(t)
	f.cut, f.recovers = 1, 1
	if r := run(t, sock, Hooks{}, "lease", "open", "--size", "1GiB"); r.code != 0 {
		t.Errorf("exit code %d: %s", r.code, r.err)
	}
	if len(f.keys) != 3 || len(slices.Compact(slices.Clone(f.keys))) != 1 || len(f.keys[0]) < 20 {
		t.Errorf("keys %q", f.keys)
	}
	first := f.keys[0]
	run(t, sock, Hooks{}, "lease", "open", "--size", "1GiB")
	if f.keys[3] == first {
		t.Error("two commands have one key")
	}
	f.cut = 1
	if r := run(t, sock, Hooks{}, "lease", "close", idClosed); r.code != 0 || f.cut != 0 {
		t.Errorf("exit code %d: %s", r.code, r.err)
	}
}
