package blktest_test

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/blk/blktest"
	"vacate/internal/sim"
)

// bugs are devices that break one rule each, the subtest that must find it (all
// of them for the device without a bug), and what it says.
var bugs = map[string]struct {
	in    string
	finds string
	wrap  func(r *blk.Request, below func(*blk.Request))
}{
	"none":             {"", "", func(r *blk.Request, below func(*blk.Request)) { below(r) }},
	"recurses":         {"SubmitFromDone", "stack grows", func(r *blk.Request, below func(*blk.Request)) { below(r) }},
	"completes twice":  {"Batch", "B1: ", func(r *blk.Request, below func(*blk.Request)) { below(r); r.Finish(r.Len, 0) }},
	"short is success": {"Batch", "B2: ", func(r *blk.Request, _ func(*blk.Request)) { r.N, r.Errno = r.Len/2, 0; r.Done.Complete(r) }},
	"writes elsewhere": {"Integrity", "differs from what was written", func(r *blk.Request, below func(*blk.Request)) {
		if r.Op == blk.OpWrite && r.Len > 32<<10 && r.Off > 0 {
			child := blk.Request{Op: r.Op, Off: r.Off - blk.BlockSize, Len: r.Len, Buf: r.Buf, Done: ignore{}}
			below(&child)
			r.Finish(child.N, child.Errno)
			return
		}
		below(r)
	}},
	"changes requests": {"Batch", "came back changed", func(r *blk.Request, below func(*blk.Request)) { r.Flags ^= blk.NoHole; below(r) }},
	"no bounds": {"OutOfRange", "succeeded", func(r *blk.Request, below func(*blk.Request)) {
		if !r.InRange(4 << 20) {
			r.Finish(r.Len, 0)
			return
		}
		below(r)
	}},
	"allocates": {"Allocations", "B6: ", func(r *blk.Request, below func(*blk.Request)) { sink = make([]byte, 64); below(r) }},
	"refuses FUA": {"Flush", "not supported", func(r *blk.Request, below func(*blk.Request)) {
		if r.Flags != 0 {
			r.Finish(0, syscall.EOPNOTSUPP)
			return
		}
		below(r)
	}},
	"hides faults": {"Foreign", "want bad address", func(r *blk.Request, below func(*blk.Request)) {
		if r.Flags&blk.Foreign == 0 {
			below(r)
			return
		}
		child := *r
		child.Done = ignore{}
		below(&child)
		r.Finish(r.Len, 0)
	}},
	"waits in silence":  {"Pending", "names nothing to wait for", nil},
	"waits for nothing": {"Pending", "says that it waits for something", nil},
}

// restless is a simulated drive whose queues complete nothing that is not waited
// for, and say something untrue about what they wait for.
type restless struct {
	*sim.Drive
	says blk.Wait
}

type restlessQueue struct {
	blk.Queue
	says blk.Wait
}

func (d restless) NewQueue(depth int) (blk.Queue, error) {
	q, err := d.Drive.NewQueue(depth)
	return restlessQueue{q, d.says}, err
}

func (q restlessQueue) Pending(w *blk.Wait) { *w = q.says }

func (q restlessQueue) Reap(wait bool) int {
	if !wait {
		return 0
	}
	return q.Queue.Reap(true)
}

var sink []byte

type ignore struct{}

func (ignore) Complete(*blk.Request) {}

// broken puts a bug before each request of a simulated drive.
type broken struct {
	*sim.Drive
	pump bool
	wrap func(r *blk.Request, below func(*blk.Request))
}

type brokenQueue struct {
	blk.Queue
	wrap  func(r *blk.Request, below func(*blk.Request))
	below func(*blk.Request)

	pump    bool
	waiting blk.FIFO
	running bool
}

func (b broken) NewQueue(depth int) (blk.Queue, error) {
	q, err := b.Drive.NewQueue(depth)
	if err != nil {
		return nil, err
	}
	one := make([]*blk.Request, 1)
	below := func(r *blk.Request) {
		one[0] = r
		q.Submit(one)
		q.Reap(true)
	}
	return &brokenQueue{Queue: q, wrap: b.wrap, below: below, pump: b.pump, waiting: blk.NewFIFO(depth)}, nil
}

// Submit carries the batch out on the spot; without a pump, what a completion
// submits is carried out on top of it.
func (q *brokenQueue) Submit(batch []*blk.Request) {
	for _, r := range batch {
		q.waiting.Push(r)
	}
	if q.running && q.pump {
		return
	}
	q.running = true
	for r := q.waiting.Peek(); r != nil; r = q.waiting.Peek() {
		q.waiting.Pop()
		q.wrap(r, q.below)
	}
	q.running = false
}

// TestSuiteFinds is the suite's positive control: each planted bug, in a
// process of its own, fails the run, and the device without a bug does not.
func TestSuiteFinds(t *testing.T) {
	const env = "BLKTEST_BUG"
	if bug := os.Getenv(env); bug != "" {
		blktest.Run(t, func(*testing.T) blk.Device {
			drive := sim.New(sim.Config{Size: 4 << 20})
			if wrap := bugs[bug].wrap; wrap != nil {
				return broken{drive, bug != "recurses", wrap}
			}
			return restless{drive, blk.Wait{Blind: bug == "waits for nothing"}}
		})
		return
	}
	for bug, tt := range bugs {
		t.Run(bug, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestSuiteFinds$/^"+tt.in, "-test.timeout=60s")
			cmd.Env = append(os.Environ(), env+"="+bug)
			out, err := cmd.CombinedOutput()
			if failed := err != nil; failed != (tt.finds != "") {
				t.Fatalf("failed: %v, want a failure: %v\n%s", failed, tt.finds != "", tail(out))
			}
			if tt.finds != "" && !strings.Contains(string(out), tt.finds) {
				t.Errorf("the failure does not name %q:\n%s", tt.finds, tail(out))
			}
		})
	}
}

func tail(b []byte) []byte { return b[max(0, len(b)-2000):] }
