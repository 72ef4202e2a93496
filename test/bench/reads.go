package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"vacate/internal/nbdclient"
	"vacate/test/daemon"
)

const readSpan = 1 << 30 // bytes of each export that are written, and read

// A contestant serves an export of readSpan bytes, backed by tmpfs.
type contestant struct {
	name   string
	target string // socket or URI
	stop   func() error
	rates  []float64
}

// reads measures 4 KiB random reads at depth 32 over one connection, in turn,
// so that a drift of the machine strikes all contestants alike.
func reads(d *daemon.Daemon, o options, shm string) (err error) {
	var all []*contestant
	defer func() {
		for _, c := range all {
			err = errors.Join(err, c.stop())
		}
	}()
	for _, start := range []func(string) (*contestant, error){
		func(shm string) (*contestant, error) { return ours(d, shm, o.closes*len(sizes)) }, luks, raw, kit,
	} {
		c, err := start(shm)
		if err != nil {
			return err
		}
		all = append(all, c)
	}
	for range o.rounds {
		for _, c := range all {
			if err := c.measure(o.span); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	fmt.Printf("\n4 KiB random reads, depth 32, one connection, tmpfs behind, %d rounds of %v in turn\n", o.rounds, o.span)
	ourRate := median(all[0].rates)
	for _, c := range all {
		rate := median(c.rates)
		fmt.Printf("  %-34s %8.0f reads/s (%.0f–%.0f)   Vacate is %.2f times\n", c.name, rate, c.rates[0], c.rates[len(c.rates)-1], ourRate/rate)
	}
	return nil
}

func (c *contestant) measure(span time.Duration) error {
	nc, err := nbdclient.Dial(c.target, nbdclient.Options{SimpleReplies: true})
	if err != nil {
		return err
	}
	r, err := nbdclient.Load{Depth: 32, Span: readSpan, Duration: span, Seed: uint64(len(c.rates))}.Run(nc)
	if err = errors.Join(err, nc.Close()); err != nil {
		return err
	}
	if r.Errors != 0 {
		return fmt.Errorf("%d of %d reads failed: first: %w", r.Errors, r.Requests, r.FirstError)
	}
	c.rates = append(c.rates, r.PerSecond())
	return nil
}

// prepare waits for a contestant's socket and writes all that will be read.
func prepare(c *contestant) (*contestant, error) {
	var nc *nbdclient.Client
	var err error
	for range 250 {
		if nc, err = nbdclient.Dial(c.target, nbdclient.Options{}); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", c.name, err), c.stop())
	}
	if err := errors.Join(fill(nc, readSpan), nc.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", c.name, err), c.stop())
	}
	return c, nil
}

func ours(d *daemon.Daemon, shm string, before int) (*contestant, error) {
	drive := filepath.Join(shm, "drive")
	if err := errors.Join(os.WriteFile(drive, nil, 0o600), os.Truncate(drive, readSpan+64<<20)); err != nil {
		return nil, err
	}
	if _, err := d.Run("drive", "enroll", drive); err != nil {
		return nil, err
	}
	l, err := d.Open("--drive", drive, "--size", fmt.Sprint(readSpan))
	if err != nil {
		return nil, err
	}
	c, err := prepare(&contestant{name: "Vacate, encrypted", target: l.URI(), stop: func() error {
		_, err := d.Run("lease", "close", l.ID)
		return err
	}})
	if err == nil {
		err = memory(d, before)
	}
	return c, err
}

// spawn starts a peer that listens on a socket in shm.
func spawn(name, shm, socket string, args ...string) (*contestant, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return prepare(&contestant{name: name, target: filepath.Join(shm, socket), stop: func() error {
		err := cmd.Process.Kill()
		cmd.Wait() //nolint:errcheck // killed
		return err
	}})
}

func luks(shm string) (*contestant, error) {
	image, secret := filepath.Join(shm, "luks"), "secret,id=s,data=bench"
	create := exec.Command("qemu-img", "create", "-q", "-f", "luks", "--object", secret, "-o", "key-secret=s,iter-time=10", image, fmt.Sprint(readSpan))
	if out, err := create.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return spawn("qemu-nbd, LUKS (encrypted)", shm, "luks.sock", "qemu-nbd", "-t", "-e", "8", "-k", filepath.Join(shm, "luks.sock"),
		"--object", secret, "--image-opts", "driver=luks,key-secret=s,file.driver=file,file.filename="+image)
}

func raw(shm string) (*contestant, error) {
	image := filepath.Join(shm, "raw")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, readSpan)); err != nil {
		return nil, err
	}
	return spawn("qemu-nbd, raw (plain)", shm, "raw.sock", "qemu-nbd", "-t", "-e", "8", "-f", "raw", "-k", filepath.Join(shm, "raw.sock"), image)
}

func kit(shm string) (*contestant, error) {
	return spawn("nbdkit, memory (plain)", shm, "kit.sock", "nbdkit", "-f", "-U", filepath.Join(shm, "kit.sock"), "memory", fmt.Sprint(readSpan))
}
