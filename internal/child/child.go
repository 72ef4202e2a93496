// Package child is a process that the keeper has started, with what ties them
// together: a pipe whose end is the child's end (sys.ExitOnEOF), a socket for
// package volatile's messages, and a wait that the kernel may make long.
package child

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"vacate/internal/handoff"
	"vacate/internal/sys"
)

// heldAfter is how long a child that has ended has to be reaped: far longer than
// the kernel takes, unless a drive hangs.
const heldAfter = 200 * time.Millisecond

// reapedAfter is the same where nothing waits meanwhile: taking the memory of a large
// process apart may take a busy machine longer than heldAfter.
const reapedAfter = 5 * time.Second

// ErrHeld says that the kernel still holds a child that was killed.
var ErrHeld = errors.New("it was killed and has not ended")

// lastWords is how long a child may take to end after its link.
const lastWords = 500 * time.Millisecond

// EndTimeout is how long a child has to end on its own, and then to be reaped
// after SIGKILL.
const EndTimeout = 5 * time.Second

// A Child may be used by one goroutine, but for SetUp and Up. The methods that
// say so may be called on nil: no child.
type Child struct {
	Name   string
	Since  time.Time // when it was started, or adopted
	Wanted bool      // for the caller: its end is

	proc  *os.Process
	death *os.File // its pipe's end for writing
	link  link
	cut   bool // CutOff was called
	up    atomic.Bool
	done  chan struct{} // closed when it was reaped
	code  int           // after done
	how   error         // after done
}

// Command makes a program's command line. Descriptors from 3 are files, and
// behind them the program itself, by which it is started: what lies at its path
// by now does not matter.
func Command(program *os.File, argv, env []string, files ...*os.File) *exec.Cmd {
	return &exec.Cmd{
		Path:       sys.ProgramPath(3 + len(files)),
		Args:       argv,
		Env:        append([]string{}, env...), // nil would be the parent's own
		Stderr:     os.Stderr,
		ExtraFiles: append(slices.Clip(files), program),
		// Its own process group: a Ctrl-C is for the parent, which asks.
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}
}

// A Program is what to start, and with which arguments, the first its name.
type Program struct {
	File      *os.File
	Args, Env []string
	// Rights are the only capabilities that it may ever have; nil: all that this
	// process has.
	Rights []sys.Capability
}

// Start starts p as name. Of files, the first that is nil becomes its link, and
// the second its death pipe.
func Start(name string, s Server, p Program, files ...*os.File) (*Child, error) {
	link, theirs, err := sys.PacketPair()
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	defer theirs.Close() //nolint:errcheck // the child has its own
	r, w, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting %s: %w", name, err), link.Close())
	}
	defer r.Close() //nolint:errcheck // likewise
	for _, f := range []*os.File{theirs, r} {
		files[slices.Index(files, nil)] = f
	}
	cmd := Command(p.File, p.Args, p.Env, files...)
	cmd.Stdout = os.Stdout
	start := cmd.Start
	if p.Rights != nil {
		start = func() error { return sys.Bounded(p.Rights, cmd.Start) }
	}
	if err := start(); err != nil {
		return nil, errors.Join(fmt.Errorf("starting %s: %w", name, err), link.Close(), w.Close())
	}
	return watch(name, s, cmd.Process, link, w)
}

// Adopt makes a Child of a process that an earlier program of this process has
// started, as it has described it. It was up.
func Adopt(name string, s Server, from handoff.Child) (*Child, error) {
	proc, err := os.FindProcess(from.PID)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("taking over %s: %w", name, err), from.Link.Close(), from.Death.Close())
	}
	c, err := watch(name, s, proc, from.Link.File, from.Death.File)
	if err == nil {
		c.SetUp()
	}
	return c, err
}

