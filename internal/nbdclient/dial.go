// Package nbdclient is a lean client of the Network Block Device protocol. The
// tests, the demo and the benchmarks use it against our server; it shares no code
// with that, so that the two check each other.
//
// A [Client] carries out one request at a time. A [Load] keeps many in flight,
// with one write and one large read a round, so that it costs less than the
// server it measures.
package nbdclient

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"time"
)

// Options say what to negotiate. The zero value asks for all that the client
// knows.
type Options struct {
	Export        string        // name; the default export is the empty one
	OldStyle      bool          // enter with NBD_OPT_EXPORT_NAME, which knows no errors
	SimpleReplies bool          // do not ask for structured replies, nor for base:allocation
	NoBlockSize   bool          // do not ask for block sizes, so that any alignment is allowed
	Timeout       time.Duration // of each call; 0 means 30 s, negative none
}

// A Refusal is the server's error reply to an option.
type Refusal struct {
	Option, Type uint32
	Text         string // the server's; may be empty
}

func (e *Refusal) Error() string {
	text := e.Text
	if text == "" {
		text = "no reason given"
	}
	return fmt.Sprintf("the NBD server refused option %d with error %#x: %s", e.Option, e.Type, text)
}

// unsupported reports whether err is a server's word that it does not know an
// option, which leaves everything as it was.
func unsupported(err error) bool {
	var r *Refusal
	return errors.As(err, &r) && r.Type == repErrUnsup
}

// SocketPath returns the unix socket that target names: a path, or a URI
// nbd+unix:///NAME?socket=PATH, whose export name it returns too.
func SocketPath(target string) (path, export string, err error) {
	if !strings.Contains(target, "://") {
		return target, "", nil
	}
	u, err := url.Parse(target)
	if err != nil {
		return "", "", fmt.Errorf("parsing NBD URI %q: %w", target, err)
	}
	if path = u.Query().Get("socket"); u.Scheme != "nbd+unix" || path == "" {
		return "", "", fmt.Errorf("NBD URI %q: want nbd+unix:///NAME?socket=PATH", target)
	}
	return path, strings.TrimPrefix(u.Path, "/"), nil
}

// Dial connects to target, a path or URI as [SocketPath] takes them, and enters
// transmission.
func Dial(target string, o Options) (*Client, error) {
	conn, export, err := connect(target)
	if err != nil {
		return nil, err
	}
	if o.Export == "" {
		o.Export = export
	}
	c, err := New(conn, o)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening %s: %w", target, err), conn.Close())
	}
	return c, nil
}

func connect(target string) (net.Conn, string, error) {
	path, export, err := SocketPath(target)
	if err != nil {
		return nil, "", err
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, "", fmt.Errorf("connecting to an NBD server: %w", err)
	}
	return conn, export, nil
}

// New enters transmission on conn, which the client owns if that succeeds.
func New(conn net.Conn, o Options) (*Client, error) {
	c := &Client{conn: conn, in: conn, timeout: o.Timeout}
	if c.timeout == 0 {
		c.timeout = 30 * time.Second
	}
	if err := c.deadline(); err != nil {
		return nil, err
	}
	h := handshake{rw: conn}
	if err := h.greet(); err != nil {
		return nil, fmt.Errorf("NBD handshake: %w", err)
	}
	if err := h.negotiate(c, o); err != nil {
		return nil, fmt.Errorf("NBD handshake: %w", err)
	}
	return c, nil
}

// List returns the names of the exports at target.
func List(target string) ([]string, error) {
	conn, _, err := connect(target)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return nil, err
	}
	h := handshake{rw: conn}
	if err := h.greet(); err != nil {
		return nil, fmt.Errorf("NBD handshake: %w", err)
	}
	var names []string
	err = h.option(optList, nil, func(typ uint32, data []byte) error {
		if typ == repServer && len(data) >= 4 {
			n := binary.BigEndian.Uint32(data)
			if uint64(n) > uint64(len(data)-4) {
				return errors.New("the name of an export is longer than its message")
			}
			names = append(names, string(data[4:4+n]))
		}
		return nil
	})
	if err == nil {
		err = h.option(optAbort, nil, nil)
	}
	return names, err
}

// A handshake is the phase before transmission.
type handshake struct{ rw io.ReadWriter }

