package xts

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"
)

func TestWeakKey(t *testing.T) {
	r := newRand(t)
	key := randomKey(r)
	copy(key[32:], key[:32])
	s := newSchedule(t, randomKey(r))
	if err := s.Expand(key); !errors.Is(err, ErrWeakKey) {
		t.Fatalf("Expand of a key with equal halves: %v, want ErrWeakKey", err)
	}
	if *s != (Schedule{}) {
		t.Error("ErrWeakKey left something in the schedule")
	}
	for bit := range 256 { // one bit makes the difference, wherever it is
		key[32+bit/8] ^= 1 << (bit % 8)
		if err := s.Expand(key); err != nil {
			t.Fatalf("halves that differ in bit %d: %v", bit, err)
		}
		key[32+bit/8] ^= 1 << (bit % 8)
	}
}

func TestMisuse(t *testing.T) {
	s := newSchedule(t, randomKey(newRand(t)))
	buf := make([]byte, 256)
	none := new(Schedule)
	tests := []struct {
		name     string
		s        *Schedule
		dst, src []byte
		unitSize int
		first    uint64
		want     string
	}{
		{"unit of 0", s, buf, buf, 0, 0, "data unit"},
		{"unit of -16", s, buf, buf, -16, 0, "data unit"},
		{"unit of 8", s, buf, buf, 8, 0, "data unit"},
		{"unit of 24", s, buf[:240], buf[:240], 24, 0, "data unit"},
		{"unit over the maximum", s, nil, nil, MaxUnit + 16, 0, "data unit"},
		{"part of a unit", s, buf[:200], buf[:200], 32, 0, "whole number"},
		{"short output", s, buf[:128], buf[128:240], 16, 0, "length"},
		{"long output", s, buf[128:], buf[:96], 16, 0, "length"},
		{"overlap ahead", s, buf[16:160], buf[:144], 16, 0, "overlaps"},
		{"overlap behind", s, buf[:144], buf[1:145], 16, 0, "overlaps"},
		{"numbers pass 64 bits", s, buf, buf, 16, math.MaxUint64 - 14, "64 bits"},
		{"schedule never expanded", none, buf, buf, 16, 0, "schedule is zero"},
		{"schedule never expanded, no data", none, nil, nil, 16, 0, "schedule is zero"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := bytes.Clone(buf)
			mustPanic(t, tt.want, func() { tt.s.Encrypt(tt.dst, tt.src, tt.unitSize, tt.first) })
			mustPanic(t, tt.want, func() { tt.s.Decrypt(tt.dst, tt.src, tt.unitSize, tt.first) })
			if !bytes.Equal(buf, before) {
				t.Error("a refused call wrote to its output")
			}
		})
	}
	slot := make([]byte, 1024)
	mustPanic(t, "overlap", func() { _ = (*Schedule)(slot[32:]).Expand((*[KeySize]byte)(slot)) })
}

func mustPanic(t *testing.T, want string, f func()) {
	t.Helper()
	defer func() {
		t.Helper()
		msg, ok := recover().(string)
		if !ok || !strings.HasPrefix(msg, "xts: ") || !strings.Contains(msg, want) {
			t.Errorf("panic %q, want one that begins with \"xts: \" and has %q", msg, want)
		}
	}()
	f()
}

// TestEmpty: no data is no work, and no error.
func TestEmpty(t *testing.T) {
	s := newSchedule(t, randomKey(newRand(t)))
	s.Encrypt(nil, nil, 4096, math.MaxUint64)
	s.Decrypt([]byte{}, nil, 16, 0)
}

// TestWiped: a schedule that was overwritten with zeros works no more, whatever
// key it held, the zero key included.
func TestWiped(t *testing.T) {
	r := newRand(t)
	zero := new([KeySize]byte)
	zero[63] = 1 // the halves must differ; the data key is zero
	for _, key := range []*[KeySize]byte{randomKey(r), zero} {
		s := newSchedule(t, key)
		buf := randomBytes(r, 4096)
		want := bytes.Clone(buf)
		s.Encrypt(buf, buf, 4096, 1)
		s.Decrypt(buf, buf, 4096, 1)
		if !bytes.Equal(buf, want) {
			t.Fatal("decrypt does not undo encrypt")
		}
		clear(s[:])
		mustPanic(t, "zero", func() { s.Decrypt(buf, buf, 4096, 1) })
		mustPanic(t, "zero", func() { s.Encrypt(buf, buf, 4096, 1) })
	}
}
