package main

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
	"strings"
	"sync"
	"time"

	"vacate/test/vm/wire"
)

const (
	vacate = "/bin/vacate"
	runDir = "/run/vacate"

	startTimeout = 40 * time.Second
	callTimeout  = 60 * time.Second
)

// A daemon is `vacate serve`, as root and with the folders of its own.
type daemon struct {
	cmd  *exec.Cmd
	log  logBuffer
	done chan struct{} // closed when it has ended
	err  error         // how; set before done is closed
}

// startDaemon starts it.
func startDaemon(s wire.Serve) (*daemon, error) {
	d := &daemon{done: make(chan struct{})}
	d.cmd = exec.Command(vacate, "serve", "--state-dir", s.StateDir, "--run-dir", runDir)
	d.cmd.Env = append(os.Environ(), s.Env...)
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		d.err = d.cmd.Wait()
		close(d.done)
	}()
	return d, nil
}

// waitReady waits until it is ready.
func (d *daemon) waitReady() error {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var nd net.Dialer
			return nd.DialContext(ctx, "unix", runDir+"/admin.sock")
		},
	}}
	for deadline := time.Now().Add(startTimeout); ; {
		resp, err := client.Get("http://vacate/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(resp.Status)
		}
		select {
		case <-d.done:
			return fmt.Errorf("the daemon ended before it was ready: %w", d.err)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the daemon is not ready: %w", err)
		}
	}
}

// run runs a command line of vacate.
func (d *daemon) run(args ...string) (wire.Ran, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, vacate, args...)
	cmd.Env = append(os.Environ(), "VACATE_ADDR="+runDir+"/vacate.sock", "NO_COLOR=1")
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	ran := wire.Ran{Code: cmd.ProcessState.ExitCode(), Stdout: out.String(), Stderr: errOut.String()}
	var exit *exec.ExitError
	if errors.As(err, &exit) && ctx.Err() == nil {
		err = nil // the code tells
	}
	return ran, err
}

// json runs a command line that must succeed and decodes what it prints.
func (d *daemon) json(v any, args ...string) error {
	ran, err := d.run(append(args, "-o", "json")...)
	if err == nil && ran.Code != 0 {
		err = fmt.Errorf("exit code %d: %s", ran.Code, ran.Stderr)
	}
	if err == nil {
		err = json.Unmarshal([]byte(ran.Stdout), v)
	}
	if err != nil {
		return fmt.Errorf("vacate %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// logBuffer holds what the daemon has written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// tail returns the last lines.
func (l *logBuffer) tail(lines int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := strings.SplitAfter(l.b.String(), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "")
}
