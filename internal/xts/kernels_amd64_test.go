//go:build !purego

package xts

// assemblyCalls are calls of the assembly itself: Go code that ran between it and
// the look at the registers could use them for something else.
func (c *residueCase) assemblyCalls() map[string]func() {
	blocks, units := c.unit/blockSize, len(c.plain)/c.unit
	m := map[string]func(){"clearVectors": clearVectors}
	for _, k := range usable {
		enc, dec := encryptAESNI, decryptAESNI
		switch k {
		case kernelGeneric:
			continue
		case kernelVAES:
			enc, dec = encryptVAES, decryptVAES
		case kernelAVX512:
			enc, dec = encryptAVX512, decryptAVX512
		case kernelAESNI:
			m["assembly expand"] = func() { expandAESNI(c.s, c.key) }
		}
		m["assembly encrypt "+k.String()] = func() { enc(c.s, &c.buf[0], &c.plain[0], blocks, units, c.first) }
		m["assembly decrypt "+k.String()] = func() { dec(c.s, &c.buf[0], &c.buf[0], blocks, units, c.first) }
	}
	return m
}
