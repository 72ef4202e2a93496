package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"vacate/internal/nbdclient"
)

// A sample is one measurement of one contestant.
type sample struct {
	Rate   float64       `json:"rate"`             // in the row's unit
	CPU    float64       `json:"cpu,omitempty"`    // ns of the server's processor time a request
	Client float64       `json:"client,omitempty"` // part of its core that the client was busy
	P50    time.Duration `json:"p50,omitempty"`    // of a request
	P999   time.Duration `json:"p999,omitempty"`
	Least  float64       `json:"least,omitempty"` // several volumes: the slowest, as part of the mean
}

// A contestant is one line of a row.
type contestant struct {
	name    string
	plain   bool // keeps what it is given as it is
	measure func(round int) (sample, error)
}

// A row is a comparison. Its first contestant is Vacate.
type row struct {
	name, title, unit string
	note              string // what a reader must know about it
	longer            int    // how many times the span each measurement takes; 0: 1
	rounds            int    // how many times the rounds there are, each as much shorter; 0: 1
	contestants       func(w *world) ([]contestant, error)
	bars              []bar
	stages            bool // the lines are parts of a whole, or sums of them: no contestants
}

// A result is a row that was measured.
type result struct {
	row     row
	names   []string // of the contestants
	plain   []bool
	samples [][]sample // by contestant, then by round
	busy    float64    // part of the machine that something else used when it began
}

// measure measures a row, each contestant once a round.
func measure(w *world, r row, o options) (*result, error) {
	w.o.span = o.span * time.Duration(max(1, r.longer)) / time.Duration(max(1, r.rounds))
	rounds := o.rounds * max(1, r.rounds)
	all, err := r.contestants(w)
	if err != nil {
		return nil, err
	}
	res := &result{row: r, samples: make([][]sample, len(all)), busy: elsewhere()}
	for _, c := range all {
		res.names, res.plain = append(res.names, c.name), append(res.plain, c.plain)
	}
	for round := -1; round < rounds; round++ { // the first does not count
		for i, c := range all {
			s, err := c.measure(round)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			if round >= 0 {
				res.samples[i] = append(res.samples[i], s)
			}
		}
	}
	return res, nil
}

// A job is a load on a server, and where both run.
type job struct {
	load        nbdclient.Load
	connections int  // default 1
	loose       bool // not pinned
	simple      bool // without structured replies
	bytes       bool // the rate is in bytes, not requests
}

// on returns the measurement of the job on a server; on all of them at once, if
// there are several, which one process serves.
func (j job) on(w *world, servers ...*server) func(round int) (sample, error) {
	return func(round int) (sample, error) {
		j.load.Duration, j.load.Seed = w.o.span, uint64(round+1)
		if round < 0 {
			j.load.Duration = w.o.span / 4
		}
		server, client := &w.cores.server, &w.cores.client
		if j.loose {
			server, client = &w.cores.all, &w.cores.all
		}
		if err := pinProcess(servers[0].pid, server); err != nil {
			return sample{}, err
		}
		return j.run(w, servers, client)
	}
}

