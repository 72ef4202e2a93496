// Package demo tells in seconds, without root, why Vacate exists: two tenants
// follow each other on a plain volume, then on a lease. Everything is real (the
// file system, the daemon, its NBD export, the search), and every number that
// it prints was measured while it ran.
package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/nbdclient"
	"vacate/internal/scratch"
)

const (
	letters   = 1000
	mediumLen = 256 << 20 // of the plain file, and of the drive
	imageLen  = 192 << 20 // of tenant A's file system
	chunk     = 1 << 20
)

// Config is where the story is told.
type Config struct {
	Out  io.Writer
	Self string // path of the vacate binary, which serves the second part
	Dir  string // where the demo's folder is made; empty: the system's for temporary files
}

// A story is one run of the demo.
type story struct {
	Config
	dir   string
	image string // tenant A's file system
	began time.Time
}

// Run tells the story. It works in a temporary folder, which it removes.
func Run(ctx context.Context, cfg Config) (err error) {
	if _, err := exec.LookPath("mke2fs"); err != nil {
		if err := os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin"); err != nil {
			return err
		}
		if _, err := exec.LookPath("mke2fs"); err != nil {
			return fmt.Errorf("the demo makes an ext4 file system, and %w: install it with `apt-get install e2fsprogs`", err)
		}
	}
	dir, err := os.MkdirTemp(cfg.Dir, "vacate-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s := &story{Config: cfg, dir: dir, began: time.Now()}
	if err := s.prepare(); err != nil {
		return err
	}
	if err := s.plain(); err != nil {
		return fmt.Errorf("the plain volume: %w", err)
	}
	if err := s.vacate(ctx); err != nil {
		return fmt.Errorf("the lease: %w", err)
	}
	s.title("Done in %.1f s. Now you: make run", time.Since(s.began).Seconds())
	return nil
}

func (s *story) title(format string, args ...any) {
	fmt.Fprintf(s.Out, "\n"+format+"\n", args...) //nolint:errcheck // a reader that has gone ends the demo soon enough
}

// step prints what was done, and how long it took if that is worth telling.
func (s *story) step(took time.Duration, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if took > 0 {
		text = fmt.Sprintf("%-86s %s", text, took.Round(10*time.Microsecond))
		if took > 10*time.Millisecond {
			text = fmt.Sprintf("%-86s %s", fmt.Sprintf(format, args...), took.Round(time.Millisecond))
		}
	}
	fmt.Fprintln(s.Out, "   "+text) //nolint:errcheck // as above
}

// prepare makes tenant A's file system: ext4, with letters in it.
func (s *story) prepare() error {
	began := time.Now()
	box := filepath.Join(s.dir, "letters")
	var seed [32]byte
	copy(seed[:], "the letters of tenant A")
	sum, err := writeLetters(box, letters, rand.New(rand.NewChaCha8(seed)))
	if err != nil {
		return fmt.Errorf("writing letters: %w", err)
	}
	s.image = filepath.Join(s.dir, "a.ext4")
	cmd := exec.Command("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", box, s.image, fmt.Sprintf("%dk", imageLen>>10))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, out)
	}
	s.title("Tenant A has an ext4 file system with %d letters, %s of text.", letters, bytesText(sum))
	s.step(time.Since(began), "made with mke2fs")
	return nil
}

// plain is the leak: the volume is a piece of a file, and nothing stands
// between one tenant's blocks and the next.
func (s *story) plain() error {
	s.title("1  A plain volume on a plain file of %s", bytesText(mediumLen))
	path := filepath.Join(s.dir, "plain")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // removed with its folder
	if err := f.Truncate(mediumLen); err != nil {
		return err
	}
	began := time.Now()
	if err := s.writeImage(f, func(_, _ int64) error { return nil }); err != nil {
		return err
	}
	s.step(time.Since(began), "A writes it to its volume")
	s.step(0, "A leaves: its volume is deleted, the space goes to tenant B")
	began = time.Now()
	got, err := search(io.NewSectionReader(f, 0, mediumLen), func(int64) {})
	if err != nil {
		return err
	}
	s.step(time.Since(began), "B searches its new, empty volume: %d of A's %d letters found", len(got.letters), letters)
	if len(got.letters) != letters {
		return fmt.Errorf("%d of %d letters found: the search does not work here", len(got.letters), letters)
	}
	return os.Remove(path)
}

// writeImage writes tenant A's file system to w, and hands chunks of zeros to
// zero, as any copying tool does.
func (s *story) writeImage(w io.WriterAt, zero func(off, n int64) error) error {
	f, err := os.Open(s.image)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	buf, none := make([]byte, chunk), make([]byte, chunk)
	for off := int64(0); ; off += int64(len(buf)) {
		n, err := io.ReadFull(f, buf)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		if !bytes.Equal(buf[:n], none[:n]) {
			_, err = w.WriteAt(buf[:n], off)
		} else {
			err = zero(off, int64(n))
		}
		if err != nil {
			return err
		}
	}
}

