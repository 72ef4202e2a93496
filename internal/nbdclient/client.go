package nbdclient

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// A Client is a connection in transmission. Its methods may be called from any
// goroutine; requests are carried out one after another.
//
// An [*Error] is the server's answer to one request, and the connection goes on.
// Any other error ends it.
type Client struct {
	conn       net.Conn
	in         io.Reader // conn, or what reads ahead on it
	timeout    time.Duration
	size       int64
	flags      uint16
	structured bool
	hasContext bool
	context    uint32
	blockSizes [3]uint32 // minimum, preferred, maximum; 0 if not told

	mu     sync.Mutex // held for a whole request
	cookie uint64
	broken error // why the connection cannot go on
}

// An Error is the server's error reply to a request. It unwraps to an errno of
// Linux, whose values the protocol uses.
type Error struct {
	Command string
	Off     int64 // of the request
	Len     int64
	Errno   syscall.Errno
	Text    string // the server's; may be empty
	At      int64  // where it failed, if the server said so; else −1
}

func (e *Error) Error() string {
	s := fmt.Sprintf("NBD %s of %d bytes at %d: %v", e.Command, e.Len, e.Off, e.Errno)
	if e.Text != "" {
		s += " (" + e.Text + ")"
	}
	return s
}

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Errno }

// An Extent is a part of the export in one state.
type Extent struct {
	Off, Len int64  // bytes
	Flags    uint32 // Hole, Zero
}

// Size returns the size of the export in bytes.
func (c *Client) Size() int64 { return c.size }

// Flags returns the transmission flags.
func (c *Client) Flags() uint16 { return c.flags }

// BlockSizes returns the minimum, preferred and maximum block size in bytes; 0
// if the server told none.
func (c *Client) BlockSizes() (minimum, preferred, maximum uint32) {
	return c.blockSizes[0], c.blockSizes[1], c.blockSizes[2]
}

// ReadAt reads len(p) bytes at off (io.ReaderAt), in requests that the server
// takes.
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	return c.split(p, off, func(p []byte, off int64) error {
		return c.do(request{cmd: cmdRead, off: off, length: len(p), into: p})
	})
}

// ReadFlags reads in one request with flags (DF).
func (c *Client) ReadFlags(p []byte, off int64, flags uint16) error {
	return c.do(request{cmd: cmdRead, flags: flags, off: off, length: len(p), into: p})
}

// WriteAt writes p at off (io.WriterAt), in requests that the server takes.
func (c *Client) WriteAt(p []byte, off int64) (int, error) {
	return c.split(p, off, func(p []byte, off int64) error { return c.WriteFlags(p, off, 0) })
}

// WriteFlags writes in one request with flags (FUA).
func (c *Client) WriteFlags(p []byte, off int64, flags uint16) error {
	return c.do(request{cmd: cmdWrite, flags: flags, off: off, length: len(p), payload: p})
}

