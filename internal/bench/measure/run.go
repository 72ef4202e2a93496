package measure

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"vacate/internal/bench"
	"vacate/internal/scratch"
)

// Config says how to run what was planned.
type Config struct {
	Self string // path of the vacate binary, which serves the volume
	Plan bench.Plan
	Tell func(bench.Event) // is called before each step, and within long ones
}

// Run carries out a plan in which nothing is refused. It ends with
// [ErrInterrupted] when ctx does, within about a second, and has then removed what
// it had made. Any other error comes with a report that is not complete.
func Run(ctx context.Context, cfg Config) (bench.Report, error) {
	if f := cfg.Plan.Refused(); len(f) > 0 {
		return bench.Report{}, &Error{Code: 4, Text: f[0].Text}
	}
	x := run{Config: cfg, teller: newTeller(&cfg.Plan, cfg.Tell)}
	x.report = bench.Report{StartedAt: time.Now().UTC().Format("2006-01-02T15:04:05.000Z07:00"), Host: host(), Each: cfg.Plan.Each}
	err := x.all(ctx)
	if ctx.Err() != nil {
		err = ErrInterrupted // and whatever that has made fail
	}
	return x.report, errors.Join(err, x.end())
}

// A run is a plan being carried out.
type run struct {
	Config
	*teller
	report bench.Report
	ends   []func() error // what is to be done at the end, the last first
}

func (x *run) atEnd(f func() error) { x.ends = append(x.ends, f) }

// end undoes all that was done.
func (x *run) end() error {
	var errs []error
	for _, f := range slices.Backward(x.ends) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

func (x *run) all(ctx context.Context) error {
	x.at(stepStart, 0)
	m, err := newMedium(&x.Plan)
	if err != nil {
		return err
	}
	taken := !m.device // of a device that was not taken nothing was changed
	x.atEnd(func() error {
		if !taken {
			return nil
		}
		return m.clean()
	})
	dir, err := os.MkdirTemp("", "vacate-bench-")
	if err != nil {
		return err
	}
	x.atEnd(func() error { return os.RemoveAll(dir) })
	d, err := scratch.Start(ctx, x.Self, dir, m.within)
	if err != nil {
		return err
	}
	x.atEnd(func() error { return d.End(ctx) })
	// Not to be interrupted: whether it was taken must be known at the end.
	dr, err := d.Enroll(context.WithoutCancel(ctx), m.path)
	if err != nil {
		return err
	}
	taken = true
	l, err := d.Open(ctx, "bench", m.path, x.Plan.SpanBytes)
	if err != nil {
		return err
	}
	s, err := x.sides(m, dr, l)
	if err != nil {
		return err
	}
	if err := errors.Join(s.fill(ctx, x), ctx.Err()); err != nil {
		return err
	}
	if err := s.compare(ctx, x); err != nil {
		return err
	}
	x.at(len(x.steps)-1, 0)
	x.report.Processor, err = processor()
	return err
}
