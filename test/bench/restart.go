package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/internal/nbdclient"
	"vacate/test/daemon"
)

const (
	restartLeases = 64
	restartBytes  = 100 << 30
	restarts      = 50
)

// restart opens 64 leases of 100 GiB, writes to each, kills the engine again and
// again, and prints how long it took until a client's read was answered: the one
// that tried first, and the one that was served last.
func restart(bin, dir string) (err error) {
	folder := filepath.Join(dir, "restart")
	drives := filepath.Join(dir, "restart-drives")
	if err := os.Mkdir(drives, 0o700); err != nil {
		return err
	}
	drive := filepath.Join(drives, "big")
	if err := os.WriteFile(drive, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(drive, restartLeases*restartBytes+1<<30); err != nil { // sparse
		return err
	}
	d, err := daemon.Start(bin, folder, daemon.Options{Env: []string{"VACATE_LOG__LEVEL=info"}, Args: []string{"--drive-dir", drives}})
	if err != nil {
		return err
	}
	defer d.Kill()
	if _, err := d.Run("drive", "enroll", drive); err != nil {
		return err
	}
	c := client.Dial(filepath.Join(d.Dir, "vacate.sock"))
	defer c.Close()
	uris := make([]string, restartLeases)
	for i := range uris {
		resp, err := c.Leases.Open(context.Background(), &vacatev1.LeaseServiceOpenRequest{SizeBytes: restartBytes, Drive: drive, Tenant: "bench"})
		if err != nil {
			return err
		}
		uris[i] = resp.GetLease().GetExports()[0].GetUri()
		if err := scatter(uris[i]); err != nil {
			return err
		}
	}
	var first, last []time.Duration
	for range restarts {
		pid, err := d.Child("engine")
		if err != nil {
			return err
		}
		began := time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return err
		}
		one, err := answered(uris[:1], began)
		if err != nil {
			return err
		}
		all, err := answered(uris, began)
		if err != nil {
			return err
		}
		first, last = append(first, one), append(last, all)
		time.Sleep(300 * time.Millisecond) // control catches up too
	}
	fences := d.FenceTimes()
	if len(fences) < restarts {
		return fmt.Errorf("the log tells of %d fences after %d restarts", len(fences), restarts)
	}
	fmt.Printf("\nEngine killed, %d leases of %d GiB open, a client of each connects again and reads\n", restartLeases, restartBytes>>30)
	fmt.Printf("  until the first read is answered:          %s\n", quantiles(first))
	fmt.Printf("  until one of every lease is answered:      %s\n", quantiles(last))
	fmt.Printf("  of it, the drive's fence:                  %s\n", quantiles(fences))
	return d.Stop()
}

// scatter writes a block to every GiB of a lease.
func scatter(uri string) error {
	nc, err := nbdclient.Dial(uri, nbdclient.Options{})
	if err != nil {
		return err
	}
	b := make([]byte, 4096)
	for at := int64(0); at < restartBytes; at += 1 << 30 {
		if _, err := nc.WriteAt(b, at); err != nil {
			return err
		}
	}
	return nc.Close()
}

// answered reads the first block of each lease, and returns the time since began.
func answered(uris []string, began time.Time) (time.Duration, error) {
	b := make([]byte, 4096)
	for _, uri := range uris {
		for {
			nc, err := nbdclient.Dial(uri, nbdclient.Options{})
			if err == nil {
				_, err = nc.ReadAt(b, 0)
				nc.Abort() //nolint:errcheck // it has done its read, or is broken
			}
			if err == nil {
				break
			}
			if time.Since(began) > 30*time.Second {
				return 0, fmt.Errorf("no read in 30 s after the kill: %w", err)
			}
			time.Sleep(time.Millisecond)
		}
	}
	return time.Since(began), nil
}
