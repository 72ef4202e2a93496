package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"vacate/test/vm/wire"
)

// A background is a program that runs until it is stopped.
type background struct {
	cmd      *exec.Cmd
	out, err logBuffer
	done     chan struct{} // closed when it has ended
}

// start starts a program, and waits until the file that it makes is there.
func (a *agent) start(s wire.Start) error {
	b := &background{cmd: exec.Command(s.Args[0], s.Args[1:]...), done: make(chan struct{})}
	b.cmd.Stdout, b.cmd.Stderr = &b.out, &b.err
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.programs[s.File] != nil {
		return fmt.Errorf("the program that makes %s runs already", s.File)
	}
	if err := b.cmd.Start(); err != nil {
		return err
	}
	go func() {
		b.cmd.Wait() //nolint:errcheck // its code and what it says tell
		close(b.done)
	}()
	for deadline := time.Now().Add(startTimeout); ; {
		if _, err := os.Stat(s.File); err == nil {
			a.programs[s.File] = b
			return nil
		}
		select {
		case <-b.done:
			return fmt.Errorf("%s ended with code %d: %s", s.Args[0], b.cmd.ProcessState.ExitCode(), b.err.tail(20))
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("%s does not make %s: %s", s.Args[0], s.File, b.err.tail(20)), b.cmd.Process.Kill())
		}
	}
}

// stop ends a program.
func (a *agent) stop(s wire.Stop) (ran wire.Ran, err error) {
	a.mu.Lock()
	b := a.programs[s.File]
	delete(a.programs, s.File)
	a.mu.Unlock()
	if b == nil {
		return ran, fmt.Errorf("no program was started to make %s", s.File)
	}
	if err := b.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return ran, err
	}
	select {
	case <-b.done:
	case <-time.After(startTimeout):
		return ran, errors.Join(fmt.Errorf("%s does not end: %s", b.cmd.Path, b.err.tail(40)), b.cmd.Process.Kill())
	}
	return wire.Ran{Code: b.cmd.ProcessState.ExitCode(), Stdout: b.out.tail(200), Stderr: b.err.tail(200)}, nil
}
