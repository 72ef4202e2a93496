package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/internal/nbdclient"
	"vacate/test/daemon"
)

// sizes are the volumes whose closes are compared: time to erasure must not
// depend on them.
var sizes = []struct {
	name  string
	bytes int64
}{{"1 GiB", 1 << 30}, {"1 TiB", 1 << 40}}

// lives opens and closes leases of each size, with requests in flight on them
// and on a neighbour, and prints how long key and journal took.
func lives(d *daemon.Daemon, o options, dir string) error {
	drive := filepath.Join(dir, "drive")
	if err := os.WriteFile(drive, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(drive, 5<<38); err != nil { // 1.25 TiB, sparse
		return err
	}
	if _, err := d.Run("drive", "enroll", drive); err != nil {
		return err
	}
	stop, err := neighbour(d)
	if err != nil {
		return err
	}
	defer stop()
	c := client.Dial(filepath.Join(d.Dir, "vacate.sock"))
	defer c.Close()
	fmt.Printf("\nGate to destroyed key, and time to open: with 32 random 64 KiB writes in flight on each lease, and 32 random 4 KiB reads on a neighbour\n")
	for _, size := range sizes {
		var erased, ciphers, opened []time.Duration
		for i := range o.closes {
			e, t, err := life(c, drive, size.bytes, uint64(i))
			if err != nil {
				return fmt.Errorf("lease %d of %s: %w", i, size.name, err)
			}
			erased = append(erased, time.Duration(e.GetGateToKeyDestroyedNs()))
			ciphers = append(ciphers, time.Duration(e.GetGateToCiphersDoneNs()))
			opened = append(opened, t)
		}
		fmt.Printf("  %s  gate to key destroyed: %s\n", size.name, quantiles(erased))
		fmt.Printf("         of it for ciphers:     %s\n", quantiles(ciphers))
		fmt.Printf("         open:                  %s\n", quantiles(opened))
	}
	return journalTimes(d, dir)
}

// life is one lease: opened, written to, closed in the middle of it.
func life(c *client.Client, drive string, size int64, seed uint64) (erased *vacatev1.Erasure, opened time.Duration, err error) {
	ctx := context.Background()
	began := time.Now()
	resp, err := c.Leases.Open(ctx, &vacatev1.LeaseServiceOpenRequest{SizeBytes: size, Drive: drive, Tenant: "bench"})
	opened = time.Since(began)
	if err != nil {
		return nil, 0, err
	}
	l := resp.GetLease()
	nc, err := nbdclient.Dial(l.GetExports()[0].GetUri(), nbdclient.Options{})
	if err != nil {
		return nil, 0, err
	}
	busy := make(chan struct{})
	go func() {
		defer close(busy)
		// It ends with an error: its lease is closed under it.
		_, _ = nbdclient.Load{Pattern: nbdclient.RandomWrite, BlockSize: 64 << 10, Depth: 32, Seed: seed, Span: 64 << 20, Duration: time.Minute}.Run(nc) //nolint:errcheck // as above
	}()
	time.Sleep(5 * time.Millisecond)
	closed, err := c.Leases.Close(ctx, &vacatev1.LeaseServiceCloseRequest{Id: l.GetId()})
	<-busy
	nc.Abort() //nolint:errcheck // the server has closed it
	if err != nil {
		return nil, 0, err
	}
	e := closed.GetLease().GetErasure()
	if !e.GetReadBack() {
		return nil, 0, fmt.Errorf("lease %s is %v, its key was not read back", l.GetId(), closed.GetLease().GetState())
	}
	return e, opened, nil
}

// neighbour keeps a lease busy until stop is called.
func neighbour(d *daemon.Daemon) (stop func(), err error) {
	l, err := d.Open("--size", "1GiB", "--drive", filepath.Join(d.Dir, "drive.img"))
	if err != nil {
		return nil, err
	}
	c, err := nbdclient.Dial(l.URI(), nbdclient.Options{})
	if err != nil {
		return nil, err
	}
	if err := fill(c, 256<<20); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = nbdclient.Load{Span: 256 << 20, Duration: time.Hour}.Run(c) //nolint:errcheck // it ends when its lease is closed
	}()
	return func() {
		d.Run("lease", "close", l.ID) //nolint:errcheck // the daemon is stopped at the end
		<-ended
		c.Abort() //nolint:errcheck // the server has closed it
	}, nil
}

// fill writes the first n bytes with something that is not zero.
func fill(c *nbdclient.Client, n int64) error {
	buf := make([]byte, 1<<20)
	for i := range buf {
		buf[i] = byte(i*7) | 1
	}
	for off := int64(0); off < n; off += int64(len(buf)) {
		if _, err := c.WriteAt(buf, off); err != nil {
			return err
		}
	}
	return nil
}

// journalTimes prints what the daemon counted of its journal's commits.
func journalTimes(d *daemon.Daemon, dir string) error {
	text, err := d.Admin("/metrics")
	if err != nil {
		return err
	}
	fmt.Printf("  of which the journal's commits (fsync, medium: %s), as the daemon counted them:\n", medium(dir))
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "vacate_journal_") && !strings.Contains(line, "bucket") {
			fmt.Print("    ", line)
		}
	}
	return nil
}
