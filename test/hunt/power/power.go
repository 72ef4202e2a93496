// Package power hunts for what a loss of power leaves behind: a real kernel runs
// the daemon in a virtual machine, with tenants at work, on disks that lose a
// random part of what was not flushed when the machine is killed. Then it boots
// again from what is left.
//
// After each cut:
//
//   - neither disk holds a canary, a key, or a part of a key's schedule, not even
//     in what its cache was about to lose;
//   - the daemon starts, and shows each lease that was open as lost, by the boot;
//     each that was said to be closed as closed; and what had ended before as it
//     was shown then;
//   - the whole drive is free again, a new lease over all of it reads zeros, and
//     what is written to it.
package power

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"vacate/internal/plant"
	"vacate/test/daemon"
	"vacate/test/vm"
)

// Bugs that the hunt can plant, to see that it finds them.
const (
	lyingDisk = "lying-disk"  // the state folder's disk answers flushes and does nothing
	keyOnDisk = "key-on-disk" // a key is written to the state folder's disk
)

var plants = []string{plant.CipherNull, lyingDisk, keyOnDisk}

// finds is what the finding says that a bug causes, and not an accident beside it.
// A disk that lies may break anything that was said to be durable.
var finds = map[string]string{plant.CipherNull: "on a disk", keyOnDisk: "on a disk", lyingDisk: ""}

// options are the hunt's flags.
type options struct {
	n       int
	seed    uint64
	plant   string
	binary  string
	verbose bool
}

// Run runs the hunt. Its error is what it found, or why it could not look; with
// a planted bug, that it found nothing.
func Run(args []string) (err error) {
	var o options
	f := flag.NewFlagSet("power", flag.ContinueOnError)
	f.IntVar(&o.n, "n", 50, "how often to cut the power")
	f.Uint64Var(&o.seed, "seed", 0, "what all decisions are drawn from (default: a random one, which is printed)")
	f.StringVar(&o.plant, "plant", "", "a bug to plant, which must be found: "+strings.Join(plants, ", "))
	f.StringVar(&o.binary, "binary", "", "the binary of vacate to run (default: this tree's, built now)")
	f.BoolVar(&o.verbose, "v", false, "print each step")
	if err := f.Parse(args); err != nil {
		return err
	}
	switch {
	case f.NArg() > 0:
		return fmt.Errorf("power takes no arguments but flags, and was given %q", f.Args())
	case o.n < 1:
		return fmt.Errorf("-n %d: at least one cut", o.n)
	case o.plant != "" && !slices.Contains(plants, o.plant):
		return fmt.Errorf("-plant %s: there is no such bug; there are %s", o.plant, strings.Join(plants, ", "))
	}
	if o.seed == 0 {
		o.seed = rand.Uint64()>>1 | 1
	}
	dir, err := os.MkdirTemp("", "vp")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	return run(o, dir)
}

func run(o options, dir string) error {
	h, err := prepare(o, dir)
	if err != nil {
		return err
	}
	defer h.close()
	fmt.Printf("power hunt: seed %d (replay with -seed %d -n %d), %d cuts\n", o.seed, o.seed, o.n, o.n)
	start := time.Now()
	for i := 1; i <= o.n; i++ {
		if err := h.cycle(i); err != nil {
			return h.verdict(i, err)
		}
	}
	if err := h.last(); err != nil {
		return h.verdict(o.n, err)
	}
	took := time.Since(start).Round(time.Second)
	t := h.total
	fmt.Printf("power hunt: %d cuts in %v (%v each; start of the machine %v, of the daemon %v); %d leases lost, %d closed, %d cut while opening or closing; "+
		"%d keys and %d sectors of canaries sought; %d records audited; %d crashes of the emulated kernel\n",
		o.n, took, (took / time.Duration(o.n)).Round(100*time.Millisecond), t.boot.mean(), t.serve.mean(), t.lost, t.closed, t.between, t.keys, t.sectors, t.records, t.crashes)
	return h.verdict(o.n, nil)
}

// A finding is what the hunt looks for; all other errors are its own.
type finding struct{ text string }

func (f *finding) Error() string { return f.text }

// found makes a finding of some texts, or nil of none.
func found(what string, texts []string) error {
	if len(texts) == 0 {
		return nil
	}
	return &finding{what + ":\n  " + strings.Join(texts, "\n  ")}
}

// verdict turns a result around where a bug was planted.
func (h *hunt) verdict(cuts int, err error) error {
	var f *finding
	switch isFinding := errors.As(err, &f); {
	case h.o.plant == "" && isFinding:
		return fmt.Errorf("FOUND at cut %d (seed %d): %w", cuts, h.o.seed, err)
	case h.o.plant != "" && isFinding && !strings.Contains(f.text, finds[h.o.plant]):
		return fmt.Errorf("the planted bug %s was not found at cut %d (seed %d), but something else: %w", h.o.plant, cuts, h.o.seed, err)
	case h.o.plant != "" && isFinding:
		fmt.Printf("power hunt: the planted bug %s was found at cut %d:\n%v\n", h.o.plant, cuts, err)
		return nil
	case h.o.plant != "" && err == nil:
		return fmt.Errorf("the planted bug %s was not found in %d cuts (seed %d)", h.o.plant, cuts, h.o.seed)
	case err != nil:
		return fmt.Errorf("cut %d (seed %d): %w", cuts, h.o.seed, err)
	}
	return nil
}

// prepare builds what the machine runs, and its first disks.
func prepare(o options, dir string) (*hunt, error) {
	kernel, err := vm.FindKernel()
	if err != nil {
		return nil, err
	}
	var tags []string
	if o.plant == plant.CipherNull {
		tags = []string{"planted"}
	}
	if o.binary == "" {
		if o.binary, err = daemon.Build(dir, tags...); err != nil {
			return nil, err
		}
	}
	initramfs, err := vm.Initramfs(dir, vm.Contents{Kernel: kernel, Vacate: o.binary})
	if err != nil {
		return nil, err
	}
	empty, err := vm.Ext4(dir, stateBytes)
	if err != nil {
		return nil, err
	}
	h := &hunt{o: o, dir: dir, kernel: kernel, initramfs: initramfs, emptyState: empty, ctx: context.Background()}
	h.id = draw(o.seed, 0).Uint64() | 1
	return h, nil
}

// draw is the source of all decisions about one cut.
func draw(seed uint64, cut int) *rand.Rand { return rand.New(rand.NewPCG(seed, uint64(cut))) }
