package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/internal/nbdclient"
	"vacate/test/daemon"
)

// atOnce is how many volumes are deleted at the same time, in the last row.
const atOnce = 16

// deletes starts `vacate csi`, creates volumes and deletes them, and prints how long
// DeleteVolume took: of volumes nobody uses, of those with requests in flight, and of
// many at once.
func deletes(bin, dir string, count int) (err error) {
	drives := filepath.Join(dir, "delete-drives")
	drive := filepath.Join(drives, "drive")
	if err := errors.Join(os.Mkdir(drives, 0o700), os.WriteFile(drive, nil, 0o600), os.Truncate(drive, 4*atOnce<<30)); err != nil { // sparse
		return err
	}
	d, err := daemon.Start(bin, filepath.Join(dir, "deletes"), daemon.Options{Env: []string{"VACATE_LOG__LEVEL=warn"}, Args: []string{"--drive-dir", drives}})
	if err != nil {
		return err
	}
	defer d.Kill()
	if _, err := d.Run("drive", "enroll", drive); err != nil {
		return err
	}
	k, stop, err := startDriver(d, drive)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	fmt.Printf("\nDeleteVolume of `vacate csi`: volumes of 1 GiB, without devices\n")
	for _, row := range []struct {
		name         string
		busy         bool
		simultaneous int
	}{
		{"nobody uses them:           ", false, 1},
		{"32 64 KiB writes in flight: ", true, 1},
		{fmt.Sprintf("%d deleted at once:         ", atOnce), false, atOnce},
	} {
		all, err := k.row(count, row.simultaneous, row.busy)
		if err != nil {
			return err
		}
		fmt.Printf("  %s %s\n", row.name, quantiles(all))
	}
	return nil
}

// startDriver starts the driver, which stop stops.
func startDriver(d *daemon.Daemon, drive string) (k *kubelet, stop func() error, err error) {
	address := "unix://" + filepath.Join(d.Dir, "csi.sock")
	var log bytes.Buffer
	cmd := exec.Command(d.Bin, "csi", "--endpoint", address, "--node-id", "node-1")
	cmd.Env = append(os.Environ(), "VACATE_ADDR="+filepath.Join(d.Dir, "vacate.sock"))
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		return nil, nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	c := client.Dial(filepath.Join(d.Dir, "vacate.sock"))
	return &kubelet{spec.NewControllerClient(conn), c, drive}, func() error {
		c.Close()
		err := errors.Join(conn.Close(), cmd.Process.Signal(syscall.SIGTERM), cmd.Wait())
		if err != nil {
			err = fmt.Errorf("vacate csi: %w\n%s", err, log.String())
		}
		return err
	}, nil
}

// A kubelet asks for volumes, and uses them.
type kubelet struct {
	spec.ControllerClient
	daemon *client.Client
	drive  string
}

// row deletes count volumes, as many at once as simultaneous says.
func (k *kubelet) row(count, simultaneous int, busy bool) ([]time.Duration, error) {
	var wg sync.WaitGroup
	took, errs := make([][]time.Duration, simultaneous), make([]error, simultaneous)
	for w := range simultaneous {
		wg.Go(func() {
			for i := range count / simultaneous {
				t, err := k.life(fmt.Sprintf("volume-%d-%d-%d-%t", simultaneous, w, i, busy), busy, uint64(i))
				if err != nil {
					errs[w] = err
					return
				}
				took[w] = append(took[w], t)
			}
		})
	}
	wg.Wait()
	var all []time.Duration
	for _, t := range took {
		all = append(all, t...)
	}
	return all, errors.Join(errs...)
}

// life is one volume. What it returns is the time of its DeleteVolume.
func (k *kubelet) life(name string, busy bool, seed uint64) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	made, err := k.CreateVolume(ctx, &spec.CreateVolumeRequest{
		Name: name, CapacityRange: &spec.CapacityRange{RequiredBytes: 1 << 30}, Parameters: map[string]string{"tenant": "bench", "drive": k.drive},
		VolumeCapabilities: []*spec.VolumeCapability{{
			AccessType: &spec.VolumeCapability_Block{Block: &spec.VolumeCapability_BlockVolume{}},
			AccessMode: &spec.VolumeCapability_AccessMode{Mode: spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		}},
	})
	if err != nil {
		return 0, fmt.Errorf("creating volume %s: %w", name, err)
	}
	v := made.GetVolume()
	if busy {
		wait, err := k.use(ctx, v, seed)
		if err != nil {
			return 0, err
		}
		defer wait()
	}
	began := time.Now()
	_, err = k.DeleteVolume(ctx, &spec.DeleteVolumeRequest{VolumeId: v.GetVolumeId()})
	took := time.Since(began)
	if err != nil {
		return 0, fmt.Errorf("deleting volume %s: %w", name, err)
	}
	return took, nil
}

// use writes to a volume until it is deleted, which wait waits for.
func (k *kubelet) use(ctx context.Context, v *spec.Volume, seed uint64) (wait func(), err error) {
	got, err := k.daemon.Leases.Get(ctx, &vacatev1.LeaseServiceGetRequest{Id: v.GetVolumeContext()["csi.vacate.dev/lease"]})
	if err != nil {
		return nil, err
	}
	nc, err := nbdclient.Dial(got.GetLease().GetExports()[0].GetUri(), nbdclient.Options{})
	if err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = nbdclient.Load{Pattern: nbdclient.RandomWrite, BlockSize: 64 << 10, Depth: 32, Seed: seed, Span: 64 << 20, Duration: time.Minute}.Run(nc) //nolint:errcheck // it ends when its lease is closed
	}()
	time.Sleep(5 * time.Millisecond)
	return func() {
		<-ended
		nc.Abort() //nolint:errcheck // the server has closed it
	}, nil
}
