package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/internal/nbdclient"
	"vacate/test/daemon"
	"vacate/test/slow"
)

const (
	hungLeases = 300
	hungBytes  = 1 << 20
)

// hung closes leases whose drive never completes the writes that are in flight
// on them, and prints how long their keys took.
func hung(bin, dir string) (err error) {
	drives := filepath.Join(dir, "hung-drives")
	back, drive := filepath.Join(dir, "hung-back"), filepath.Join(drives, "drive")
	if err := os.Mkdir(drives, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(back, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(back, 1<<30); err != nil {
		return err
	}
	f, err := slow.Open(drive, back, 0, 1)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // the figures are printed
	d, err := daemon.Start(bin, filepath.Join(dir, "hung"), daemon.Options{
		Env: []string{"VACATE_LOG__LEVEL=warn", "VACATE_DRAIN_DEADLINE=50ms", "VACATE_MAX_CONNECTIONS=512"}, Args: []string{"--drive-dir", drives},
	})
	if err != nil {
		return err
	}
	defer d.Kill()
	defer f.GoOn()
	if _, err := d.Run("drive", "enroll", drive); err != nil {
		return err
	}
	c := client.Dial(filepath.Join(d.Dir, "vacate.sock"))
	defer c.Close()
	leases := make([]*vacatev1.Lease, hungLeases)
	conns := make([]*nbdclient.Client, hungLeases)
	for i := range leases {
		resp, err := c.Leases.Open(context.Background(), &vacatev1.LeaseServiceOpenRequest{SizeBytes: hungBytes, Drive: drive, Tenant: "bench"})
		if err != nil {
			return err
		}
		leases[i] = resp.GetLease()
		if conns[i], err = nbdclient.Dial(leases[i].GetExports()[0].GetUri(), nbdclient.Options{}); err != nil {
			return err
		}
	}
	f.Hang()
	var writers sync.WaitGroup
	for _, nc := range conns {
		writers.Go(func() { nc.WriteAt(make([]byte, 64<<10), 0) }) //nolint:errcheck // it ends with its lease
	}
	for start := time.Now(); f.Pending() < hungLeases && time.Since(start) < 20*time.Second; {
		time.Sleep(10 * time.Millisecond)
	}
	inFlight := f.Pending()
	var erased []time.Duration
	for _, l := range leases {
		closed, err := c.Leases.Close(context.Background(), &vacatev1.LeaseServiceCloseRequest{Id: l.GetId()})
		if err != nil {
			return err
		}
		e := closed.GetLease().GetErasure()
		if closed.GetLease().GetState() != vacatev1.LeaseState_LEASE_STATE_ERASED || !e.GetReadBack() {
			return fmt.Errorf("lease %s is %v", l.GetId(), closed.GetLease().GetState())
		}
		erased = append(erased, time.Duration(e.GetGateToKeyDestroyedNs()))
	}
	fmt.Printf("\nA drive that completes nothing, %d writes in flight on %d leases\n", inFlight, hungLeases)
	fmt.Printf("  gate to key destroyed: %s\n", quantiles(erased))
	f.GoOn()
	writers.Wait()
	for _, nc := range conns {
		nc.Abort() //nolint:errcheck // its lease has ended
	}
	return d.Stop()
}
