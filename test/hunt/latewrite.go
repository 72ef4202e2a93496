package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"vacate/internal/drive"
	"vacate/internal/plant"
	"vacate/test/slow"
)

// The late-write hunt looks for writes of an engine that was killed which land
// after those of its successor (law L1). A kernel carries out what it has
// accepted, however its process ended: the fence is held until then, and a
// successor that did not wait for it would be overwritten.
//
//  1. Through the drive: a process keeps random writes of its generation in
//     flight on the same blocks, and is killed. The next takes the fence, writes
//     its own to each block, and reads all of them for a while (latewriter.go).
//  2. Through the daemon: the engine is killed below leases that are written, of
//     which some close, and others get their extents (latelease.go).
//
// A device that drops or has ended every write by the time its process is reaped
// would let any fence pass. So the hunt counts how often the fence was asked for
// and refused although the process was reaped, and fails if it never was.

type lateHunt struct {
	options
	device string
	area   int64
	depth  int
	verify time.Duration
	daemon int

	ctx     context.Context // ends with a signal: devices must be taken away
	path    string          // of the drive
	slow    *slow.File      // what it is, or nil
	bin     string          // of the writers
	waits   []time.Duration
	held    int   // rounds in which the fence was refused at first
	pending []int // writes that had not landed when their process was reaped
}

func lateWrite(args []string) (err error) {
	if spec := os.Getenv(writerEnv); spec != "" {
		return writeLate(spec)
	}
	o := options{n: 1000, size: 64 << 20}
	h := &lateHunt{}
	if err := parse("late-write", args, &o, func(f *flag.FlagSet) {
		f.StringVar(&h.device, "device", "slow", "what the drive is: slow (a file whose writes take random times), loop (both need root), or file")
		f.Int64Var(&h.area, "area", 8<<20, "bytes that are written over and over")
		f.IntVar(&h.depth, "depth", 64, "writes in flight")
		f.DurationVar(&h.verify, "verify", 60*time.Millisecond, "how long a successor looks for late writes")
		f.IntVar(&h.daemon, "daemon", -1, "rounds through the daemon (default: a fifth of -n)")
	}); err != nil {
		return err
	}
	h.options = o
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	h.ctx = ctx
	if h.daemon < 0 {
		h.daemon = o.n / 5
	}
	if h.dir == "" {
		if h.dir, err = os.MkdirTemp("", "vh"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(h.dir)) }()
	}
	return verdict(h.planted, h.run())
}

func (h *lateHunt) run() (err error) {
	if h.n > 0 {
		undo, err := h.prepare()
		if err == nil {
			err = h.throughDrive()
		}
		if err = errors.Join(err, undo()); err != nil {
			return err
		}
		if h.held == 0 && h.planted == "" {
			return fmt.Errorf("on a %s %w", h.device, errNothingHeld)
		}
	}
	if h.daemon > 0 {
		held, err := h.throughDaemon()
		if err != nil {
			return err
		}
		if held == 0 && h.planted == "" {
			return fmt.Errorf("through the daemon %w", errNothingHeld)
		}
	}
	return nil
}

// errNothingHeld fails a hunt that could not have found anything.
var errNothingHeld = errors.New("the fence was never waited for: no write outlived its process, so this hunt can find nothing; choose another -device, or more -depth")

// prepare makes the drive and finds the program of the writers.
func (h *lateHunt) prepare() (undo func() error, err error) {
	undo = func() error { return nil }
	if h.bin, err = os.Executable(); err != nil {
		return undo, err
	}
	if h.planted != "" {
		h.bin = filepath.Join(h.dir, "hunt-planted")
		if out, err := exec.Command("go", "build", "-tags", "planted", "-o", h.bin, "vacate/test/hunt").CombinedOutput(); err != nil {
			return undo, fmt.Errorf("building the writers: %w\n%s", err, out)
		}
	}
	if undo, err = h.makeDevice(); err != nil {
		return undo, err
	}
	_, err = drive.Enroll(h.path, drive.EnrollOptions{Node: lateIDs.node, UUID: lateIDs.drive, Epoch: 1})
	return undo, err
}

