package vhostclient

import (
	"errors"
	"fmt"
	"syscall"
	"time"
)

// An Error is the device's answer to a request that failed. It unwraps to an
// errno: EIO, EOPNOTSUPP, or EPROTO for a status that there is not.
type Error struct {
	Command string
	Off     int64 // bytes, of the request
	Len     int64
	Status  byte
	Errno   syscall.Errno
}

func (e *Error) Error() string {
	return fmt.Sprintf("vhost-user %s of %d bytes at %d: status %d (%v)", e.Command, e.Len, e.Off, e.Status, e.Errno)
}

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Errno }

// failure returns the error of a request that was taken; nil if it succeeded.
func (r *Request) failure() error {
	errno := r.errno()
	if errno == 0 {
		return nil
	}
	return &Error{Command: typeNames[r.Type], Off: int64(r.Sector) * sectorSize, Len: r.length(), Status: r.Status, Errno: errno}
}

func (r *Request) length() int64 {
	n := int64(r.Sectors) * sectorSize
	for _, d := range r.Data {
		n += int64(len(d))
	}
	return n
}

// maxData is how many bytes ReadAt and WriteAt move with one request.
const maxData = 1 << 20

// Do carries out one request on the first queue, which nothing else uses.
func (c *Client) Do(r *Request) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.do(r)
}

func (c *Client) do(r *Request) error {
	if c.broken != nil {
		return fmt.Errorf("vhost-user %s: the session has ended: %w", typeNames[r.Type], c.broken)
	}
	q := c.Queues[0]
	if c.o.NoCall {
		q.Mute()
	}
	if !q.Add(r) {
		return errors.New("vhost-user: the request does not fit into the ring")
	}
	if err := q.Publish(); err != nil {
		return c.fail(err)
	}
	deadline := time.Now().Add(c.Conn.timeout)
	for {
		got, err := q.Take()
		switch {
		case err != nil:
			return c.fail(err)
		case got == r:
			return r.failure()
		case got != nil:
			return c.fail(errors.New("vhost-user: an answer to another request"))
		case time.Now().After(deadline):
			return c.fail(fmt.Errorf("vhost-user %s of %d bytes at sector %d: no answer in %v", typeNames[r.Type], r.length(), r.Sector, c.Conn.timeout))
		}
		if c.o.NoCall {
			time.Sleep(10 * time.Microsecond)
		} else if !q.Arm() {
			if _, err := q.Wait(100 * time.Millisecond); err != nil {
				return c.fail(err)
			}
		}
	}
}

func (c *Client) fail(err error) error {
	c.broken = err
	return err
}

// ReadAt reads len(p) bytes at off (io.ReaderAt), which are multiples of 512.
func (c *Client) ReadAt(p []byte, off int64) (int, error) { return c.split(TypeIn, p, off) }

// WriteAt writes p at off (io.WriterAt), which are multiples of 512.
func (c *Client) WriteAt(p []byte, off int64) (int, error) { return c.split(TypeOut, p, off) }

func (c *Client) split(typ uint32, p []byte, off int64) (int, error) {
	if len(p)%sectorSize != 0 || off%sectorSize != 0 {
		return 0, fmt.Errorf("vhost-user %s of %d bytes at %d: %w", typeNames[typ], len(p), off, syscall.EINVAL)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.buffer(); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		b := c.buf[:min(len(c.buf), len(p)-done)]
		if typ == TypeOut {
			copy(b, p[done:])
		}
		if err := c.do(&Request{Type: typ, Sector: uint64(off+int64(done)) / sectorSize, Data: [][]byte{b}}); err != nil {
			return done, err
		}
		if typ == TypeIn {
			copy(p[done:], b)
		}
		done += len(b)
	}
	return done, nil
}

func (c *Client) buffer() (err error) {
	if c.buf == nil && c.Memory != nil {
		c.buf, err = c.Memory.Alloc(min(maxData, c.o.Memory/2))
	}
	return err
}

// Flush makes all writes durable that have been answered.
func (c *Client) Flush() error { return c.Do(&Request{Type: TypeFlush}) }

// ID returns what the device says of itself, up to the first zero.
func (c *Client) ID() (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.buffer(); err != nil {
		return "", err
	}
	b := c.buf[:20]
	clear(b)
	if err := c.do(&Request{Type: TypeGetID, Data: [][]byte{b}}); err != nil {
		return "", err
	}
	n := 0
	for n < len(b) && b[n] != 0 {
		n++
	}
	return string(b[:n]), nil
}

// Unmap lets WRITE_ZEROES give space back (5.2.6).
const Unmap = 1

// Zero makes n bytes at off read as zeros; flags are Unmap.
func (c *Client) Zero(off, n int64, flags uint32) error {
	return c.ranges(TypeWriteZeroes, off, n, flags)
}

// Trim tells that n bytes at off are no longer needed.
func (c *Client) Trim(off, n int64) error { return c.ranges(TypeDiscard, off, n, 0) }

func (c *Client) ranges(typ uint32, off, n int64, flags uint32) error {
	const most = 1 << 30 / sectorSize
	for at, end := off/sectorSize, (off+n)/sectorSize; at < end; {
		step := min(end-at, most)
		if err := c.Do(&Request{Type: typ, Sector: uint64(at), Sectors: uint32(step), Flags: flags}); err != nil {
			return err
		}
		at += step
	}
	return nil
}
