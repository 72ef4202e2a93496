package xts

import (
	"fmt"
	"testing"
)

func BenchmarkEncrypt(b *testing.B) {
	for _, im := range impls {
		b.Run(im.name, func(b *testing.B) { bench(b, im.encrypt) })
	}
}

func BenchmarkDecrypt(b *testing.B) {
	for _, im := range impls {
		b.Run(im.name, func(b *testing.B) { bench(b, im.decrypt) })
	}
}

func bench(b *testing.B, f func(s *Schedule, dst, src []byte, unitSize int, first uint64)) {
	r := newRand(b)
	s := newSchedule(b, randomKey(r))
	for _, size := range []int{4 << 10, 128 << 10} {
		for _, where := range []string{"copy", "inplace"} {
			b.Run(fmt.Sprintf("%dKiB/%s", size>>10, where), func(b *testing.B) {
				src, dst := randomBytes(r, size), make([]byte, size)
				if where == "inplace" {
					dst = src
				}
				b.SetBytes(int64(size))
				var first uint64
				for b.Loop() {
					f(s, dst, src, 4096, first)
					first += 32
				}
			})
		}
	}
}

func BenchmarkExpand(b *testing.B) {
	key, s := randomKey(newRand(b)), new(Schedule)
	for b.Loop() {
		if err := s.Expand(key); err != nil {
			b.Fatal(err)
		}
	}
}
