package xts

import (
	"slices"
	"time"
)

// speedUnit is the data unit that SpeedOf measures with: a block of a lease.
const speedUnit = 4096

// SpeedOf measures how fast the implementation called name encrypts, in bytes a
// second, in data units of 4096 bytes: it encrypts the whole units of buf in place,
// over and over, for about d (at least twice). The result is 0 if this machine has
// no such implementation ([Implementations]), or buf no whole unit.
//
// The key is a constant, no secret; buf holds noise afterwards.
func SpeedOf(name string, buf []byte, d time.Duration) (bytesPerSecond float64) {
	i := slices.IndexFunc(usable, func(k kernel) bool { return k.String() == name })
	buf = buf[:len(buf)/speedUnit*speedUnit]
	if i < 0 || len(buf) == 0 {
		return 0
	}
	k, s, key := usable[i], new(Schedule), new([KeySize]byte)
	key[0] = 1
	k.expand(s, key)
	k.encrypt(s, buf, buf, speedUnit, 0) // pages, caches, clock

	const stretch = 256 << 10 // between two looks at the clock
	rounds, done := max(1, stretch/len(buf)), 0.0
	start := time.Now()
	for {
		for range rounds {
			k.encrypt(s, buf, buf, speedUnit, 0)
		}
		done += float64(rounds) * float64(len(buf))
		if took := time.Since(start); took >= d {
			return done / took.Seconds()
		}
	}
}