// vacate is the same on a lease.
func (s *story) vacate(ctx context.Context) (err error) {
	s.title("2  The same with Vacate, on a drive of %s", bytesText(mediumLen))
	n, err := startNode(ctx, s.Self, s.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.End(ctx)) }()
	drive, free, err := enroll(ctx, n, drivePath(s.dir), mediumLen)
	if err != nil {
		return err
	}
	a, err := s.moveIn(ctx, n, "tenant A", drive, free)
	if err != nil {
		return err
	}
	if err := s.work(a, drive); err != nil {
		return err
	}
	if err := s.moveOut(ctx, n, a.GetId()); err != nil {
		return err
	}
	if err := s.searchDrive(drive, "Whoever finds the drive now searches all of it"); err != nil {
		return err
	}
	b, err := s.moveIn(ctx, n, "tenant B", drive, free)
	if err != nil {
		return err
	}
	if what, same := samePieces(a, b); !same {
		return fmt.Errorf("tenant B did not get the space of tenant A: %s", what)
	}
	if err := s.readZeros(b); err != nil {
		return err
	}
	return s.moveOut(ctx, n, b.GetId())
}

func (s *story) moveIn(ctx context.Context, n *scratch.Daemon, tenant, drive string, size int64) (*vacatev1.Lease, error) {
	began := time.Now()
	l, err := n.Open(ctx, tenant, drive, size)
	if err != nil {
		return nil, err
	}
	s.step(time.Since(began), "%s opens a lease on the whole drive, %s (extents %s)", upper(tenant), bytesText(size), extents(l))
	return l, nil
}

// work lets tenant A use its volume, and searches from both sides.
func (s *story) work(l *vacatev1.Lease, drive string) error {
	c, err := nbdclient.Dial(l.GetExports()[0].GetUri(), nbdclient.Options{NoBlockSize: true}) // the search reads at any offset
	if err != nil {
		return err
	}
	began := time.Now()
	zero := func(off, n int64) error { return c.Zero(off, n, 0) }
	if err := errors.Join(s.writeImage(c, zero), c.Flush()); err != nil {
		return errors.Join(err, c.Close())
	}
	s.step(time.Since(began), "A writes the same file system to it through NBD, encrypted on the way")
	began = time.Now()
	got, err := search(io.NewSectionReader(c, 0, c.Size()), func(int64) {})
	if err = errors.Join(err, c.Close()); err != nil {
		return err
	}
	s.step(time.Since(began), "A searches its volume: %d of %d letters found", len(got.letters), letters)
	if len(got.letters) != letters {
		return fmt.Errorf("tenant A finds only %d of its %d letters", len(got.letters), letters)
	}
	return s.searchDrive(drive, "A thief searches the drive meanwhile")
}

func (s *story) searchDrive(drive, who string) error {
	f, err := os.Open(drive)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	began := time.Now()
	got, err := search(f, func(int64) {})
	if err != nil {
		return err
	}
	s.step(time.Since(began), "%s: %d letters found in %s of noise", who, len(got.letters), bytesText(got.nonzero))
	if len(got.letters) != 0 || got.read != mediumLen || got.nonzero == 0 {
		return fmt.Errorf("%d letters found in %d bytes, %d of them not zero", len(got.letters), got.read, got.nonzero)
	}
	return nil
}

func (s *story) moveOut(ctx context.Context, n *scratch.Daemon, id string) error {
	l, err := n.Close(ctx, id)
	if err != nil {
		return err
	}
	e := l.GetErasure()
	if !e.GetReadBack() {
		return fmt.Errorf("lease %s is %v, and its key was not read back as zeros", id, l.GetState())
	}
	s.step(time.Duration(e.GetGateToKeyDestroyedNs()), "%s leaves: gate shut, key overwritten and read back as zeros", upper(l.GetTenant()))
	return nil
}

// readZeros reads the whole volume, whatever its block map says.
func (s *story) readZeros(l *vacatev1.Lease) error {
	c, err := nbdclient.Dial(l.GetExports()[0].GetUri(), nbdclient.Options{NoBlockSize: true}) // the search reads at any offset
	if err != nil {
		return err
	}
	began := time.Now()
	got, err := search(io.NewSectionReader(c, 0, c.Size()), func(int64) {})
	if err = errors.Join(err, c.Close()); err != nil {
		return err
	}
	s.step(time.Since(began), "B reads its volume whole, %s: %d bytes that are not zero, %d letters",
		bytesText(got.read), got.nonzero, len(got.letters))
	if got.nonzero != 0 || got.read != l.GetSizeBytes() {
		return fmt.Errorf("tenant B read %d bytes of %d, %d of them not zero", got.read, l.GetSizeBytes(), got.nonzero)
	}
	return nil
}

func upper(tenant string) string { return strings.TrimPrefix(tenant, "tenant ") }

func bytesText(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

func extents(l *vacatev1.Lease) string {
	var b strings.Builder
	for i, p := range l.GetPieces() {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%d-%d", p.GetFirstExtent(), p.GetFirstExtent()+p.GetExtents()-1)
	}
	return b.String()
}

func samePieces(a, b *vacatev1.Lease) (string, bool) {
	return extents(b) + " instead of " + extents(a), extents(a) == extents(b)
}
