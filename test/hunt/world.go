package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/internal/fail"
	"vacate/internal/nbdclient"
	"vacate/internal/plant"
	"vacate/test/daemon"
)

// options are the flags that hunts share.
type options struct {
	n        int
	seed     uint64
	dir      string
	state    string // where the daemon's folder is made; empty: in dir
	planted  string
	size     int64 // of the drive, in bytes
	fallback bool  // keys in an ordinary locked memfd
	verbose  bool
}

// parse reads a hunt's flags and prints how to run it again.
func parse(name string, args []string, o *options, more func(*flag.FlagSet)) error {
	f := flag.NewFlagSet("hunt "+name, flag.ExitOnError)
	f.IntVar(&o.n, "n", o.n, "how many")
	f.Uint64Var(&o.seed, "seed", 0, "seed of all decisions (default: random)")
	f.StringVar(&o.dir, "dir", "", "folder for drive, state and logs (default: a temporary one)")
	f.StringVar(&o.planted, "planted", "", "plant this bug (internal/plant): then the hunt must find it, and fails if not")
	f.Int64Var(&o.size, "drive", o.size, "size of the drive in bytes")
	f.BoolVar(&o.fallback, "fallback", false, "keep the keys in a locked memfd although there is memfd_secret")
	f.BoolVar(&o.verbose, "v", false, "show the daemon's log, at level debug")
	if more != nil {
		more(f)
	}
	if err := f.Parse(args); err != nil {
		return err
	}
	if o.seed == 0 {
		o.seed = rand.Uint64()
	}
	extra := ""
	f.Visit(func(fl *flag.Flag) {
		if fl.Name != "seed" && fl.Name != "n" && fl.Name != "dir" {
			extra += fmt.Sprintf(" -%s=%s", fl.Name, fl.Value)
		}
	})
	fmt.Printf("hunt %s: go run ./test/hunt %s -n %d -seed %d%s\n", name, name, o.n, o.seed, extra)
	return nil
}

// A world is a daemon with one drive, built with fail points, in folders of its
// own.
type world struct {
	options
	start  func() error // starts the daemon, again if it has ended
	d      *daemon.Daemon
	api    *client.Client
	drive  string
	page   []byte // the fail points' file
	points []fail.Point
	ctx    context.Context

	cleanup []func() error
}

