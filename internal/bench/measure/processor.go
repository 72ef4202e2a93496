package measure

import (
	"fmt"
	"time"

	"vacate/internal/bench"
	"vacate/internal/sys"
	"vacate/internal/xts"
)

// A speed is something that the processor does, and how fast.
type speed struct {
	name string
	used bool // by volumes, here
	of   func(d time.Duration) (bytesPerSecond float64, err error)
}

// speeds are what is measured of the processor.
func speeds() []speed {
	var all []speed
	for _, name := range xts.Implementations() {
		all = append(all, speed{"AES-256-XTS, " + name, name == xts.Implementation(), func(d time.Duration) (float64, error) { return cipherSpeed(name, d) }})
	}
	for _, n := range []int{128 << 10, 64 << 20} {
		where := "in cache"
		if n > 1<<20 {
			where = "in memory"
		}
		all = append(all, speed{"copy, " + where, false, func(d time.Duration) (float64, error) { return copySpeed(n, d) }})
	}
	return all
}

// processor measures all speeds.
func processor() ([]bench.Speed, error) {
	var all []bench.Speed
	for _, s := range speeds() {
		v, err := s.of(speedTakes)
		if err != nil {
			return nil, fmt.Errorf("measuring %s: %w", s.name, err)
		}
		all = append(all, bench.Speed{Name: s.name, Used: s.used, BytesPerSecond: v})
	}
	return all, nil
}

// cipherSpeed encrypts 128 KiB at a time, as volumes do.
func cipherSpeed(name string, d time.Duration) (float64, error) {
	v := xts.SpeedOf(name, make([]byte, 128<<10), d)
	if v == 0 {
		return 0, fmt.Errorf("this machine has no implementation %q", name)
	}
	return v, nil
}

// copySpeed copies n bytes at a time, of memory that is never the same address
// twice where n is larger than caches.
func copySpeed(n int, d time.Duration) (float64, error) {
	buf, err := sys.MapAnonymous(2 * n)
	if err != nil {
		return 0, err
	}
	defer sys.Unmap(buf) //nolint:errcheck // only measured with
	copy(buf[:n], buf[n:])
	copy(buf[n:], buf[:n])
	const chunk = 128 << 10 // what a request has at most
	at := 0
	return rate(chunk, d, func() {
		copy(buf[at:at+chunk], buf[n+at:])
		if at += chunk; at == n {
			at = 0
		}
	}), nil
}

// rate calls f, which handles n bytes, until d has passed.
func rate(n int, d time.Duration, f func()) (bytesPerSecond float64) {
	f()
	start, done := time.Now(), 0
	for {
		for range 16 {
			f()
		}
		done += 16 * n
		if took := time.Since(start); took >= d {
			return float64(done) / took.Seconds()
		}
	}
}
