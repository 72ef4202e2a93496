package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
)

// The part of the NBD protocol that QEMU needs (nbd/doc/proto.md): fixed
// newstyle, simple replies, one request at a time a connection.
const (
	magicInit    = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption  = 0x49484156454f5054 // "IHAVEOPT"
	magicReply   = 0x3e889045565a9    // to an option
	magicRequest = 0x25609513
	magicSimple  = 0x67446698

	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1

	optExportName, optAbort, optInfo, optGo  = 1, 2, 6, 7
	repAck, repInfo, repErrUnsup, repErrInvd = 1, 3, 1<<31 | 1, 1<<31 | 3
	infoExport, infoBlockSize                = 0, 3

	transmissionFlags = 1<<0 | 1<<2 | 1<<3 // has flags, flush, FUA

	cmdRead, cmdWrite, cmdDisc, cmdFlush = 0, 1, 2, 3
	cmdFlagFUA                           = 1 << 0

	maxOption  = 4096     // bytes of an option's data
	maxPayload = 32 << 20 // bytes of a request's data, the protocol's usual bound
)

// Serve serves the disk to connections of l, one after another, until l is
// closed. It returns what ended a connection other than its client's leave.
func (d *Disk) Serve(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		err = d.serveConn(conn)
		conn.Close()
		if err != nil {
			return err
		}
	}
}

// serveConn returns nil when the client has left, or has died with its machine.
func (d *Disk) serveConn(conn io.ReadWriter) error {
	c := &session{disk: d, rw: conn}
	err := c.handshake()
	for err == nil {
		err = c.request()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return err
}

// A session is one connection. Every method returns io.EOF at its regular end.
type session struct {
	disk *Disk
	rw   io.ReadWriter
}

func (c *session) read(n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := io.ReadFull(c.rw, b)
	return b, err
}

func (c *session) write(fields ...any) error {
	var b []byte
	for _, f := range fields {
		var err error
		if b, err = binary.Append(b, binary.BigEndian, f); err != nil {
			return err
		}
	}
	_, err := c.rw.Write(b)
	return err
}

func (c *session) handshake() error {
	if err := c.write(uint64(magicInit), uint64(magicOption), uint16(flagFixedNewstyle|flagNoZeroes)); err != nil {
		return err
	}
	flags, err := c.read(4)
	if err != nil {
		return err
	}
	for {
		done, err := c.option(binary.BigEndian.Uint32(flags)&flagNoZeroes != 0)
		if err != nil || done {
			return err
		}
	}
}

// option answers one option, and reports whether transmission follows.
func (c *session) option(noZeroes bool) (transmission bool, err error) {
	head, err := c.read(16)
	if err != nil {
		return false, err
	}
	id, n := binary.BigEndian.Uint32(head[8:]), binary.BigEndian.Uint32(head[12:])
	if m := binary.BigEndian.Uint64(head); m != magicOption || n > maxOption {
		return false, fmt.Errorf("NBD option %d of %d bytes, magic %#x", id, n, m)
	}
	data, err := c.read(int(n))
	if err != nil {
		return false, err
	}
	reply := func(typ uint32, data []byte) error {
		return c.write(uint64(magicReply), id, typ, uint32(len(data)), data)
	}
	switch id {
	case optExportName:
		tail := make([]byte, 124)
		if noZeroes {
			tail = nil
		}
		return true, c.write(uint64(c.disk.Size()), uint16(transmissionFlags), tail)
	case optAbort:
		return false, errors.Join(reply(repAck, nil), io.EOF)
	case optInfo, optGo:
		if len(data) < 6 {
			return false, reply(repErrInvd, nil)
		}
		export, err1 := binary.Append(nil, binary.BigEndian, struct {
			Type  uint16
			Size  uint64
			Flags uint16
		}{infoExport, uint64(c.disk.Size()), transmissionFlags})
		sizes, err2 := binary.Append(nil, binary.BigEndian, struct {
			Type               uint16
			Minimum, Best, Max uint32
		}{infoBlockSize, SectorSize, 4096, maxPayload})
		return id == optGo, errors.Join(err1, err2, reply(repInfo, export), reply(repInfo, sizes), reply(repAck, nil))
	default:
		return false, reply(repErrUnsup, nil)
	}
}

// request carries out one request. Without power it never answers, nor returns
// before the client is gone.
func (c *session) request() error {
	head, err := c.read(28)
	if err != nil {
		return err
	}
	flags, cmd := binary.BigEndian.Uint16(head[4:]), binary.BigEndian.Uint16(head[6:])
	cookie, off, n := binary.BigEndian.Uint64(head[8:]), binary.BigEndian.Uint64(head[16:]), binary.BigEndian.Uint32(head[24:])
	if m := binary.BigEndian.Uint32(head); m != magicRequest || off > 1<<62 || (cmd == cmdRead || cmd == cmdWrite) && n > maxPayload {
		return fmt.Errorf("NBD request %d of %d bytes at %d, magic %#x", cmd, n, off, m)
	}
	var data []byte
	switch cmd {
	case cmdRead:
		data = make([]byte, n)
		err = c.disk.Read(data, int64(off))
	case cmdWrite:
		var payload []byte
		if payload, err = c.read(int(n)); err != nil {
			return err
		}
		err = c.disk.Write(payload, int64(off), flags&cmdFlagFUA != 0)
	case cmdFlush:
		err = c.disk.Flush()
	case cmdDisc:
		return io.EOF
	default:
		err = fmt.Errorf("NBD command %d", cmd)
	}
	if errors.Is(err, ErrOff) {
		_, err := io.Copy(io.Discard, c.rw)
		return errors.Join(err, io.EOF)
	}
	if err != nil {
		return c.write(uint32(magicSimple), uint32(syscall.EINVAL), cookie)
	}
	return c.write(uint32(magicSimple), uint32(0), cookie, data)
}