// run runs the load over all connections at once.
func (j job) run(w *world, servers []*server, cpus *cpuSet) (got sample, err error) {
	conns := make([]*nbdclient.Client, max(len(servers), j.connections))
	results := make([]nbdclient.Result, len(conns))
	busy := make([]time.Duration, len(conns))
	errs := make([]error, len(conns))
	for i := range conns {
		if conns[i], err = nbdclient.Dial(servers[i%len(servers)].target, nbdclient.Options{SimpleReplies: j.simple}); err != nil {
			return got, err
		}
		defer func() { err = errors.Join(err, conns[i].Close()) }()
	}
	before, err := cpuTime(servers[0].pid)
	if err != nil {
		return got, err
	}
	var wg sync.WaitGroup
	for i, c := range conns {
		load := j.load
		load.Seed = load.Seed<<8 + uint64(i)
		wg.Go(func() {
			errs[i] = w.cores.onThread(cpus, func() (err error) {
				start := threadTime()
				results[i], err = load.Run(c)
				busy[i] = threadTime() - start
				return err
			})
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return got, err
	}
	ns, err := cpuSince(servers[0].pid, before)
	if err != nil {
		return got, err
	}
	return j.sum(results, busy, ns)
}

// sum makes one sample of what all connections did.
func (j job) sum(results []nbdclient.Result, busy []time.Duration, serverNs int64) (got sample, err error) {
	requests, least := int64(0), math.Inf(1)
	for i, r := range results {
		if r.Errors > 0 {
			return got, fmt.Errorf("%d of %d requests failed: first: %w", r.Errors, r.Requests, r.FirstError)
		}
		requests += r.Requests
		got.Client += busy[i].Seconds() / r.Elapsed.Seconds()
		rate := r.PerSecond()
		if j.bytes {
			rate = float64(r.Bytes) / r.Elapsed.Seconds()
		}
		got.Rate += rate
		least = min(least, rate)
		got.P50, got.P999 = max(got.P50, r.P50), max(got.P999, r.P999)
	}
	if requests == 0 {
		return got, errors.New("no request was answered")
	}
	if len(results) > 2 {
		got.Least = least / (got.Rate / float64(len(results)))
	}
	got.CPU = float64(serverNs) / float64(requests)
	return got, nil
}

// threadTime is the processor time of the calling thread.
func threadTime() time.Duration {
	const rusageThread = 1
	var u syscall.Rusage
	if err := syscall.Getrusage(rusageThread, &u); err != nil {
		return 0
	}
	runtime.KeepAlive(&u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// spread is the median of what of tells of the samples, and the least and most.
func spread(all []sample, of func(sample) float64) (median, least, most float64) {
	v := make([]float64, len(all))
	for i, s := range all {
		v[i] = of(s)
	}
	if len(v) == 0 {
		return 0, 0, 0
	}
	slices.Sort(v)
	median = v[len(v)/2]
	if len(v)%2 == 0 {
		median = (median + v[len(v)/2-1]) / 2
	}
	return median, v[0], v[len(v)-1]
}

func rate(s sample) float64 { return s.Rate }

func cpu(s sample) float64 { return s.CPU }

// find returns the samples of a contestant.
func (r *result) find(name string) []sample {
	if i := slices.Index(r.names, name); i >= 0 {
		return r.samples[i]
	}
	return nil
}

// median is the median rate of a contestant; 0 if there is none of that name.
func (r *result) median(name string) float64 {
	all := r.find(name)
	if len(all) == 0 {
		return 0
	}
	m, _, _ := spread(all, rate)
	return m
}

// print prints the row as text.
func (r *result) print(out io.Writer) {
	fmt.Fprintf(out, "\n%s: %s\n", r.row.name, r.row.title)
	for i, name := range r.names {
		median, least, most := spread(r.samples[i], rate)
		fmt.Fprintf(out, "  %-30s %-9s %10s %s (%s–%s)%s\n", name, r.kind(i), quantity(median, r.row.unit), r.row.unit,
			quantity(least, r.row.unit), quantity(most, r.row.unit), r.beside(i))
	}
	if r.busy > quiet {
		fmt.Fprintf(out, "  %.0f %% of the machine was busy with something else: measure again\n", 100*r.busy)
	}
	for _, b := range r.row.bars {
		fmt.Fprintf(out, "  %s\n", b.judge(r))
	}
}

// kind says what becomes of what a contestant is given.
func (r *result) kind(i int) string {
	switch {
	case r.row.stages:
		return ""
	case r.plain[i]:
		return "plain"
	}
	return "encrypted"
}

// beside tells what else was measured of a contestant.
func (r *result) beside(i int) string {
	text := ""
	add := func(format string, of func(sample) float64, scale float64) {
		if v, _, _ := spread(r.samples[i], of); v > 0 {
			text += fmt.Sprintf(format, v/scale)
		}
	}
	add("  server %.2f µs", cpu, 1e3)
	add("  client %.0f %%", func(s sample) float64 { return s.Client }, 0.01)
	add("  p50 %.1f µs", func(s sample) float64 { return float64(s.P50) }, 1e3)
	add("  p99.9 %.0f µs", func(s sample) float64 { return float64(s.P999) }, 1e3)
	add("  slowest %.2f of the mean", func(s sample) float64 { return s.Least }, 1)
	return text
}

// quantity writes a value of a unit with what digits are of use.
func quantity(v float64, unit string) string {
	switch unit {
	case "GB/s":
		return fmt.Sprintf("%.2f", v/1e9)
	case "% of a core":
		return fmt.Sprintf("%.2f", v)
	case "allocations":
		return fmt.Sprintf("%.3f", v)
	}
	return fmt.Sprintf("%.0f", v)
}
