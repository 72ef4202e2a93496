package virtioblk

// A cursor is a place in the slices of a chain. What it copies may fault.
type cursor struct {
	list [][]byte
	at   int // slice
	off  int // bytes into it
}

// here returns what is left of the slice that the cursor is in, or of the next one
// that has something; nil at the end.
func (c *cursor) here() []byte {
	for c.at < len(c.list) {
		if b := c.list[c.at][c.off:]; len(b) > 0 {
			return b
		}
		c.at++
		c.off = 0
	}
	return nil
}

// skip moves on by n bytes. REQUIRES: so many are left.
func (c *cursor) skip(n int) {
	for n > 0 {
		step := min(n, len(c.here()))
		if step == 0 {
			panic("virtioblk: cursor beyond its chain")
		}
		c.off += step
		n -= step
	}
}

// copyOut copies to p, moves on, and returns how many bytes there were.
func (c *cursor) copyOut(p []byte) (n int) {
	for n < len(p) {
		b := c.here()
		if b == nil {
			break
		}
		m := copy(p[n:], b)
		c.off += m
		n += m
	}
	return n
}

// copyIn copies p to where the cursor is, moves on, and returns how much had room.
func (c *cursor) copyIn(p []byte) (n int) {
	for n < len(p) {
		b := c.here()
		if b == nil {
			break
		}
		m := copy(b, p[n:])
		c.off += m
		n += m
	}
	return n
}