func watch(name string, s Server, proc *os.Process, link, death *os.File) (*Child, error) {
	c := &Child{Name: name, Since: time.Now(), proc: proc, death: death, done: make(chan struct{})}
	if err := c.serve(link, s); err != nil {
		return nil, errors.Join(err, death.Close()) // by which it ends
	}
	go func() {
		state, err := proc.Wait()
		// Without a state, an earlier program of this process had reaped it.
		c.code, c.how = -1, fmt.Errorf("%s: %w", name, err)
		if err == nil {
			c.code, c.how = state.ExitCode(), fmt.Errorf("%s: %v", name, state)
		}
		close(c.done)
	}()
	return c, nil
}

// PID is the process's number.
func (c *Child) PID() int { return c.proc.Pid }

// Describe writes down what Adopt needs. All of it stays c's.
func (c *Child) Describe() handoff.Child {
	return handoff.Child{PID: c.PID(), Link: handoff.At(c.link.conn.FD()), Death: handoff.Of(c.death)}
}

// SetUp notes that the child has taken over.
func (c *Child) SetUp() { c.up.Store(true) }

// Up reports whether it has. c may be nil.
func (c *Child) Up() bool { return c != nil && c.up.Load() }

// Ended is closed when the child was reaped. c may be nil.
func (c *Child) Ended() <-chan struct{} {
	if c == nil {
		return nil
	}
	return c.done
}

// How says, after Ended, how it ended, and whether another try would not help:
// its exit code is then refused.
func (c *Child) How(refused int) (no bool, how error) { return c.code == refused, c.how }

// LinkDown is closed when the link is down, until CutOff. c may be nil.
func (c *Child) LinkDown() <-chan struct{} {
	if c == nil || c.cut {
		return nil
	}
	return c.link.done
}

// CutOff ends a child whose link is down: it can ask for nothing any more. Mostly
// it is ending, and gets a moment to say why and with which code.
func (c *Child) CutOff() {
	c.cut = true
	time.AfterFunc(lastWords, func() { c.Signal(syscall.SIGKILL) })
}

// Signal sends a signal. A child that has ended meanwhile is left alone.
func (c *Child) Signal(s syscall.Signal) { c.proc.Signal(s) } //nolint:errcheck // see above

// Dismiss ends the child at once, by its pipe.
func (c *Child) Dismiss() {
	c.Wanted = true
	c.death.Close() //nolint:errcheck // nothing was written; it may be closed
}

// End ends the child, by its pipe or by SIGKILL, and waits until it was reaped,
// but not for ever. The error says that the kernel still holds it, by a drive
// that hangs; no instruction of its program can run any more in that case either.
func (c *Child) End() error {
	c.Dismiss()
	for start := time.Now(); time.Since(start) < 2*EndTimeout && !sys.Dying(c.PID()); {
		if c.wait(heldAfter) {
			return c.Free()
		}
		if time.Since(start) > EndTimeout {
			c.Signal(syscall.SIGKILL)
		}
	}
	if c.wait(heldAfter) {
		return c.Free()
	}
	return errors.Join(c.Free(), fmt.Errorf("the kernel still holds %s, process %d: %w", c.Name, c.PID(), ErrHeld))
}

// Reaped waits for longer where [Child.End] ended with err, and returns what is left
// of it. c may be nil.
func (c *Child) Reaped(err error) error {
	if errors.Is(err, ErrHeld) && c.wait(reapedAfter) {
		return nil
	}
	return err
}

// Held reports whether the child has ended, but cannot be reaped: the kernel
// holds a thread of it, which waits for a drive that hangs. c may be nil.
func (c *Child) Held() bool {
	return c != nil && sys.Dying(c.PID()) && !c.wait(heldAfter)
}

func (c *Child) wait(d time.Duration) bool {
	select {
	case <-c.done:
		return true
	case <-time.After(d):
		return false
	}
}

// Free gives back what there is of a child that has ended, once all that it had
// asked for is dealt with.
func (c *Child) Free() error {
	c.death.Close() //nolint:errcheck // it may be closed
	return c.link.close()
}
