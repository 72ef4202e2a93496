package engine

import (
	"os"
	"testing"
	"time"

	"vacate/internal/extent"
	"vacate/internal/ipc"
	"vacate/internal/nbdclient"
)

// BenchmarkTakeOver measures a take-over of 64 leases of 100 GiB, of which a
// quarter of the blocks are written, without processes: until the table is read,
// and until the first read is answered. test/bench measures the whole.
func BenchmarkTakeOver(b *testing.B) {
	const leases, size = 64, int64(100 << 30)
	h := newHost(b)
	path, uuid := h.newFile(h.dir)
	check(b, os.Truncate(path, leases*size+1<<30))
	info, err := do[ipc.DriveInfo](h, ipc.MethodEnroll, ipc.EnrollRequest{Path: path, Node: nodeID, UUID: uuid, Epoch: 1}, nil)
	check(b, err)
	_, err = h.openDriveAt(path, uuid, 1, 1)
	check(b, err)
	each := uint32(size / info.ExtentBytes)
	var socket string
	for i := range leases {
		socket = h.open(ipc.LeaseOpenRequest{
			Lease: leaseID(i), Slot: i, SizeBytes: size, LogicalBlock: 512, UID: uint32(os.Geteuid()),
			Pieces: []extent.Piece{{Drive: uuid, Range: extent.Range{First: uint32(i) * each, Count: each}}},
		})
		bits := h.tenancy(leaseID(i)).bits
		for j := range bits.Summary() {
			bits.Summary()[j].Store(0x1111111111111111)
		}
		for w := 0; w < len(bits.Words()); w += 8 {
			if w/512%4 == 0 {
				bits.Words()[w].Store(^uint64(0))
			}
		}
	}
	buf := make([]byte, 4096)
	var scanned, served time.Duration
	for b.Loop() {
		b.StopTimer()
		h.crash()()
		b.StartTimer()
		began := time.Now()
		h.takeOver()
		scanned += time.Since(began)
		c, err := nbdclient.Dial(socket, nbdclient.Options{})
		check(b, err)
		check(b, c.ReadFlags(buf, 0, 0))
		served += time.Since(began)
		c.Abort()
	}
	b.ReportMetric(scanned.Seconds()*1e3/float64(b.N), "ms-scanned")
	b.ReportMetric(served.Seconds()*1e3/float64(b.N), "ms-served")
}