func (c *Client) split(p []byte, off int64, do func([]byte, int64) error) (int, error) {
	step := int(c.blockSizes[2])
	if step == 0 {
		step = 32 << 20
	}
	done := 0
	for done < len(p) {
		n := min(step, len(p)-done)
		if err := do(p[done:done+n], off+int64(done)); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// Zero makes n bytes at off read as zeros; flags are FUA, NoHole, FastZero.
func (c *Client) Zero(off, n int64, flags uint16) error {
	return c.ranges(cmdWriteZeroes, flags, off, n)
}

// Trim tells that n bytes at off are no longer needed; flags are FUA.
func (c *Client) Trim(off, n int64, flags uint16) error { return c.ranges(cmdTrim, flags, off, n) }

// Cache asks the server to fetch n bytes at off.
func (c *Client) Cache(off, n int64) error { return c.ranges(cmdCache, 0, off, n) }

// Flush makes all writes durable that have been answered.
func (c *Client) Flush() error { return c.do(request{cmd: cmdFlush}) }

// maxRange is the longest range of a request without data, in bytes.
const maxRange = 1<<32 - 1<<20

func (c *Client) ranges(cmd, flags uint16, off, n int64) error {
	for {
		step := min(n, maxRange)
		if err := c.do(request{cmd: cmd, flags: flags, off: off, length: int(step)}); err != nil {
			return err
		}
		if off, n = off+step, n-step; n == 0 {
			return nil
		}
	}
}

// BlockStatus returns the states of n bytes at off, all of them, with equal
// neighbours joined.
func (c *Client) BlockStatus(off, n int64) ([]Extent, error) {
	var all []Extent
	for end := off + n; off < end; {
		part, err := c.StatusOnce(off, min(end-off, maxRange), 0)
		if err != nil {
			return all, err
		}
		for _, e := range part {
			off = e.Off + e.Len
			if last := len(all) - 1; last >= 0 && all[last].Flags == e.Flags {
				all[last].Len += e.Len
			} else {
				all = append(all, e)
			}
		}
	}
	return all, nil
}

// StatusOnce sends one block status with flags (ReqOne) and returns what the
// server told, which may be less than the range, but is at least one extent.
func (c *Client) StatusOnce(off, n int64, flags uint16) ([]Extent, error) {
	if !c.hasContext {
		return nil, errors.New("NBD block status: the server does not know base:allocation")
	}
	var extents []Extent
	err := c.do(request{cmd: cmdBlockStatus, flags: flags, off: off, length: int(n), extents: &extents})
	return extents, err
}

// Close leaves as the protocol asks for.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	if c.broken == nil {
		c.broken = net.ErrClosed
		if err = c.deadline(); err == nil {
			err = c.send(request{cmd: cmdDisc})
		}
	}
	return errors.Join(err, c.conn.Close())
}

// Abort closes the connection without a word, from under whoever uses it.
func (c *Client) Abort() error { return c.conn.Close() }

// A request is one command, and where its answer goes.
type request struct {
	cmd, flags uint16
	off        int64
	length     int
	payload    []byte
	into       []byte
	extents    *[]Extent
	cookie     uint64
}

// do carries out one request.
func (c *Client) do(r request) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return fmt.Errorf("NBD %s: the connection has ended: %w", commandNames[r.cmd], c.broken)
	}
	c.cookie++
	r.cookie = c.cookie
	err := c.deadline()
	if err == nil {
		err = c.send(r)
	}
	if err == nil {
		err = c.receive(r)
	}
	if err == nil {
		return nil
	}
	var failed *Error
	if errors.As(err, &failed) {
		return err
	}
	c.broken = err
	return fmt.Errorf("NBD %s of %d bytes at %d: %w", commandNames[r.cmd], r.length, r.off, err)
}

func (c *Client) deadline() error {
	if c.timeout < 0 {
		return nil
	}
	return c.conn.SetDeadline(time.Now().Add(c.timeout))
}

func (c *Client) send(r request) error {
	b := make([]byte, 28, 28+min(len(r.payload), 64<<10))
	putRequest(b, r.flags, r.cmd, r.cookie, uint64(r.off), uint32(r.length))
	if len(r.payload) <= 64<<10 {
		_, err := c.conn.Write(append(b, r.payload...))
		return err
	}
	_, err := (&net.Buffers{b, r.payload}).WriteTo(c.conn)
	return err
}

func putRequest(b []byte, flags, cmd uint16, cookie, off uint64, length uint32) {
	binary.BigEndian.PutUint32(b, requestMagic)
	binary.BigEndian.PutUint16(b[4:], flags)
	binary.BigEndian.PutUint16(b[6:], cmd)
	binary.BigEndian.PutUint64(b[8:], cookie)
	binary.BigEndian.PutUint64(b[16:], off)
	binary.BigEndian.PutUint32(b[24:], length)
}

func (c *Client) readFull(p []byte) error {
	_, err := io.ReadFull(c.in, p)
	return err
}
