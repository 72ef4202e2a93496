package csi_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// BenchmarkDelete measures DeleteVolume of block volumes that were staged: with those
// that were unstaged before, and with those whose device it has to take away itself.
// What it prints of each is the median, the 99th percentile and the longest.
//
//	./csi-sanity -test.run NONE -test.bench Delete -test.benchtime 200x -endpoint unix:///run/csi.sock
func BenchmarkDelete(b *testing.B) {
	for _, unstage := range []bool{true, false} {
		b.Run(fmt.Sprintf("unstaged=%t", unstage), func(b *testing.B) {
			address, ended := *endpoint, func() {}
			if address == "" {
				address, ended = start(b)
			}
			conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				b.Fatal(err)
			}
			u := &user{ControllerClient: spec.NewControllerClient(conn), NodeClient: spec.NewNodeClient(conn), dir: b.TempDir()}
			var all []time.Duration
			for b.Loop() {
				took, err := u.life(fmt.Sprintf("bench-%t-%d-%d", unstage, b.N, len(all)), unstage)
				if err != nil {
					b.Fatal(err)
				}
				all = append(all, took)
			}
			if err := conn.Close(); err != nil {
				b.Error(err)
			}
			ended()
			slices.Sort(all)
			for name, at := range map[string]int{"p50": len(all) / 2, "p99": len(all) * 99 / 100, "max": len(all) - 1} {
				b.ReportMetric(float64(all[at].Microseconds())/1000, name+"-ms/delete")
			}
		})
	}
}

// A user stages volumes.
type user struct {
	spec.ControllerClient
	spec.NodeClient
	dir string
}

// life is one volume. What it returns is the time of its DeleteVolume.
func (u *user) life(name string, unstage bool) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := &spec.VolumeCapability{
		AccessType: &spec.VolumeCapability_Block{Block: &spec.VolumeCapability_BlockVolume{}},
		AccessMode: &spec.VolumeCapability_AccessMode{Mode: spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
	made, err := u.CreateVolume(ctx, &spec.CreateVolumeRequest{
		Name: name, CapacityRange: &spec.CapacityRange{RequiredBytes: *size}, VolumeCapabilities: []*spec.VolumeCapability{c},
	})
	if err != nil {
		return 0, err
	}
	id, path := made.GetVolume().GetVolumeId(), filepath.Join(u.dir, name)
	if err := os.Mkdir(path, 0o755); err != nil {
		return 0, err
	}
	if _, err := u.NodeStageVolume(ctx, &spec.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: path, VolumeCapability: c}); err != nil {
		return 0, err
	}
	if unstage {
		if _, err := u.NodeUnstageVolume(ctx, &spec.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: path}); err != nil {
			return 0, err
		}
	}
	began := time.Now()
	_, err = u.DeleteVolume(ctx, &spec.DeleteVolumeRequest{VolumeId: id})
	return time.Since(began), err
}
