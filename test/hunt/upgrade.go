package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"vacate/internal/fail"
	"vacate/internal/nbdclient"
	"vacate/internal/vhostclient"
)

// The upgrade hunt replaces the daemon's binary again and again, while clients
// verify on leases that stay open. A planned hand-over loses no connection. One
// binary does not start at all, and the engine of another ends before it has
// taken over: both times the old one goes on.

type upgradeHunt struct {
	*world
	leases int
	bytes  int64
	export string
	builds []string // paths of binaries of different versions
	disk   string   // the daemon's binary, which is replaced
}

func upgrade(args []string) (err error) {
	o := options{n: 20, size: 1 << 30}
	h := &upgradeHunt{}
	if err := parse("upgrade", args, &o, func(f *flag.FlagSet) {
		f.IntVar(&h.leases, "leases", 5, "leases that stay open under load")
		f.StringVar(&h.export, "export", nbd, "how they are reached: "+nbd+" or "+vhostUser)
		f.Int64Var(&h.bytes, "bytes", 64<<20, "size of each")
	}); err != nil {
		return err
	}
	if h.world, err = newWorld(o); err != nil {
		return errors.Join(err, closeWorld(h.world))
	}
	defer func() { err = errors.Join(err, h.close()) }()
	if err := h.build(); err != nil {
		return err
	}
	return verdict(o.planted, h.run())
}

// build makes two binaries that say different versions of themselves.
func (h *upgradeHunt) build() error {
	for _, v := range []string{"v0.0.1-hunt", "v0.0.2-hunt"} {
		path := filepath.Join(h.dir, v)
		cmd := exec.Command("go", "build", "-tags", "failpoints", "-ldflags", "-X vacate/internal/version.release="+v, "-o", path, "vacate/cmd/vacate")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w\n%s", v, err, out)
		}
		h.builds = append(h.builds, path)
	}
	h.disk = h.d.Bin
	h.d.Bin = h.builds[0] // what people type goes on working whatever lies there
	return nil
}

func (h *upgradeHunt) run() error {
	ctx, stop := context.WithCancel(h.ctx)
	defer stop()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var found []error
	report := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			found = append(found, err)
		}
	}
	loads := make([]load, h.leases)
	for i := range loads {
		_, v, err := h.openUnderLoad(i, h.export, h.bytes, key(h.seed, i))
		if err != nil {
			return err
		}
		if v, ok := v.(*nbdclient.Verify); ok {
			v.Gap = 2 * time.Millisecond
		}
		loads[i] = v
		wg.Go(func() {
			r, err := v.Run(ctx)
			report(errors.Join(err, r.Err()))
		})
	}
	rng := rand.New(rand.NewPCG(h.seed, 1))
	bad := map[int]string{h.n / 3: "does not start", 2 * h.n / 3: "its engine ends before it has taken over"}
	for n := range h.n {
		if h.ctx.Err() != nil {
			break
		}
		time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
		err := h.once(n, bad[n])
		if err == nil {
			err = lost(loads)
		}
		if err != nil {
			report(fmt.Errorf("upgrade %d (%s): %w", n, bad[n], err))
			break
		}
	}
	time.Sleep(100 * time.Millisecond) // a connection that breaks late
	report(lost(loads))
	stop()
	wg.Wait()
	report(h.accidents())
	var gaps []time.Duration
	for _, v := range loads {
		r := v.Snapshot()
		fmt.Printf("  %s\n", r.String())
		for _, s := range r.Stalls {
			gaps = append(gaps, s.Duration)
		}
	}
	fmt.Printf("  %d upgrades; answers that took over 2 ms: %s\n", h.n, spread(gaps))
	return errors.Join(found...)
}

// lost demands that no connection was made anew since the loads began, but by
// frontends that break theirs themselves.
func lost(loads []load) error {
	n := int64(0)
	for _, v := range loads {
		if f, ok := v.(*vhostclient.Verify); ok && f.Breaks > 0 {
			continue
		}
		n += v.Snapshot().Reconnects
	}
	if n != 0 {
		return fmt.Errorf("%d connections were lost", n)
	}
	return nil
}

// once replaces the binary on disk and upgrades.
func (h *upgradeHunt) once(n int, bad string) error {
	from := h.builds[n%2]
	before, err := h.versions()
	if err != nil {
		return err
	}
	if bad == "does not start" {
		from = filepath.Join(h.dir, "broken")
		if err := os.WriteFile(from, []byte("\x7fELF, but not for long"), 0o700); err != nil {
			return err
		}
	}
	if err := install(from, h.disk); err != nil {
		return err
	}
	if strings.HasPrefix(bad, "its engine") {
		h.arm(fail.EngineStarted)
	}
	out, err := h.d.Run("upgrade")
	struck := h.disarm()
	after, verr := h.versions()
	switch {
	case verr != nil:
		return verr
	case bad != "" && err == nil:
		return fmt.Errorf("it was taken for done:\n%s", out)
	case bad != "" && after != before:
		return fmt.Errorf("it failed, and left %s where there was %s", after, before)
	case strings.HasPrefix(bad, "its engine") && !struck:
		return errors.New("the new engine did not come to the fail point")
	case bad != "":
		return nil
	case err != nil:
		return err
	}
	want := filepath.Base(from)
	if want = strings.Join([]string{want, want, want}, " "); after != want {
		return fmt.Errorf("keeper, engine and control are %s, want %s", after, want)
	}
	return nil
}

// install puts a copy of from at to, as a package manager does: by renaming.
func install(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.WriteFile(to+".new", b, 0o755); err != nil { //nolint:gosec // a program
		return err
	}
	return os.Rename(to+".new", to)
}

// versions returns those of keeper, engine and control.
func (h *upgradeHunt) versions() (string, error) {
	var s struct {
		KeeperVersion, Version string
		Engine                 struct{ Version string }
	}
	err := h.retry("asking for the status", func(context.Context) error { return h.d.JSON(&s, "status") })
	return s.KeeperVersion + " " + s.Engine.Version + " " + s.Version, err
}
