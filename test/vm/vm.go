// Package vm runs a virtual machine with a real kernel: QEMU under software
// emulation, so that it runs wherever the tests run. What is in it is test/vm/init.
package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"vacate/test/vm/wire"
)

// A VM is a machine that runs. Its methods may be called from any goroutine.
type VM struct {
	cfg     Config
	cmd     *exec.Cmd
	output  strings.Builder // of QEMU itself; to be read after done
	conn    *wire.Conn
	link    net.Conn
	up      chan wire.Up
	done    chan struct{} // closed when QEMU has ended and its last event was handled
	err     error         // how QEMU ended; set before done is closed
	started time.Time

	mu      sync.Mutex
	lastID  int
	waiting map[int]chan wire.Message
}

// bootTimeout is how long a machine may take to start.
const bootTimeout = 60 * time.Second

// Boot starts a machine and waits until its init program is up.
func Boot(ctx context.Context, cfg Config) (*VM, wire.Up, error) {
	v := &VM{cfg: cfg, up: make(chan wire.Up, 1), done: make(chan struct{}), waiting: map[int]chan wire.Message{}}
	if err := v.start(); err != nil {
		return nil, wire.Up{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	select {
	case up := <-v.up:
		return v, up, nil
	case <-v.done:
		return nil, wire.Up{}, fmt.Errorf("the machine ended while it started: %w", v.Death())
	case <-ctx.Done():
		v.Kill()
		return nil, wire.Up{}, fmt.Errorf("waiting for the machine to start: %w: %w", context.Cause(ctx), v.Death())
	}
}

func (v *VM) start() error {
	for _, old := range []string{v.cfg.console(), v.cfg.link(), v.cfg.monitor()} {
		if err := os.Remove(old); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: v.cfg.link(), Net: "unix"})
	if err != nil {
		return err
	}
	defer l.Close()
	v.cmd = exec.Command(qemu, v.cfg.args(v.cfg.console(), v.cfg.link(), v.cfg.monitor())...)
	v.cmd.Stdout, v.cmd.Stderr = &v.output, &v.output
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	v.started = time.Now()
	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		// The kernel sends Pdeathsig when the thread that started the child ends.
		runtime.LockOSThread()
		err := v.cmd.Start()
		started <- err
		if err == nil {
			ended <- v.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("starting %s: %w", qemu, err)
	}
	if err := l.SetDeadline(time.Now().Add(bootTimeout)); err != nil {
		return err
	}
	link := make(chan net.Conn, 1)
	go func() {
		if conn, err := l.Accept(); err == nil {
			link <- conn
		}
	}()
	select {
	case v.link = <-link:
		v.conn = wire.NewConn(v.link)
		go v.receive(ended)
		return nil
	case err := <-ended:
		return fmt.Errorf("%s: %w\n%s", qemu, err, v.output.String())
	case <-time.After(bootTimeout):
		return errors.Join(fmt.Errorf("%s does not connect to its serial port", qemu), v.cmd.Process.Kill())
	}
}

// receive handles what the guest says, until QEMU is gone.
func (v *VM) receive(ended <-chan error) {
	var broken error
	for broken == nil {
		var m wire.Message
		if broken = v.conn.Receive(&m); broken != nil {
			break
		}
		if m.Re == 0 && m.Kind == "up" {
			var up wire.Up
			if broken = json.Unmarshal(m.Body, &up); broken != nil {
				continue
			}
			select {
			case v.up <- up:
			default:
				broken = errors.New("the machine has started anew by itself, twice")
			}
			continue
		}
		if m.Re == 0 {
			if v.cfg.Event != nil {
				v.cfg.Event(m)
			}
			continue
		}
		v.mu.Lock()
		ch := v.waiting[m.Re]
		delete(v.waiting, m.Re)
		v.mu.Unlock()
		if ch != nil {
			ch <- m
		}
	}
	v.link.Close()
	if !errors.Is(broken, io.EOF) && !errors.Is(broken, syscall.ECONNRESET) {
		v.Signal(syscall.SIGKILL)
	} else {
		broken = nil
	}
	v.err = errors.Join(broken, <-ended)
	close(v.done)
}

// Call sends a request and decodes the body of its reply into reply, unless that
// is nil.
func (v *VM) Call(ctx context.Context, do string, body, reply any) error {
	ch := make(chan wire.Message, 1)
	v.mu.Lock()
	v.lastID++
	id := v.lastID
	v.waiting[id] = ch
	v.mu.Unlock()
	r := wire.Request{ID: id, Do: do}
	if body != nil {
		r.Body = wire.Body(body)
	}
	if err := v.conn.Send(r); err != nil {
		return fmt.Errorf("asking the machine to %s: %w", do, err)
	}
	select {
	case m := <-ch:
		if m.Err != "" {
			return fmt.Errorf("the machine was asked to %s: %s", do, m.Err)
		}
		if reply == nil {
			return nil
		}
		return json.Unmarshal(m.Body, reply)
	case <-v.done:
		return fmt.Errorf("the machine was asked to %s, and ended: %w", do, v.Death())
	case <-ctx.Done():
		return fmt.Errorf("the machine was asked to %s: %w", do, context.Cause(ctx))
	}
}

// Run runs vacate with a command line. A code other than 0 is not an error here.
func (v *VM) Run(ctx context.Context, args ...string) (ran wire.Ran, err error) {
	err = v.Call(ctx, "run", wire.Run{Args: args}, &ran)
	return ran, err
}

// JSON runs vacate with -o json and decodes what it prints.
func (v *VM) JSON(ctx context.Context, reply any, args ...string) error {
	ran, err := v.Run(ctx, append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	if ran.Code != 0 {
		return fmt.Errorf("vacate %s in the machine: exit code %d: %s", strings.Join(args, " "), ran.Code, ran.Stderr)
	}
	if err := json.Unmarshal([]byte(ran.Stdout), reply); err != nil {
		return fmt.Errorf("vacate %s in the machine printed %q: %w", strings.Join(args, " "), ran.Stdout, err)
	}
	return nil
}

// Signal sends a signal to QEMU: SIGSTOP and SIGCONT hold the machine.
func (v *VM) Signal(sig syscall.Signal) { v.cmd.Process.Signal(sig) } //nolint:errcheck // it may have ended

// Kill ends the machine at once, as pulling its plug would, and waits until its
// last event was handled.
func (v *VM) Kill() {
	v.Signal(syscall.SIGKILL)
	<-v.done
}

// Off asks the guest to write what is to be written and to switch the machine off.
func (v *VM) Off(ctx context.Context) error {
	if err := v.Call(ctx, "off", nil, nil); err != nil {
		return err
	}
	select {
	case <-v.done:
		return v.err
	case <-ctx.Done():
		return fmt.Errorf("the machine was asked to switch itself off: %w", context.Cause(ctx))
	}
}

// Done is closed when the machine has ended and its last event was handled.
func (v *VM) Done() <-chan struct{} { return v.done }

// Age is the time since the machine was started.
func (v *VM) Age() time.Duration { return time.Since(v.started) }

// Death says how the machine ended, with the last lines of its console.
func (v *VM) Death() error {
	<-v.done
	how := v.err
	if how == nil {
		how = errors.New("it was switched off")
	}
	return fmt.Errorf("%w\n%s%s", how, v.output.String(), v.Console(40))
}

// Console returns the last lines of the machine's console.
func (v *VM) Console(lines int) string {
	b, err := os.ReadFile(v.cfg.console())
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\r\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Crashed reports whether the guest's kernel has failed: under software
// emulation that happens, and says nothing about what runs on it.
func (v *VM) Crashed() bool {
	b, _ := os.ReadFile(v.cfg.console()) //nolint:errcheck // without a log nothing is known
	text := string(b)
	return strings.Contains(text, "Kernel panic") || strings.Contains(text, "Oops:") || strings.Contains(text, "kernel BUG")
}
