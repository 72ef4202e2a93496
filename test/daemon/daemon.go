// Package daemon builds vacate and runs real daemons, for the tests and
// benchmarks that use it as people do: through its binary and its sockets.
package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Build builds the binary with the given build tags into dir and returns its
// path. It is run within the module.
func Build(dir string, tags ...string) (string, error) {
	name := "vacate"
	if len(tags) > 0 {
		name += "-" + strings.Join(tags, "-")
	}
	bin := filepath.Join(dir, name)
	cmd := exec.Command("go", "build", "-tags", strings.Join(tags, ","), "-o", bin, "vacate/cmd/vacate")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", name, err, out)
	}
	return bin, nil
}

// A Daemon is a running `vacate serve --dev`.
type Daemon struct {
	Bin string
	Dir string // of --dev

	Args []string // as in Options

	cmd  *exec.Cmd
	log  syncBuffer
	done chan struct{} // closed when the process has ended
	err  error         // how; set before done is closed
}

// Options change how a daemon is started.
type Options struct {
	Env    []string            // added to the environment
	Args   []string            // added to serve --dev DIR
	Before func(cmd *exec.Cmd) // may change the command, e.g. the credentials
}

// startTimeout is how long a daemon may take until it is ready.
const startTimeout = 30 * time.Second

// Start starts a daemon under dir and waits until it is ready.
func Start(bin, dir string, o Options) (*Daemon, error) {
	d := &Daemon{Bin: bin, Dir: dir, Args: o.Args, done: make(chan struct{})}
	d.cmd = exec.Command(bin, append([]string{"serve", "--dev", dir}, o.Args...)...)
	d.cmd.Env = append(os.Environ(), o.Env...)
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a signal to the test is not one to the daemon
	if o.Before != nil {
		o.Before(d.cmd)
	}
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		d.err = d.cmd.Wait()
		close(d.done)
	}()
	if err := d.waitReady(); err != nil {
		d.Kill()
		return nil, fmt.Errorf("starting vacate under %s: %w\n%s", dir, err, d.Log())
	}
	return d, nil
}

func (d *Daemon) waitReady() error {
	deadline := time.Now().Add(startTimeout)
	for {
		err := d.Ready()
		if err == nil {
			return nil
		}
		select {
		case <-d.done:
			return fmt.Errorf("it ended: %w", errors.Join(d.err, errors.New("before it was ready")))
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return err
		}
	}
}

// Admin fetches a path (/readyz, /metrics) from the admin socket.
func (d *Daemon) Admin(path string) (string, error) {
	c := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var nd net.Dialer
			return nd.DialContext(ctx, "unix", filepath.Join(d.Dir, "admin.sock"))
		},
	}}
	resp, err := c.Get("http://vacate" + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return b.String(), fmt.Errorf("GET %s: %s: %s", path, resp.Status, b.String())
	}
	return b.String(), nil
}

// Ready asks /readyz.
func (d *Daemon) Ready() error {
	_, err := d.Admin("/readyz")
	return err
}

// Run runs the command line against this daemon. On failure the error carries
// the exit code ([exec.ExitError]) and what was written to standard error.
func (d *Daemon) Run(args ...string) (string, error) {
	cmd := exec.Command(d.Bin, args...)
	cmd.Env = append(os.Environ(), "VACATE_ADDR="+filepath.Join(d.Dir, "vacate.sock"), "NO_COLOR=1")
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("vacate %s: %w: %s", strings.Join(args, " "), err, errb.String())
	}
	return out.String(), nil
}

// JSON runs the command line with -o json and decodes what it prints into v.
func (d *Daemon) JSON(v any, args ...string) error {
	out, err := d.Run(append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		return fmt.Errorf("vacate %s -o json: %w in %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// Lease is what `lease open -o json` prints, as far as tests need it.
type Lease struct {
	ID        string `json:"id"`
	Tenant    string `json:"tenant"`
	SizeBytes int64  `json:"sizeBytes"`
	State     string `json:"state"`
	Result    string `json:"result"`
	Drive     string `json:"drive"`
	Exports   []struct {
		Kind   string `json:"kind"`
		URI    string `json:"uri"`
		Socket string `json:"socket"`
	} `json:"exports"`
}

// URI is the lease's NBD export.
func (l Lease) URI() string { return l.Exports[0].URI }

// Socket is the path of its socket.
func (l Lease) Socket() string { return l.Exports[0].Socket }

// Open opens a lease.
func (d *Daemon) Open(args ...string) (l Lease, err error) {
	err = d.JSON(&l, append([]string{"lease", "open"}, args...)...)
	if err == nil && len(l.Exports) == 0 {
		err = fmt.Errorf("lease %s has no exports", l.ID)
	}
	return l, err
}

// PID is the keeper's process id.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Child returns the process id of "engine" or "control".
func (d *Daemon) Child(name string) (int, error) {
	pids, err := d.Children(name)
	if err == nil && len(pids) == 0 {
		err = fmt.Errorf("the keeper (pid %d) has no child %q", d.PID(), name)
	}
	if err != nil {
		return 0, err
	}
	return pids[len(pids)-1], nil
}

// Children returns the process ids of all children of that name, dead ones that
// the kernel holds included where it still tells their name.
func (d *Daemon) Children(name string) (pids []int, err error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", d.PID()))
	if err != nil {
		return nil, err
	}
	for _, t := range tasks { // a child belongs to the thread that made it
		b, _ := os.ReadFile(t) //nolint:errcheck // the thread has ended
		for _, field := range strings.Fields(string(b)) {
			cmdline, _ := os.ReadFile("/proc/" + field + "/cmdline") //nolint:errcheck // the child has ended
			if words := strings.Split(string(cmdline), "\x00"); len(words) > 1 && words[1] == name {
				pid, err := strconv.Atoi(field)
				if err != nil {
					return nil, err
				}
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

// Signal sends sig to the keeper.
func (d *Daemon) Signal(sig syscall.Signal) error { return syscall.Kill(d.PID(), sig) }

// Done is closed when the keeper has ended.
func (d *Daemon) Done() <-chan struct{} { return d.done }

// Stop erases what is open and ends the daemon.
func (d *Daemon) Stop() error {
	if _, err := d.Run("stop", "--erase"); err != nil {
		return err
	}
	select {
	case <-d.done:
		return d.err
	case <-time.After(startTimeout):
		return fmt.Errorf("vacate (pid %d) does not end:\n%s", d.PID(), d.Log())
	}
}

// Kill ends the keeper with SIGKILL and waits for it.
func (d *Daemon) Kill() {
	d.cmd.Process.Kill() //nolint:errcheck // it may have ended already
	<-d.done
}

// Log is what the daemon has written so far.
func (d *Daemon) Log() string { return d.log.String() }

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
