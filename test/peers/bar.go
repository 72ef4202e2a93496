package main

import "fmt"

// A bar is what a row must reach.
type bar struct {
	what   string // what is held against what
	limit  float64
	atMost bool   // limit is the most, not the least
	format string // of value and limit; default "%.2f×"
	value  func(r *result) (v float64, ok bool)
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
}

func (b bar) judge(r *result) verdict {
	v := verdict{What: b.what, Limit: b.limit, AtMost: b.atMost, Format: b.format}
	if v.Format == "" {
		v.Format = "%.2f×"
	}
	v.Value, v.Applies = b.value(r)
	v.Reached = v.Applies && (v.Value >= v.Limit) != (v.AtMost && v.Value != v.Limit)
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
	return fmt.Sprintf("%s: "+v.Format+", bar %s "+v.Format+": %s", v.What, v.Value, word, v.Limit, reached)
}

// times is a bar on the ratio of two contestants' medians.
func times(ours, theirs string, limit float64) bar {
	return bar{what: ours + " / " + theirs, limit: limit, value: func(r *result) (float64, bool) {
		a, b := r.find(ours), r.find(theirs)
		if len(a) == 0 || len(b) == 0 {
			return 0, false
		}
		ma, _, _ := spread(a, rate)
		mb, _, _ := spread(b, rate)
		return ma / mb, true
	}}
}
