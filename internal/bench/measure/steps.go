package measure

import (
	"fmt"
	"time"

	"vacate/internal/bench"
)

// A step is a part of a run whose length is planned.
type step struct {
	what string
	long time.Duration
}

// Lengths of steps that only depend on the machine.
const (
	startTakes = time.Second
	speedTakes = 300 * time.Millisecond
)

// Steps are known by their place: first the start and the two fills, then the
// workloads, then the processor.
const (
	stepStart = iota
	stepFillRaw
	stepFillVolume
	stepRows
)

// steps are what a run does, in order, and how long it takes in all.
func steps(p *bench.Plan) (all []step, total time.Duration) {
	fill := time.Duration(float64(p.SpanBytes) / assumed * float64(time.Second))
	mib := p.SpanBytes >> 20
	all = []step{
		{"starting a daemon", startTakes},
		{fmt.Sprintf("filling %d MiB, raw", mib), fill},
		{fmt.Sprintf("filling %d MiB, volume", mib), fill},
	}
	for _, w := range bench.Workloads() {
		all = append(all, step{w.String(), 2 * p.Each})
	}
	all = append(all, step{"processor", speedTakes * time.Duration(len(speeds()))})
	for _, s := range all {
		total += s.long
	}
	return all, total
}

// A teller tells of steps and keeps count of the time.
type teller struct {
	steps []step
	total time.Duration
	tell  func(bench.Event)
}

func newTeller(p *bench.Plan, tell func(bench.Event)) *teller {
	t := &teller{tell: tell}
	t.steps, t.total = steps(p)
	return t
}

// at tells that step i has begun, or has done a part of itself, 0 ≤ part ≤ 1.
func (t *teller) at(i int, part float64) {
	var begin time.Duration
	for _, s := range t.steps[:i] {
		begin += s.long
	}
	s := t.steps[i]
	t.tell(bench.Event{What: s.what, Begin: begin + time.Duration(part*float64(s.long)), End: begin + s.long, Total: t.total})
}
