package vhostclient

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// A Conn speaks messages, whatever they mean: what a hostile test needs, and what
// [Dial] builds on. One goroutine at a time may use it.
type Conn struct {
	c       *net.UnixConn
	timeout time.Duration
	mu      sync.Mutex // held from a message to its reply
	heard   bool       // a reply came
}

// ErrUnanswered says that a connection ended before its first reply: nobody has taken
// it up, or whoever did has ended before anything was noted of it. A monitor may try
// again, as there is no guest yet.
var ErrUnanswered = errors.New("the server hung up before its first answer")

// maxPayload is the longest payload of a reply that is taken, in bytes.
const maxPayload = 4096

// Connect connects to a socket, and says nothing. timeout is for each message and
// its reply; 0 means 30 s.
func Connect(path string, timeout time.Duration) (*Conn, error) {
	if timeout == 0 {
		timeout = 30 * time.Second
	}
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return &Conn{c: c, timeout: timeout}, nil
}

// Close hangs up.
func (c *Conn) Close() error { return c.c.Close() }

// Send sends one message with descriptors, and waits for nothing.
func (c *Conn) Send(request, flags uint32, payload []byte, fds ...int) error {
	b := binary.LittleEndian.AppendUint32(nil, request)
	b = binary.LittleEndian.AppendUint32(b, flags|flagVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	return c.SendRaw(append(b, payload...), fds...)
}

// SendRaw sends bytes with descriptors, whatever they are.
func (c *Conn) SendRaw(b []byte, fds ...int) error {
	if err := c.c.SetDeadline(time.Now().Add(c.timeout)); err != nil {
		return err
	}
	var oob []byte
	if len(fds) > 0 {
		oob = syscall.UnixRights(fds...)
	}
	n, _, err := c.c.WriteMsgUnix(b, oob, nil)
	if err == nil && n < len(b) {
		_, err = c.c.Write(b[n:])
	}
	return err
}

// Receive receives one message of the backend.
func (c *Conn) Receive() (request, flags uint32, payload []byte, files []*os.File, err error) {
	if err := c.c.SetReadDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, 0, nil, nil, err
	}
	return receive(c.c)
}

func receive(c *net.UnixConn) (request, flags uint32, payload []byte, files []*os.File, err error) {
	var header [12]byte
	oob := make([]byte, syscall.CmsgSpace(4*8))
	n, oobn, _, _, err := c.ReadMsgUnix(header[:], oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return 0, 0, nil, nil, err
	}
	if files, err = rights(oob[:oobn]); err == nil {
		_, err = io.ReadFull(c, header[n:])
	}
	size := binary.LittleEndian.Uint32(header[8:])
	if err == nil && size > maxPayload {
		err = fmt.Errorf("a message of %d bytes", size)
	}
	if err == nil {
		payload = make([]byte, size)
		_, err = io.ReadFull(c, payload)
	}
	if err != nil {
		closeFiles(files)
		return 0, 0, nil, nil, err
	}
	return binary.LittleEndian.Uint32(header[:]), binary.LittleEndian.Uint32(header[4:]), payload, files, nil
}

func rights(oob []byte) (files []*os.File, err error) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range messages {
		fds, err := syscall.ParseUnixRights(&messages[i])
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			syscall.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "vhost-user"))
		}
	}
	return files, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // nothing was written
	}
}

// Ask sends a message and returns its reply, which must answer it.
func (c *Conn) Ask(request, flags uint32, payload []byte, fds ...int) ([]byte, []*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.Alive(); errors.Is(err, errUnasked) {
		return nil, nil, fmt.Errorf("before %s: %w", name(request), err)
	}
	if err := c.Send(request, flags, payload, fds...); err != nil {
		return nil, nil, fmt.Errorf("sending %s: %w", name(request), err)
	}
	got, gotFlags, reply, files, err := c.Receive()
	if err != nil && !c.heard {
		err = fmt.Errorf("%w: %w", ErrUnanswered, err)
	}
	c.heard = c.heard || err == nil
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("the reply to %s: %w", name(request), err)
	case got != request || gotFlags&^flagNeedReply != flagVersion|flagReply:
		closeFiles(files)
		return nil, nil, fmt.Errorf("the reply to %s is message %d with flags %#x", name(request), got, gotFlags)
	}
	return reply, files, nil
}

// Get asks for a number of 64 bits.
func (c *Conn) Get(request uint32) (uint64, error) { return c.number(request, 0) }

func (c *Conn) number(request, flags uint32) (uint64, error) {
	b, files, err := c.Ask(request, flags, nil)
	closeFiles(files)
	if err == nil && len(b) != 8 {
		err = fmt.Errorf("the reply to %s has %d bytes", name(request), len(b))
	}
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

// Set sends a message that has no reply of its own; with ack it asks for one, and
// demands that it tells of success.
func (c *Conn) Set(request uint32, ack bool, payload []byte, fds ...int) error {
	if !ack {
		c.mu.Lock()
		defer c.mu.Unlock()
		if err := c.Send(request, 0, payload, fds...); err != nil {
			return fmt.Errorf("sending %s: %w", name(request), err)
		}
		return nil
	}
	b, files, err := c.Ask(request, flagNeedReply, payload, fds...)
	closeFiles(files)
	switch {
	case err != nil:
		return err
	case len(b) != 8:
		return fmt.Errorf("the acknowledgement of %s has %d bytes", name(request), len(b))
	case binary.LittleEndian.Uint64(b) != 0:
		return fmt.Errorf("%s was refused with %d: %w", name(request), binary.LittleEndian.Uint64(b), errRefused)
	}
	return nil
}

var errUnasked = errors.New("the server has replied to what nobody asked, or twice")

var errRefused = errors.New("the server refused a message")

func name(request uint32) string {
	if s := messageNames[request]; s != "" {
		return s
	}
	return fmt.Sprintf("message %d", request)
}
