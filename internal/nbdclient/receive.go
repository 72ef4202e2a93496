package nbdclient

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
)

// receive reads the whole reply to r: an [*Error] if the server says that it
// failed, any other error if the reply makes no sense.
func (c *Client) receive(r request) error {
	a := answer{c: c, r: r}
	for !a.done {
		if err := a.message(); err != nil {
			return err
		}
	}
	return a.result()
}

// An answer is a reply that is being received.
type answer struct {
	c       *Client
	r       request
	covered int // bytes of a read that were told
	failed  *Error
	done    bool
}

// result judges the whole reply.
func (a *answer) result() error {
	switch {
	case a.failed != nil:
		return a.failed
	case a.r.cmd == cmdRead && a.covered != a.r.length:
		return fmt.Errorf("the reply holds %d of %d bytes", a.covered, a.r.length)
	case a.r.cmd == cmdBlockStatus && len(*a.r.extents) == 0:
		return errors.New("the reply holds no extent")
	}
	return nil
}

// message reads one simple reply or one chunk.
func (a *answer) message() error {
	var b [20]byte
	if err := a.c.readFull(b[:16]); err != nil {
		return err
	}
	if cookie := binary.BigEndian.Uint64(b[8:]); cookie != a.r.cookie {
		return unsent(cookie)
	}
	return a.rest(&b)
}

func unsent(cookie uint64) error {
	return fmt.Errorf("a reply to request %#x, which was not sent", cookie)
}

// rest reads a message of which b[:16] was read, the first part of any header.
func (a *answer) rest(b *[20]byte) error {
	switch binary.BigEndian.Uint32(b[:]) {
	case simpleMagic:
		return a.simple(binary.BigEndian.Uint32(b[4:]))
	case structuredMagic:
		if !a.c.structured {
			return errors.New("a structured reply that was not negotiated")
		}
		if err := a.c.readFull(b[16:]); err != nil {
			return err
		}
		return a.chunk(binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint32(b[16:]))
	}
	return fmt.Errorf("no NBD reply: %x", b[:16])
}

func (a *answer) simple(errno uint32) error {
	a.done = true
	if errno != 0 {
		a.fail(errno, "", -1)
		return nil
	}
	switch {
	case a.r.cmd == cmdRead && !a.c.structured:
		a.covered = a.r.length
		return a.c.readFull(a.r.into)
	case a.r.cmd == cmdRead || a.r.cmd == cmdBlockStatus:
		return errors.New("a simple reply to a request whose answer has data")
	}
	return nil
}

func (a *answer) chunk(flags, typ uint16, length uint32) error {
	a.done = flags&chunkDone != 0
	switch {
	case typ == chunkNone:
		if length != 0 || !a.done {
			return errors.New("a malformed last chunk")
		}
		return nil
	case typ == chunkOffsetData && a.r.cmd == cmdRead:
		return a.data(length)
	case typ == chunkOffsetHole && a.r.cmd == cmdRead:
		return a.hole(length)
	case typ == chunkBlockStatus && a.r.cmd == cmdBlockStatus:
		return a.status(length)
	case typ&chunkErrors != 0:
		return a.errorChunk(typ, length)
	}
	return fmt.Errorf("a chunk of type %d in a reply to %s", typ, commandNames[a.r.cmd])
}

// window returns the part of a read's buffer that a chunk tells.
func (a *answer) window(off uint64, n uint32) ([]byte, error) {
	at := off - uint64(a.r.off) // wraps to something large if it lies before
	if at > uint64(a.r.length) || uint64(n) > uint64(a.r.length)-at || n == 0 {
		return nil, fmt.Errorf("a chunk of %d bytes at %d lies outside the request", n, off)
	}
	a.covered += int(n)
	return a.r.into[at : at+uint64(n)], nil
}

func (a *answer) data(length uint32) error {
	var b [8]byte
	if length <= 8 {
		return errors.New("a data chunk without data")
	}
	if err := a.c.readFull(b[:]); err != nil {
		return err
	}
	p, err := a.window(binary.BigEndian.Uint64(b[:]), length-8)
	if err != nil {
		return err
	}
	return a.c.readFull(p)
}

func (a *answer) hole(length uint32) error {
	var b [12]byte
	if length != 12 {
		return errors.New("a hole chunk of a wrong length")
	}
	if err := a.c.readFull(b[:]); err != nil {
		return err
	}
	p, err := a.window(binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint32(b[8:]))
	clear(p)
	return err
}

func (a *answer) status(length uint32) error {
	if length < 12 || length%8 != 4 || length > 1<<20 {
		return fmt.Errorf("a block status chunk of %d bytes", length)
	}
	b := make([]byte, length)
	if err := a.c.readFull(b); err != nil {
		return err
	}
	if id := binary.BigEndian.Uint32(b); id != a.c.context {
		return fmt.Errorf("a block status for context %d, which was not selected", id)
	}
	off := a.r.off
	for b = b[4:]; len(b) > 0; b = b[8:] {
		e := Extent{Off: off, Len: int64(binary.BigEndian.Uint32(b)), Flags: binary.BigEndian.Uint32(b[4:])}
		off += e.Len
		if e.Len == 0 || off > a.r.off+int64(a.r.length) {
			return fmt.Errorf("an extent of %d bytes at %d lies outside the request", e.Len, e.Off)
		}
		*a.r.extents = append(*a.r.extents, e)
	}
	return nil
}

func (a *answer) errorChunk(typ uint16, length uint32) error {
	if length < 6 || length > 64<<10 {
		return fmt.Errorf("an error chunk of %d bytes", length)
	}
	b := make([]byte, length)
	if err := a.c.readFull(b); err != nil {
		return err
	}
	n := int(binary.BigEndian.Uint16(b[4:]))
	if 6+n > len(b) {
		return errors.New("the text of an error is longer than its chunk")
	}
	at := int64(-1)
	if rest := b[6+n:]; typ == chunkErrorOffset && len(rest) >= 8 {
		at = int64(binary.BigEndian.Uint64(rest))
	}
	a.fail(binary.BigEndian.Uint32(b), string(b[6:6+n]), at)
	return nil
}

func (a *answer) fail(errno uint32, text string, at int64) {
	a.failed = &Error{
		Command: commandNames[a.r.cmd], Off: a.r.off, Len: int64(a.r.length),
		Errno: syscall.Errno(errno), Text: text, At: at,
	}
}
