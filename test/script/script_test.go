// Package script runs what people type against the real binary, real daemons
// and real sockets: one script (testdata/*.txtar) a story.
//
// Beside the commands of testscript, scripts have:
//
//	start DIR [NAME=VALUE…]     a daemon with --dev DIR, ready; VACATE_ADDR names its socket
//	stopd                       erase what is open and end it
//	ended                       wait until it has ended, as it was told to
//	exits CODE COMMAND…         run a command, which must end with this exit code
//	json PATH is TYPE           what the last command printed has this value at PATH
//	json PATH = VALUE           (as a.0.b): by type, or by value, or put into a
//	json PATH as NAME           variable
//	post METHOD BODY            a call as curl would make it: JSON over HTTP
//	eventually COMMAND…         run a command until it ends with 0, for a minute
package script

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"vacate/internal/secret"
	"vacate/test/daemon"
)

var bin string

func TestMain(m *testing.M) {
	code, err := setUp(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "script:", err)
		code = 1
	}
	os.Exit(code)
}

// tools are the clients that the scripts use, and the Debian package of each.
var tools = map[string]string{"nbdinfo": "libnbd-bin", "qemu-io": "qemu-utils", "mke2fs": "e2fsprogs", "script": "bsdutils"}

func setUp(m *testing.M) (code int, err error) {
	// Debian keeps mke2fs where only root's PATH looks.
	if err := os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin"); err != nil {
		return 1, err
	}
	for tool, pkg := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			return 1, fmt.Errorf("%w: install it with `apt-get install %s`, or run `make test`, which does", err, pkg)
		}
	}
	dir, err := os.MkdirTemp("", "vacate-script-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if bin, err = daemon.Build(dir); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// daemonKey is where a script's daemon is kept.
type daemonKey struct{}

// A slot holds a script's daemon; nil before start and after stopd.
type slot struct{ d *daemon.Daemon }

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", filepath.Dir(bin)+":"+os.Getenv("PATH"))
			e.Setenv("TZ", "UTC")
			e.Values[daemonKey{}] = new(slot)
			return nil
		},
		Condition: func(name string) (bool, error) {
			if name == "secret" { // this build, and so the binary, clears what cryptography leaves
				return secret.Enabled(), nil
			}
			return false, fmt.Errorf("there is no condition %q", name)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start": start, "stopd": stopd, "ended": ended, "exits": exits, "json": jsonAt, "post": post, "eventually": eventually,
		},
	})
}

func start(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: start DIR [NAME=VALUE…]")
	}
	dir := ts.MkAbs(args[0])
	d, err := daemon.Start(bin, dir, daemon.Options{Env: args[1:]})
	ts.Check(err)
	ts.Value(daemonKey{}).(*slot).d = d
	ts.Setenv("VACATE_ADDR", filepath.Join(dir, "vacate.sock"))
	ts.Defer(func() {
		select {
		case <-d.Done():
		default:
			if err := d.Stop(); err != nil {
				ts.Logf("stopping: %v", err)
			}
			d.Kill()
		}
		ts.Logf("the daemon's log:\n%s", d.Log())
	})
}

func stopd(ts *testscript.TestScript, _ bool, _ []string) {
	s := ts.Value(daemonKey{}).(*slot)
	if s.d == nil {
		ts.Fatalf("no daemon runs")
	}
	ts.Check(s.d.Stop())
	s.d = nil
}

func ended(ts *testscript.TestScript, _ bool, _ []string) {
	s := ts.Value(daemonKey{}).(*slot)
	if s.d == nil {
		ts.Fatalf("no daemon runs")
	}
	select {
	case <-s.d.Done():
	case <-time.After(time.Minute):
		ts.Fatalf("the daemon does not end")
	}
	s.d = nil
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARG…]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%q ended with exit code %d, want %d", args[1:], got, want)
	}
}

func jsonAt(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: json PATH is TYPE | json PATH = VALUE | json PATH as NAME")
	}
	text := ts.ReadFile("stdout")
	if strings.TrimSpace(text) == "" {
		text = ts.ReadFile("stderr") // an error
	}
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		ts.Fatalf("what was printed is not JSON: %v", err)
	}
	v, err := at(v, args[0])
	ts.Check(err)
	got, want := fmt.Sprint(v), strings.Join(args[2:], " ")
	switch args[1] {
	case "is":
		got = kind(v)
	case "as":
		ts.Setenv(want, got)
		return
	case "=":
	default:
		ts.Fatalf("json: there is no %q", args[1])
	}
	if got != want {
		ts.Fatalf("%s is %s, want %s", args[0], got, want)
	}
}

// at follows a path as exports.0.uri; a point alone is all of it.
func at(v any, path string) (any, error) {
	if path == "." {
		return v, nil
	}
	for key := range strings.SplitSeq(path, ".") {
		switch in := v.(type) {
		case map[string]any:
			next, ok := in[key]
			if !ok {
				return nil, fmt.Errorf("there is no %s (of %s) in %v", key, path, in)
			}
			v = next
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i < 0 || i >= len(in) {
				return nil, fmt.Errorf("there is no %s (of %s) in a list of %d", key, path, len(in))
			}
			v = in[i]
		default:
			return nil, fmt.Errorf("there is nothing at %s (of %s)", key, path)
		}
	}
	return v, nil
}

func kind(v any) string {
	switch v := v.(type) {
	case json.Number:
		return "number"
	case string:
		return "string"
	case bool:
		return "bool"
	case nil:
		return "null"
	case []any:
		return fmt.Sprintf("list of %d", len(v))
	case map[string]any:
		return "object"
	}
	return fmt.Sprintf("%T", v)
}

// post does what curl --unix-socket does, which not every host has.
func post(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: [!] post Service/Method BODY")
	}
	c := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var nd net.Dialer
			return nd.DialContext(ctx, "unix", ts.Getenv("VACATE_ADDR"))
		},
	}}
	resp, err := c.Post("http://vacate/vacate.v1."+args[0], "application/json", strings.NewReader(args[1]))
	ts.Check(err)
	defer resp.Body.Close() //nolint:errcheck // read to the end
	body, err := io.ReadAll(resp.Body)
	ts.Check(err)
	fmt.Fprintf(ts.Stdout(), "%s\n", body)
	fmt.Fprintf(ts.Stderr(), "%s\n", resp.Status)
	if (resp.StatusCode == http.StatusOK) == neg {
		ts.Fatalf("POST %s: %s: %s", args[0], resp.Status, body)
	}
}

func eventually(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: eventually COMMAND [ARG…]")
	}
	deadline := time.Now().Add(time.Minute)
	for {
		err := ts.Exec(args[0], args[1:]...)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%q: %v", args, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
