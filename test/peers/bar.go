package main

import (
	"fmt"
	"strings"
)

// A bar is what a row must reach.
type bar struct {
	what   string // what is held against what
	limit  float64
	atMost bool   // limit is the most, not the least
	format string // of value and limit; default "%.2f×"
	value  func(r *result) (v float64, ok bool)

	ours  string   // whose processor time is held against that of the fastest peer, too; may be ""
	peers []string // likewise
}

// A verdict is a bar, held against a result.
type verdict struct {
	What    string  `json:"what"`
	Value   float64 `json:"value"`
	Limit   float64 `json:"limit"`
	AtMost  bool    `json:"atMost,omitempty"`
	Format  string  `json:"format"`
	Applies bool    `json:"applies"`
	Reached bool    `json:"reached"`
	ByCPU   float64 `json:"byCPU,omitempty"` // the same ratio in the servers' processor time, where both were measured
}

func (b bar) judge(r *result) verdict {
	v := verdict{What: b.what, Limit: b.limit, AtMost: b.atMost, Format: b.format}
	if v.Format == "" {
		v.Format = "%.2f×"
	}
	v.Value, v.Applies = b.value(r)
	v.Reached = v.Applies && (v.Value >= v.Limit) != (v.AtMost && v.Value != v.Limit)
	mine, _, _ := spread(r.find(b.ours), cpu)
	theirs, _, _ := spread(r.find(r.fastest(b.peers)), cpu)
	if mine > 0 && theirs > 0 {
		v.ByCPU = theirs / mine
	}
	return v
}

func (v verdict) String() string {
	if !v.Applies {
		return fmt.Sprintf("%s: does not apply here", v.What)
	}
	word, reached := "at least", "reached"
	if v.AtMost {
		word = "at most"
	}
	if !v.Reached {
		reached = "NOT REACHED"
	}
	text := fmt.Sprintf("%s: "+v.Format+", bar %s "+v.Format+": %s", v.What, v.Value, word, v.Limit, reached)
	if v.ByCPU > 0 {
		text += fmt.Sprintf(" (by the servers' processor time %.2f×)", v.ByCPU)
	}
	return text
}

// times is a bar on the ratio of two contestants' medians; of several peers, the
// fastest counts.
func times(limit float64, ours string, theirs ...string) bar {
	what := ours + " / " + theirs[0]
	if len(theirs) > 1 {
		what = ours + " / the fastest of: " + strings.Join(theirs, "; ")
	}
	return bar{what: what, limit: limit, ours: ours, peers: theirs, value: func(r *result) (float64, bool) {
		mine, best := r.median(ours), r.median(r.fastest(theirs))
		if mine == 0 || best == 0 {
			return 0, false // there is no such contestant here
		}
		return mine / best, true
	}}
}

// fastest is the name of the fastest of some contestants; "" if none is there.
func (r *result) fastest(names []string) string {
	best, at := 0.0, ""
	for _, name := range names {
		if m := r.median(name); m > best {
			best, at = m, name
		}
	}
	return at
}

// serverTime bounds the processor time that a request costs the server.
func serverTime(micros float64) bar {
	return bar{what: "Vacate's processor time a request", limit: micros, atMost: true, format: "%.2f µs", value: func(r *result) (float64, bool) {
		ns, _, _ := spread(r.find("Vacate"), cpu)
		return ns / 1e3, ns > 0
	}}
}

// slowest bounds how far a volume may fall behind the mean of all.
func slowest(name string, limit float64) bar {
	return bar{what: "the slowest of " + name + " / their mean", limit: limit, value: func(r *result) (float64, bool) {
		v, _, _ := spread(r.find(name), func(s sample) float64 { return s.Least })
		return v, v > 0
	}}
}

// mapCost bounds what the block map takes of the server's processor time.
var mapCost = bar{what: "the block map's cost", limit: 2, atMost: true, format: "%.1f %%", value: func(r *result) (float64, bool) {
	with, without := r.find("with the map"), r.find("without a map")
	ratios := make([]sample, len(with))
	for i := range with {
		ratios[i].Rate = 100 * (with[i].CPU/without[i].CPU - 1)
	}
	cost, _, _ := spread(ratios, rate)
	return max(0, cost), true
}}

// noAllocations wants none, to a thousandth.
func noAllocations(name string) bar {
	return bar{what: "allocations a request, " + name, atMost: true, format: "%.3f", value: func(r *result) (float64, bool) {
		return r.median(name), true
	}}
}