// A lateChild is a writer, seen from the hunt.
type lateChild struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	errs strings.Builder
}

func (h *lateHunt) startChild(gen uint64) (*lateChild, error) {
	spec, err := json.Marshal(orders{Path: h.path, Gen: gen, Seed: h.seed, Bytes: h.area, Depth: h.depth, Verify: h.verify})
	if err != nil {
		return nil, err
	}
	c := &lateChild{cmd: exec.Command(h.bin, "late-write")}
	c.cmd.Env = append(os.Environ(), writerEnv+"="+string(spec), plant.Variable+"="+h.planted)
	c.cmd.Stderr = &c.errs
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	return c, c.expect("ready", nil)
}

// expect reads a line that begins with word, and the numbers after it. A child
// that ends instead has found something.
func (c *lateChild) expect(word string, numbers []any) error {
	line, err := c.out.ReadString('\n')
	if err != nil {
		_ = c.cmd.Wait() // what it said counts
		return fmt.Errorf("before %q a writer said: %s", word, strings.TrimSpace(c.errs.String()))
	}
	if !strings.HasPrefix(line, word) {
		return fmt.Errorf("a writer said %q instead of %q", line, word)
	}
	_, err = fmt.Sscan(strings.TrimPrefix(line, word), numbers...)
	if len(numbers) == 0 {
		err = nil
	}
	return err
}

// kill ends a writer, and returns when it is reaped.
func (c *lateChild) kill() {
	_ = c.cmd.Process.Kill()    // it may have ended
	_, _ = c.cmd.Process.Wait() // not cmd.Wait: what it wrote last may be read later
}

// throughDrive kills one writer after the other.
func (h *lateHunt) throughDrive() error {
	rng := rand.New(rand.NewPCG(h.seed, 0))
	round := 0
	defer progress(h.n, func() int { return round })()
	c, err := h.startChild(1)
	if err != nil {
		return err
	}
	if err := h.takeOver(c); err != nil {
		c.kill()
		return err
	}
	h.waits, h.held = nil, 0 // nobody was killed before the first
	for round < h.n {
		round++
		next, err := h.startChild(uint64(round) + 1)
		if err != nil {
			c.kill()
			return err
		}
		time.Sleep(time.Duration(rng.IntN(15_000)) * time.Microsecond)
		c.kill()
		if h.slow != nil {
			h.pending = append(h.pending, h.slow.Pending())
		}
		c = next
		err = h.takeOver(c)
		if err == nil {
			err = h.ctx.Err()
		}
		if err != nil {
			c.kill()
			return fmt.Errorf("round %d: %w", round, err)
		}
	}
	c.kill()
	fmt.Printf("  through the drive (%s): %d kills, in %d the fence was held by writes of the dead\n", h.device, round, h.held)
	fmt.Printf("  from the reaping until the fence was held: %s\n", spread(h.waits))
	if h.slow != nil {
		fmt.Printf("  writes on their way to the drive at the reaping: %s\n", counts(h.pending))
	}
	return nil
}

// takeOver lets a writer take the place of one that was reaped.
func (h *lateHunt) takeOver(c *lateChild) error {
	if _, err := io.WriteString(c.in, "\n"); err != nil {
		return err
	}
	var refused int
	var ns int64
	if err := c.expect("fenced", []any{&refused, &ns}); err != nil {
		return err
	}
	h.waits = append(h.waits, time.Duration(ns))
	if refused > 0 {
		h.held++
	}
	for _, word := range []string{"still", "written", "verified", "deep"} {
		if err := c.expect(word, nil); err != nil {
			return err
		}
	}
	return nil
}

// counts prints the spread of numbers.
func counts(n []int) string {
	if len(n) == 0 {
		return "none"
	}
	n = slices.Sorted(slices.Values(n))
	at := func(q float64) int { return n[int(q*float64(len(n)-1))] }
	return fmt.Sprintf("p10 %d, p50 %d, p90 %d, max %d (%d)", at(0.1), at(0.5), at(0.9), at(1), len(n))
}