// newWorld builds the binary, starts a daemon, and enrols the drive.
func newWorld(o options) (w *world, err error) {
	w = &world{options: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	if w.dir == "" {
		if w.dir, err = os.MkdirTemp("", "vh"); err != nil {
			return w, err
		}
		w.cleanup = append(w.cleanup, func() error { return os.RemoveAll(w.dir) })
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	w.ctx = ctx
	w.cleanup = append(w.cleanup, func() error { stop(); return nil })

	if w.points, err = killPoints(); err != nil {
		return w, err
	}
	tags := []string{"failpoints"}
	level := "info"
	if o.verbose {
		level = "debug"
	}
	env := []string{"VACATE_LOG__LEVEL=" + level}
	if o.planted != "" {
		tags = append(tags, "planted")
		env = append(env, plant.Variable+"="+o.planted)
	}
	bin, err := daemon.Build(w.dir, tags...)
	if err != nil {
		return w, err
	}
	if w.page, err = failPage(filepath.Join(w.dir, "fail")); err != nil {
		return w, err
	}
	env = append(env, "VACATE_FAIL="+filepath.Join(w.dir, "fail"))
	if o.fallback {
		env = append(env, "VACATE_DANGER_ZONE__ENABLED=true", "VACATE_DANGER_ZONE__LOCKED_MEMFD=true")
	}
	drives := filepath.Join(w.dir, "drives")
	if err := os.MkdirAll(drives, 0o700); err != nil {
		return w, err
	}
	w.drive = filepath.Join(drives, "drive")
	if err := os.WriteFile(w.drive, nil, 0o600); err != nil {
		return w, err
	}
	if err := os.Truncate(w.drive, o.size); err != nil {
		return w, err
	}
	folder := filepath.Join(w.dir, "d")
	if w.state != "" {
		if folder, err = os.MkdirTemp(w.state, "vh"); err != nil {
			return w, err
		}
		w.cleanup = append(w.cleanup, func() error { return os.RemoveAll(folder) })
	}
	w.start = func() (err error) {
		w.d, err = daemon.Start(bin, folder, daemon.Options{Env: env, Args: []string{"--drive-dir", drives}})
		return err
	}
	if err := w.start(); err != nil {
		return w, err
	}
	w.cleanup = append(w.cleanup, func() error { w.d.Kill(); return nil })
	w.api = client.Dial(filepath.Join(w.d.Dir, "vacate.sock"))
	w.cleanup = append(w.cleanup, func() error { w.api.Close(); return nil })
	_, err = w.d.Run("drive", "enroll", w.drive)
	return w, err
}

func (w *world) close() error {
	if w.verbose && w.d != nil {
		fmt.Println(w.d.Log())
	}
	var errs []error
	for i := len(w.cleanup) - 1; i >= 0; i-- {
		errs = append(errs, w.cleanup[i]())
	}
	return errors.Join(errs...)
}

// failPage makes the file of package fail, and maps it.
func failPage(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // the mapping stays
	if err := f.Truncate(4096); err != nil {
		return nil, err
	}
	return syscall.Mmap(int(f.Fd()), 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
}

// arm names the point at which the next process ends.
func (w *world) arm(p fail.Point) {
	w.disarm()
	n := copy(w.page[8:], p)
	w.page[8+n] = 0
	atomic32(&w.page[0], 1)
}

// disarm takes the name back, and reports whether a process has come to it.
func (w *world) disarm() (struck bool) {
	struck = !w.armed()
	atomic32(&w.page[0], 0)
	return struck
}

func (w *world) armed() bool { return load32(&w.page[0]) == 1 }

// kill ends a child with SIGKILL. A child that is just being started counts as
// killed: what a kill at that moment does, the next one finds out.
func (w *world) kill(name string) error {
	pid, err := w.d.Child(name)
	if err != nil {
		return nil //nolint:nilerr // none runs at this moment
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}

// retry calls f until it succeeds: a daemon whose processes are killed answers
// some calls with "unavailable". What else goes wrong is a finding.
func (w *world) retry(what string, f func(context.Context) error) error {
	const patience = 60 * time.Second
	for start := time.Now(); ; {
		ctx, cancel := context.WithTimeout(w.ctx, 10*time.Second)
		err := f(ctx)
		cancel()
		var dial *client.DialError
		switch {
		case err == nil:
			return nil
		case w.ctx.Err() != nil:
			return w.ctx.Err()
		case time.Since(start) > patience:
			return fmt.Errorf("%s: not after %v: %w", what, patience, err)
		case errors.As(err, &dial):
		default:
			switch connect.CodeOf(err) {
			case connect.CodeUnavailable, connect.CodeDeadlineExceeded, connect.CodeCanceled, connect.CodeUnknown, connect.CodeInternal:
			default:
				return fmt.Errorf("%s: %w", what, err)
			}
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// open opens a lease. The key makes a second try find the first.
//
// An opening of which nobody was told may have been undone by a restart: then
// the key names a lease that has ended, and another key opens one.
//
// Without exports it is reached over NBD.
func (w *world) open(size int64, logical uint32, key string, exports ...string) (l *vacatev1.Lease, err error) {
	for n := range 5 {
		if l, err = w.openOnce(size, logical, fmt.Sprintf("%s-%d", key, n), exports); err != nil || l.GetState() == vacatev1.LeaseState_LEASE_STATE_OPEN {
			return l, err
		}
		if strings.HasPrefix(l.GetResult(), "lost") {
			break
		}
	}
	return nil, fmt.Errorf("opening with key %s gave lease %s, which is %v: %s %s", key, l.GetId(), l.GetState(), l.GetResult(), l.GetText())
}

func (w *world) openOnce(size int64, logical uint32, key string, exports []string) (l *vacatev1.Lease, err error) {
	queues := uint32(0)
	if slices.Contains(exports, vhostUser) {
		queues = 2
	}
	err = w.retry("opening a lease", func(ctx context.Context) error {
		resp, err := w.api.Leases.Open(ctx, &vacatev1.LeaseServiceOpenRequest{
			SizeBytes: size, LogicalBlock: logical, Drive: w.drive, Tenant: "hunt", IdempotencyKey: key,
			Exports: exports, Queues: queues,
		})
		if err == nil {
			l = resp.GetLease()
		}
		return err
	})
	return l, err
}

// closeLease closes a lease and waits until it has ended.
func (w *world) closeLease(id string) (l *vacatev1.Lease, err error) {
	err = w.retry("closing lease "+id, func(ctx context.Context) error {
		resp, err := w.api.Leases.Close(ctx, &vacatev1.LeaseServiceCloseRequest{Id: id})
		if err == nil {
			l = resp.GetLease()
		}
		return err
	})
	return l, err
}

// dial connects to a lease, and tries again while the engine is away.
func (w *world) dial(l *vacatev1.Lease) (c *nbdclient.Client, err error) {
	const patience = 60 * time.Second
	for start := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		c, err = nbdclient.Dial(l.GetExports()[0].GetUri(), nbdclient.Options{NoBlockSize: true})
		if err == nil || w.ctx.Err() != nil || time.Since(start) > patience {
			return c, err
		}
	}
}

var (
	died = regexp.MustCompile(`error="((?:engine|control): [^"]*)"`)
	// fatal is what no kill causes, whenever it comes.
	fatal = regexp.MustCompile(`level=ERROR msg="(the volatile memory is damaged|no engine can take over|noting a close in the lease table|a lease that was taken over cannot be served).*`)
)

// accidents returns what the daemon has said that it must not: that a process
// ended which nobody killed, or that volatile memory is damaged or lost.
func (w *world) accidents() error {
	log := w.d.Log()
	for _, m := range died.FindAllStringSubmatch(log, -1) {
		if !strings.HasSuffix(m[1], "signal: killed") && !strings.Contains(m[1], "the kernel holds a thread of it") {
			return fmt.Errorf("a process ended by itself: %s", m[1])
		}
	}
	if line := fatal.FindString(log); line != "" {
		return fmt.Errorf("the daemon says: %s", line)
	}
	return nil
}

// ready waits until engine and control are up.
func (w *world) ready() error {
	return w.retry("waiting for the daemon", func(context.Context) error { return w.d.Ready() })
}

// progress prints a line every few seconds.
func progress(total int, done func() int) (stop func()) {
	start, quit := time.Now(), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(10 * time.Second)
		defer t.Stop()
		for {
			select {
			case <-quit:
				return
			case <-t.C:
			}
			n, spent := done(), time.Since(start)
			left := "?"
			if n > 0 {
				left = (spent * time.Duration(total-n) / time.Duration(n)).Round(time.Second).String()
			}
			fmt.Printf("  %s: %d of %d, about %s left\n", spent.Round(time.Second), n, total, left)
		}
	})
	return func() { close(quit); wg.Wait() }
}

// verdict turns what a hunt found into its result: with a bug planted, finding
// it is what is asked for.
func verdict(planted string, found error) error {
	switch {
	case planted == "":
		return found
	case found == nil:
		return fmt.Errorf("the planted bug %q was not found", planted)
	case !slices.ContainsFunc(finds[planted], func(s string) bool { return strings.Contains(found.Error(), s) }):
		return fmt.Errorf("the planted bug %q was not found, but something else: %w", planted, found)
	}
	fmt.Printf("  found what was planted (%s): %s\n", planted, firstLine(found.Error()))
	return nil
}

// finds is what a hunt says when it finds a bug, and not merely an accident that
// the bug causes.
var finds = map[string][]string{
	plant.FenceOff:         {lateMark},
	plant.KeyNotWiped:      {"hold a key"},
	plant.ScheduleLeft:     {"a key, byte"},
	plant.BufferNotCleared: {"a canary in"},
	plant.BitEarly:         {"reads as noise", olderMark},
	plant.MapIgnored:       {"reads as noise", olderMark},
	plant.CipherNull:       {"a canary in"},
	plant.GateSkipped + "," + plant.LateDecrypt: {"ended by itself", "after its gate"},
	plant.WipeBeforeCiphers:                     {"ended by itself"},
	plant.InflightUnwritten:                     {"have had no answer", "wrong bytes", "answered twice", "more than taken", "was not ended"},
	plant.AnswerEarly:                           {"or twice", "the reply to"},
	plant.SentEarly:                             {lostMark},
	plant.ResubmitLeftOut:                       {"have had no answer", "was not ended", "answered twice", "more than taken", "wrong bytes"},
}

func firstLine(s string) string { s, _, _ = strings.Cut(s, "\n"); return s }

func key(seed uint64, n int) string { return strconv.FormatUint(seed, 36) + "-" + strconv.Itoa(n) }
