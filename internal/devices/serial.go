package devices

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"
)

// patience is how long one command may take before this process gives up: the kernel
// then gives up the command too, and the next process begins anew.
const patience = 30 * time.Second

// A serial does commands of the kernel, one after another, on a thread of its own.
// One that takes longer than patience is fatal.
type serial struct {
	jobs  chan job
	quit  chan struct{}
	done  chan struct{}     // closed when the goroutine has ended
	fatal func(what string) // does not return, but in tests
}

type job struct {
	what string
	run  func() error
	err  chan error // capacity 1
}

var errStopped = errors.New("the process that makes devices is ending")

// newSerial starts one. Its end is stop.
func newSerial(fatal func(what string)) *serial {
	s := &serial{jobs: make(chan job), quit: make(chan struct{}), done: make(chan struct{}), fatal: fatal}
	go s.loop()
	return s
}

func (s *serial) loop() {
	defer close(s.done)
	runtime.LockOSThread() // what a ring has in flight is its thread's; never unlocked: the thread ends
	for {
		select {
		case <-s.quit:
			return
		case j := <-s.jobs:
			watch := time.AfterFunc(patience, func() { s.fatal(j.what) })
			err := j.run()
			watch.Stop()
			j.err <- err
		}
	}
}

// do has run done, and waits for it. ctx is for the wait before it: what was begun is
// waited for.
func (s *serial) do(ctx context.Context, what string, run func() error) error {
	if err := ctx.Err(); err != nil { // whoever asked is gone, and the next may have asked already
		return fmt.Errorf("%s: %w", what, err)
	}
	j := job{what: what, run: run, err: make(chan error, 1)}
	select {
	case s.jobs <- j:
		return <-j.err
	case <-s.done:
		return errStopped
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", what, ctx.Err())
	}
}

// stop ends it, once what goes on is done.
func (s *serial) stop() {
	close(s.quit)
	<-s.done
}
