package keeper

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"vacate/internal/sys"
)

// endTimeout is how long a child has to end on its own, and then to be reaped
// after SIGKILL. A process that the kernel holds (a hung device) is left behind.
const endTimeout = 5 * time.Second

// heldAfter is how long a child that has ended has to be reaped: far longer than
// the kernel takes, unless a drive hangs.
const heldAfter = 200 * time.Millisecond

// A child is a process that was started. Its fields but code and done belong to
// the keeper's goroutine.
type child struct {
	name  string
	cmd   *exec.Cmd
	death *os.File      // its death pipe's end for writing
	since time.Time     // when it was started
	done  chan struct{} // closed when it was reaped
	code  int           // its exit code, -1 for a signal; after done
}

// start runs this binary as name. Its descriptors from 3 are before, its death
// pipe, and after.
func (k *keeper) start(name string, args, env []string, before, after []*os.File) (*child, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	defer r.Close() //nolint:errcheck // the child has its own
	files := append(append(before[:len(before):len(before)], r), after...)
	c := &child{name: name, death: w, since: time.Now(), done: make(chan struct{})}
	c.cmd = &exec.Cmd{
		Path:       k.cfg.Self[0],
		Args:       append(append(k.cfg.Self[:len(k.cfg.Self):len(k.cfg.Self)], name), args...),
		Env:        env,
		Stderr:     os.Stderr,
		ExtraFiles: files,
		// Its own process group: a Ctrl-C is for the keeper, which asks.
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}
	if c.cmd.Env == nil {
		c.cmd.Env = []string{} // nil would be the keeper's own
	}
	if name == nameControl {
		c.cmd.Stdout = os.Stdout
	}
	if err := c.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("starting %s: %w", name, err), w.Close())
	}
	go func() {
		c.cmd.Wait() //nolint:errcheck // the code says it all
		c.code = c.cmd.ProcessState.ExitCode()
		close(c.done)
	}()
	k.log.Info("started", "child", name, "pid", c.cmd.Process.Pid, "generation", k.header.Generation)
	return c, nil
}

// end makes c end, first by its death pipe, then by SIGKILL, and waits until it
// was reaped, but not for ever: false means that the kernel still holds it. No
// instruction of its program can run any more in either case.
func (c *child) end() bool {
	c.death.Close() //nolint:errcheck // nothing was written to it
	for range 2 {
		for start := time.Now(); time.Since(start) < endTimeout; {
			if c.wait(heldAfter) {
				return true
			}
			if sys.Dying(c.cmd.Process.Pid) {
				return false
			}
		}
		c.cmd.Process.Kill() //nolint:errcheck // it has ended meanwhile: fine
	}
	return false
}

// held reports whether c has ended, but cannot be reaped: the kernel holds a
// thread of it, which waits for a drive that hangs.
func (c *child) held() bool {
	return sys.Dying(c.cmd.Process.Pid) && !c.wait(heldAfter)
}

func (c *child) wait(d time.Duration) bool {
	select {
	case <-c.done:
		return true
	case <-time.After(d):
		return false
	}
}

// cannotStart reports whether c, which is done, asks not to be started again.
func (c *child) cannotStart() bool { return c.code == exitRefused }

// how says how c ended, for the log.
func (c *child) how() error { return fmt.Errorf("%s: %v", c.name, c.cmd.ProcessState) }

// A backoff is how long to wait before the next start: longer each time, from
// minBackoff to maxBackoff, until a child has lived for a while.
type backoff struct{ d time.Duration }

const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 5 * time.Second
	longLife   = 10 * time.Second
)

// lived notes how long the last child lived.
func (b *backoff) lived(d time.Duration) {
	if d >= longLife {
		b.d = 0
	} else {
		b.d = min(max(2*b.d, minBackoff), maxBackoff)
	}
}

func (b *backoff) next() time.Duration { return max(b.d, minBackoff) }

func (b *backoff) timer() <-chan time.Time { return time.After(b.next()) }
