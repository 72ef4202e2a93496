// Package ipc carries control's calls to the engine over a unix socket that
// their keeper made for them.
//
// # Frames
//
// A frame is a header of 8 bytes, the magic "VIPC" and the length of the body
// (uint32, little-endian), then the body: one JSON object, an envelope. A
// frame's file descriptors, at most four, travel as SCM_RIGHTS with its first byte.
// Control sends requests, the engine answers each exactly once, in any order.
//
// # Trust
//
// The two processes come from one binary, but the engine faces guests and
// control faces the network: each treats the other's bytes as hostile. Frames
// are bounded, decoding is strict (no unknown field, no trailing bytes), and a
// frame that breaks the rules ends the connection.
package ipc

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

const (
	headerSize = 8
	// MaxBody bounds a frame's body. A lease in 64 Ki pieces fits.
	MaxBody = 8 << 20
	// MaxFiles bounds the files that travel with a frame.
	MaxFiles = 4
)

var magic = [4]byte{'V', 'I', 'P', 'C'}

// ErrFrame is wrapped by every error that means that the peer does not speak
// this protocol.
var ErrFrame = errors.New("malformed frame")

// envelope is the body of a frame. A request has a method, a response has not.
type envelope struct {
	ID     uint64          `json:"id"`
	Method string          `json:"method,omitempty"`
	Error  *RemoteError    `json:"error,omitempty"`
	Body   json.RawMessage `json:"body,omitempty"`
}

// conn reads and writes frames. Reads belong to one goroutine; writes take mu.
type conn struct {
	uc  *net.UnixConn
	mu  sync.Mutex // held while a frame is written
	oob [128]byte  // reader's: room for more files than may come
}

func newConn(f *os.File) (*conn, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("ipc: using descriptor %d as a socket: %w", f.Fd(), err)
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		c.Close() //nolint:errcheck // the type error below is what the caller needs
		return nil, fmt.Errorf("ipc: descriptor %d is a %s, not a unix socket", f.Fd(), c.LocalAddr().Network())
	}
	return &conn{uc: uc}, nil
}

func (c *conn) write(e *envelope, files []*os.File) error {
	frame, err := encode(e)
	if err != nil {
		return err
	}
	if len(files) > MaxFiles {
		return fmt.Errorf("ipc: %q with %d files, the bound is %d", e.Method, len(files), MaxFiles)
	}
	return c.pass(frame, nil, files)
}

// pass sends a frame with the descriptors fds and those of files.
func (c *conn) pass(frame []byte, fds []int, files []*os.File) error {
	if len(files) == 0 {
		if len(fds) == 0 {
			return c.send(frame, nil)
		}
		return c.send(frame, syscall.UnixRights(fds...))
	}
	f := files[0]
	raw, err := f.SyscallConn() // unlike Fd, it leaves the file's blocking mode alone
	if err != nil {
		return fmt.Errorf("ipc: passing %s: %w", f.Name(), err)
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = c.pass(frame, append(fds, int(fd)), files[1:]) }); err != nil {
		return fmt.Errorf("ipc: passing %s: %w", f.Name(), err)
	}
	return sent
}

func (c *conn) send(frame, oob []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, _, err := c.uc.WriteMsgUnix(frame, oob, nil)
	if err == nil && n < len(frame) {
		_, err = c.uc.Write(frame[n:])
	}
	if err != nil {
		return fmt.Errorf("ipc: writing a frame: %w", err)
	}
	return nil
}

// read returns the next frame and the files that came with it.
func (c *conn) read() (e *envelope, files []*os.File, err error) {
	var head [headerSize]byte
	defer func() {
		if err != nil {
			closeFiles(files) // the frame is refused
			files = nil
		}
	}()
	for got := 0; got < headerSize; {
		n, oobn, flags, _, err := c.uc.ReadMsgUnix(head[got:], c.oob[:])
		more, ferr := takeFiles(c.oob[:oobn])
		files = append(files, more...)
		if ferr == nil && (flags&syscall.MSG_CTRUNC != 0 || len(files) > MaxFiles) {
			ferr = errors.New("more descriptors than a frame may have")
		}
		if ferr != nil {
			return nil, files, fmt.Errorf("ipc: %w: %w", ErrFrame, ferr)
		}
		if errors.Is(err, io.EOF) && got > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, files, err
		}
		got += n
	}
	size, err := parseHeader(head)
	if err != nil {
		return nil, files, err
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c.uc, body); err != nil {
		return nil, files, fmt.Errorf("ipc: reading a frame of %d bytes: %w", size, err)
	}
	e = new(envelope)
	if err := Decode(body, e); err != nil {
		return nil, files, err
	}
	return e, files, nil
}

// takeFiles returns the descriptors in control messages, also with an error.
func takeFiles(oob []byte) (files []*os.File, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range msgs {
		fds, perr := syscall.ParseUnixRights(&msgs[i])
		if perr != nil {
			err = perr
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, err
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close() //nolint:errcheck // descriptors that are only dropped
	}
}

func parseHeader(h [headerSize]byte) (int, error) {
	if [4]byte(h[:4]) != magic {
		return 0, fmt.Errorf("ipc: %w: magic %q", ErrFrame, h[:4])
	}
	n := binary.LittleEndian.Uint32(h[4:])
	if n == 0 || n > MaxBody {
		return 0, fmt.Errorf("ipc: %w: body of %d bytes, the bound is %d", ErrFrame, n, MaxBody)
	}
	return int(n), nil
}

func encode(e *envelope) ([]byte, error) {
	body, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("ipc: encoding %q: %w", e.Method, err)
	}
	if len(body) > MaxBody {
		return nil, fmt.Errorf("ipc: %q is %d bytes long, the bound is %d", e.Method, len(body), MaxBody)
	}
	frame := make([]byte, headerSize+len(body))
	copy(frame, magic[:])
	binary.LittleEndian.PutUint32(frame[4:], uint32(len(body)))
	copy(frame[headerSize:], body)
	return frame, nil
}

// Decode decodes one JSON value strictly: an unknown field or a byte behind
// the value is an error that wraps [ErrFrame].
func Decode(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return decode(d, v)
}

// decodeAnswer is Decode for what the engine answers: in the midst of an upgrade
// it is newer than control, and may say more than that understands.
func decodeAnswer(b []byte, v any) error { return decode(json.NewDecoder(bytes.NewReader(b)), v) }

func decode(d *json.Decoder, v any) error {
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("ipc: %w: %w", ErrFrame, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("ipc: %w: bytes behind the value", ErrFrame)
	}
	return nil
}
