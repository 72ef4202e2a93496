//go:build !purego

package xts

import (
	"slices"
	"testing"
)

func TestKernels(t *testing.T) {
	if got := kernelsWith(false); !slices.Equal(got, []kernel{kernelGeneric}) {
		t.Errorf("without the AES instructions: %v, want generic alone", got)
	}
	if got := kernelsWith(true); !slices.Equal(got, []kernel{kernelAESCE, kernelGeneric}) {
		t.Errorf("with the AES instructions: %v, want aesce and generic", got)
	}
}

// assemblyCalls are calls of the assembly itself: Go code that ran between it and
// the look at the registers could use them for something else.
func (c *residueCase) assemblyCalls() map[string]func() {
	m := map[string]func(){"clearVectors": clearVectors}
	if !slices.Contains(usable, kernelAESCE) {
		return m
	}
	blocks, units := c.unit/blockSize, len(c.plain)/c.unit
	m["assembly expand"] = func() { expandAESCE(c.s, c.key) }
	m["assembly encrypt"] = func() { encryptAESCE(c.s, &c.buf[0], &c.plain[0], blocks, units, c.first) }
	m["assembly decrypt"] = func() { decryptAESCE(c.s, &c.buf[0], &c.buf[0], blocks, units, c.first) }
	return m
}
