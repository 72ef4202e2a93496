// Package nodesim simulates what is around a node: an engine with its keeper,
// host and drives, a journal that fails, and sockets without files. Tests of node
// and of what stands above it use it.
//
// A [Faults] counts every call of the three, in one sequence, and strikes one of
// them: lost (it was not done) or done (it was done, but the caller is told
// otherwise). A caller who gets an error knows not which.
package nodesim

import (
	"errors"
	"fmt"
	"sync"
)

// ErrStruck is the error of a call that was struck.
var ErrStruck = errors.New("nodesim: the connection broke")

// A Mode says what happens to a call that is struck.
type Mode int

// The modes.
const (
	Lost Mode = iota // it is not done
	Done             // it is done
)

func (m Mode) String() string { return [...]string{"lost", "done"}[m] }

// Faults counts calls and strikes some. Its zero value strikes none.
type Faults struct {
	mu     sync.Mutex
	calls  []string // names, in order
	at     int      // the call to strike, from 1; 0 for none
	sticky bool     // and all after it, lost
	mode   Mode
}

// Strike strikes call number at, counted from now on, from 1. With sticky all
// later calls are lost as well: the connection does not come back.
func (f *Faults) Strike(at int, mode Mode, sticky bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls, f.at, f.mode, f.sticky = nil, at, mode, sticky
}

// Calls are the names of the calls since Strike.
func (f *Faults) Calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.calls...)
}

// run does a call, or strikes it.
func run[T any](f *Faults, name string, do func() (T, error)) (T, error) {
	f.mu.Lock()
	f.calls = append(f.calls, name)
	n := len(f.calls)
	struck := f.at != 0 && (n == f.at || f.sticky && n > f.at)
	mode := f.mode
	if n != f.at {
		mode = Lost
	}
	f.mu.Unlock()
	if !struck {
		return do()
	}
	var none T
	if mode == Done {
		if v, err := do(); err != nil {
			return v, err // it refused: there is nothing to lie about
		}
	}
	return none, fmt.Errorf("%w: call %d, %s, %s", ErrStruck, n, name, mode)
}

func run0(f *Faults, name string, do func() error) error {
	_, err := run(f, name, func() (struct{}, error) { return struct{}{}, do() })
	return err
}
