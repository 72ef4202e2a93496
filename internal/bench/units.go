package bench

import (
	"fmt"
	"strconv"
	"time"
)

// FormatRate is bytes a second for people, in powers of 1000, as drives are sold
// by: "2.31 GB/s".
func FormatRate(bytes float64) string {
	for _, u := range []struct {
		name string
		size float64
	}{{"GB/s", 1e9}, {"MB/s", 1e6}, {"kB/s", 1e3}} {
		if bytes >= u.size*0.9995 {
			return digits(bytes/u.size) + " " + u.name
		}
	}
	return digits(bytes) + " B/s"
}

// FormatCount is a number of requests a second for people: "412", "88.2 k".
func FormatCount(n float64) string {
	switch {
	case n >= 999.5e3:
		return digits(n/1e6) + " M"
	case n >= 9995:
		return digits(n/1e3) + " k"
	}
	return strconv.FormatFloat(n, 'f', 0, 64)
}

// FormatTime is a duration of a request for people, with three digits.
func FormatTime(ns int64) string {
	switch v := float64(ns); {
	case v >= 999.5e6:
		return digits(v/1e9) + " s"
	case v >= 999.5e3:
		return digits(v/1e6) + " ms"
	case v >= 999.5:
		return digits(v/1e3) + " µs"
	}
	return strconv.FormatInt(ns, 10) + " ns"
}

// FormatRatio is "0.97×", or "–" for none.
func FormatRatio(r float64) string {
	switch {
	case r == 0:
		return "–"
	case r >= 100:
		return fmt.Sprintf("%.0f×", r)
	case r >= 10:
		return fmt.Sprintf("%.1f×", r)
	}
	return fmt.Sprintf("%.2f×", r)
}

// FormatLeft is a time to wait for people: "45 s", "2 min 5 s".
func FormatLeft(d time.Duration) string {
	s := int64((d + time.Second - 1) / time.Second)
	if s < 60 {
		return fmt.Sprintf("%d s", s)
	}
	return fmt.Sprintf("%d min %d s", s/60, s%60)
}

// digits are three digits of v, 0 ≤ v, or more before the point.
func digits(v float64) string {
	switch {
	case v >= 99.95:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 9.995:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}
