//go:build !purego

package xts

import (
	"encoding/binary"
	"slices"
	"testing"
)

func TestKernels(t *testing.T) {
	tests := []struct {
		name string
		in   features
		want []kernel
	}{
		{"no AES", features{}, []kernel{kernelGeneric}},
		{"no AES, whatever else", features{vaes: true, avx512: true}, []kernel{kernelGeneric}},
		{"Haswell", features{aes: true}, []kernel{kernelAESNI, kernelGeneric}},
		{"Zen 3", features{aes: true, vaes: true}, []kernel{kernelVAES, kernelAESNI, kernelGeneric}},
		{
			"Zen 4", features{aes: true, vaes: true, avx512: true},
			[]kernel{kernelAVX512, kernelVAES, kernelAESNI, kernelGeneric},
		},
		{
			"Ice Lake", features{aes: true, vaes: true, avx512: true, slowZMM: true},
			[]kernel{kernelVAES, kernelAVX512, kernelAESNI, kernelGeneric},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.in.kernels(); !slices.Equal(got, tt.want) {
				t.Errorf("%+v: %v, want %v", tt.in, got, tt.want)
			}
		})
	}
}

func TestLowersClock(t *testing.T) {
	for _, tt := range []struct {
		name, vendor string
		signature    uint32
		want         bool
	}{
		{"Ice Lake-SP", "GenuineIntel", 0x606a6, true},
		{"Tiger Lake", "GenuineIntel", 0x806c1, true},
		{"Rocket Lake", "GenuineIntel", 0xa0671, false},
		{"Sapphire Rapids", "GenuineIntel", 0x806f8, false},
		{"Zen 4", "AuthenticAMD", 0xa60f12, false},
		{"the number of Ice Lake, of another vendor", "AuthenticAMD", 0x606a6, false},
	} {
		var vendor [3]uint32
		for i := range vendor {
			vendor[i] = binary.LittleEndian.Uint32([]byte(tt.vendor[4*i:]))
		}
		if got := lowersClock(vendor, tt.signature); got != tt.want {
			t.Errorf("%s: lowersClock = %v, want %v", tt.name, got, tt.want)
		}
	}
}
