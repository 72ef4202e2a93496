package measure

import (
	"context"
	"fmt"
	"math"
	"syscall"
	"time"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/bench"
	"vacate/internal/nbdclient"
	"vacate/internal/sys"
)

// sides are the two that are compared, on one drive.
type sides struct {
	raw    raw
	volume *nbdclient.Client
	span   int64 // bytes that either has
}

// sides gives the raw side what lies behind the lease, and connects to the lease.
func (x *run) sides(m *medium, dr *vacatev1.Drive, l *vacatev1.Lease) (*sides, error) {
	var last uint32
	for _, p := range l.GetPieces() {
		last = max(last, p.GetFirstExtent()+p.GetExtents())
	}
	s := &sides{raw: raw{off: margin + int64(last)*dr.GetExtentBytes(), engine: rawEngine(dr.GetDirect())}}
	end := margin + int64(dr.GetExtents())*dr.GetExtentBytes()
	if m.device {
		end = min(end, m.area) // what is known to be empty
	}
	s.span = min(x.Plan.SpanBytes, end-s.raw.off)
	if last == 0 || s.span < bench.MinSpan/2 {
		return nil, fmt.Errorf("the lease has the extents up to %d of %d of drive %s: nothing is left beside it", last, dr.GetExtents(), m.path)
	}
	s.raw.span = s.span
	mode := sys.ReadWrite
	if dr.GetDirect() {
		mode |= sys.Direct
	}
	var err error
	if s.raw.fd, err = sys.OpenStorage(m.path, mode); err != nil {
		return nil, err
	}
	x.atEnd(func() error { return sys.CloseFD(s.raw.fd) })
	if len(l.GetExports()) == 0 {
		return nil, fmt.Errorf("lease %s has no export", l.GetId())
	}
	if s.volume, err = nbdclient.Dial(l.GetExports()[0].GetUri(), nbdclient.Options{}); err != nil {
		return nil, err
	}
	x.atEnd(s.volume.Abort)
	x.report.Drive = bench.Drive{
		Path: x.Plan.Path, Kind: x.Plan.Kind, Model: dr.GetModel(), Engine: dr.GetEngine(), EngineWhy: dr.GetEngineWhy(),
		RawEngine: s.raw.engine, Direct: dr.GetDirect(), Flush: dr.GetFlush(), SpanBytes: s.span,
	}
	return s, nil
}

// fill writes what either side will read, and all that it will write: the first
// write of a file's block, or of a volume's, is another thing than the next.
func (s *sides) fill(ctx context.Context, x *run) error {
	buf, err := sys.MapAnonymous(1 << 20)
	if err != nil {
		return err
	}
	defer sys.Unmap(buf) //nolint:errcheck // nothing is in flight any more
	noise(buf, 1)
	write := func(p []byte, off int64) error {
		n, errno := sys.Pwrite(s.raw.fd, p, s.raw.off+off)
		if errno == 0 && n != len(p) {
			errno = syscall.EIO
		}
		if errno != 0 {
			return fmt.Errorf("writing to %s, %d bytes at %d: %w", x.Plan.Path, len(p), s.raw.off+off, errno)
		}
		return nil
	}
	if err := s.each(ctx, x, stepFillRaw, buf, write); err != nil {
		return err
	}
	if errno := sys.Fdatasync(s.raw.fd); errno != 0 {
		return fmt.Errorf("flushing %s: %w", x.Plan.Path, errno)
	}
	write = func(p []byte, off int64) error {
		_, err := s.volume.WriteAt(p, off)
		return err
	}
	if err := s.each(ctx, x, stepFillVolume, buf, write); err != nil {
		return err
	}
	return s.volume.Flush()
}

// each writes buf over all of a side.
func (s *sides) each(ctx context.Context, x *run, step int, buf []byte, write func(p []byte, off int64) error) error {
	for off := int64(0); off < s.span && ctx.Err() == nil; off += int64(len(buf)) {
		if off%(64<<20) == 0 {
			x.at(step, float64(off)/float64(s.span))
		}
		if err := write(buf[:min(int64(len(buf)), s.span-off)], off); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// slicesOf divides the time of a workload, so that the sides take turns and an
// interrupt does not wait for long.
func slicesOf(d time.Duration) (n int, each time.Duration) {
	n = max(3, int(math.Ceil(d.Seconds())))
	return n, d / time.Duration(n)
}

// compare runs each workload on both sides, in turn.
func (s *sides) compare(ctx context.Context, x *run) error {
	for i, w := range bench.Workloads() {
		var raw, volume side
		n, each := slicesOf(x.Plan.Each)
		for turn := range n {
			if err := ctx.Err(); err != nil {
				return err
			}
			x.at(stepRows+i, float64(turn)/float64(n))
			seed := uint64(i*n + turn)
			t, err := s.raw.run(w, each, seed)
			if err != nil {
				return fmt.Errorf("%v, raw: %w", w, err)
			}
			raw.raw(t)
			got, err := load(w, each, s.span, seed).Run(s.volume)
			if err != nil {
				return fmt.Errorf("%v, on the volume: %w", w, err)
			}
			volume.volume(got)
		}
		x.report.Rows = append(x.report.Rows, bench.NewRow(w, raw.figure(), volume.figure()))
		x.report.CountErrors()
	}
	return nil
}

// load is w as the client knows it.
func load(w bench.Workload, d time.Duration, span int64, seed uint64) nbdclient.Load {
	l := nbdclient.Load{Depth: w.Depth, BlockSize: w.BlockBytes, Span: span, Duration: d, Seed: seed}
	switch {
	case w.Random && w.Write:
		l.Pattern = nbdclient.RandomWrite
	case w.Random:
		l.Pattern = nbdclient.RandomRead
	case w.Write:
		l.Pattern = nbdclient.SequentialWrite
	default:
		l.Pattern = nbdclient.SequentialRead
	}
	return l
}