func (h *handshake) greet() error {
	var b [18]byte
	if _, err := io.ReadFull(h.rw, b[:]); err != nil {
		return fmt.Errorf("reading the greeting: %w", err)
	}
	if binary.BigEndian.Uint64(b[:]) != initMagic || binary.BigEndian.Uint64(b[8:]) != optionMagic {
		return fmt.Errorf("no newstyle NBD server: it greets with %x", b)
	}
	flags := binary.BigEndian.Uint16(b[16:])
	if flags&(fixedNewstyle|noZeroes) != fixedNewstyle|noZeroes {
		return fmt.Errorf("no fixed newstyle NBD server without zeroes: its flags are %#x", flags)
	}
	_, err := h.rw.Write(binary.BigEndian.AppendUint32(nil, fixedNewstyle|noZeroes))
	return err
}

func (h *handshake) negotiate(c *Client, o Options) error {
	if !o.SimpleReplies {
		err := h.option(optStructuredReply, nil, nil)
		if c.structured = err == nil; c.structured {
			err = h.context(c, o.Export)
		}
		if err != nil && !unsupported(err) {
			return err
		}
	}
	if o.OldStyle {
		return h.exportName(c, o.Export)
	}
	data := appendString(nil, o.Export)
	if o.NoBlockSize {
		data = append(data, 0, 0)
	} else {
		data = append(data, 0, 1, 0, infoBlockSize)
	}
	err := h.option(optGo, data, func(typ uint32, d []byte) error {
		if typ != repInfo || len(d) < 2 {
			return nil
		}
		switch kind := binary.BigEndian.Uint16(d); {
		case kind == infoExport && len(d) == 12:
			c.size, c.flags = int64(binary.BigEndian.Uint64(d[2:])), binary.BigEndian.Uint16(d[10:])
		case kind == infoBlockSize && len(d) == 14:
			for i := range c.blockSizes {
				c.blockSizes[i] = binary.BigEndian.Uint32(d[2+4*i:])
			}
		}
		return nil
	})
	if err == nil && c.flags&HasFlags == 0 {
		err = errors.New("the server did not describe the export")
	}
	return err
}

func (h *handshake) context(c *Client, export string) error {
	data := appendString(nil, export)
	data = binary.BigEndian.AppendUint32(data, 1)
	data = appendString(data, "base:allocation")
	return h.option(optSetMetaContext, data, func(typ uint32, d []byte) error {
		if typ == repMetaContext && len(d) >= 4 && string(d[4:]) == "base:allocation" {
			c.context, c.hasContext = binary.BigEndian.Uint32(d), true
		}
		return nil
	})
}

func (h *handshake) exportName(c *Client, export string) error {
	if err := h.send(optExportName, []byte(export)); err != nil {
		return err
	}
	var b [10]byte
	if _, err := io.ReadFull(h.rw, b[:]); err != nil {
		return fmt.Errorf("the server does not give export %q: %w", export, err)
	}
	c.size, c.flags = int64(binary.BigEndian.Uint64(b[:])), binary.BigEndian.Uint16(b[8:])
	return nil
}

func (h *handshake) send(id uint32, data []byte) error {
	b := binary.BigEndian.AppendUint64(nil, optionMagic)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	_, err := h.rw.Write(append(b, data...))
	return err
}

// option sends one option and hands each reply to each, up to the last, which
// is an acknowledgement or a [*Refusal].
func (h *handshake) option(id uint32, data []byte, each func(typ uint32, data []byte) error) error {
	if err := h.send(id, data); err != nil {
		return fmt.Errorf("sending option %d: %w", id, err)
	}
	for {
		var b [20]byte
		if _, err := io.ReadFull(h.rw, b[:]); err != nil {
			return fmt.Errorf("reading the reply to option %d: %w", id, err)
		}
		typ, length := binary.BigEndian.Uint32(b[12:]), binary.BigEndian.Uint32(b[16:])
		if binary.BigEndian.Uint64(b[:]) != optReplyMagic || binary.BigEndian.Uint32(b[8:]) != id || length > 64<<10 {
			return fmt.Errorf("no reply to option %d: %x", id, b)
		}
		d := make([]byte, length)
		if _, err := io.ReadFull(h.rw, d); err != nil {
			return fmt.Errorf("reading the reply to option %d: %w", id, err)
		}
		switch {
		case typ == repAck:
			return nil
		case typ&repError != 0:
			return &Refusal{Option: id, Type: typ, Text: string(d)}
		case each != nil:
			if err := each(typ, d); err != nil {
				return err
			}
		}
	}
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}
