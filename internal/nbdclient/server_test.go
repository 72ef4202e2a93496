package nbdclient

import (
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// A victim is a small NBD server in memory, which can be broken in every way.
// Each connection carries out one request after another.
type victim struct {
	t    *testing.T
	path string

	// Hooks, called under mu; nil does nothing. A request is off and length.
	onRead  func(b []byte, off int64)                    // may change what is told
	onWrite func(b []byte, off int64) (done bool)        // true: do not carry it out
	onReply func(cookie uint64) (times int)              // how often to reply; 1 is usual
	fail    func(cmd uint16, off, n int64) syscall.Errno // an error to reply with
	minimum uint32                                       // block size

	mu       sync.Mutex
	data     []byte
	listener *net.UnixListener
	conns    map[net.Conn]struct{}
	running  sync.WaitGroup
}

func newVictim(t *testing.T, size int) *victim {
	v := &victim{t: t, path: filepath.Join(t.TempDir(), "s"), data: make([]byte, size), minimum: 512}
	v.start()
	t.Cleanup(v.kill)
	return v
}

func (v *victim) start() {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: v.path, Net: "unix"})
	if err != nil {
		v.t.Fatal(err)
	}
	v.mu.Lock()
	v.listener, v.conns = l, make(map[net.Conn]struct{})
	v.mu.Unlock()
	v.running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			v.mu.Lock()
			if v.listener != l { // killed meanwhile
				c.Close()
			} else {
				v.conns[c] = struct{}{}
				v.running.Go(func() { v.serve(c) })
			}
			v.mu.Unlock()
		}
	})
}

// cut ends all connections, wherever they are.
func (v *victim) cut() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for c := range v.conns {
		c.Close()
	}
}

// kill ends everything, and waits until nothing of it is under way.
func (v *victim) kill() {
	v.mu.Lock()
	l := v.listener
	v.listener = nil
	v.mu.Unlock()
	if l != nil {
		l.Close()
	}
	v.cut()
	v.running.Wait()
}

func (v *victim) serve(c net.Conn) {
	defer func() {
		c.Close()
		v.mu.Lock()
		delete(v.conns, c)
		v.mu.Unlock()
	}()
	if !v.greet(c) {
		return
	}
	var header [28]byte
	for {
		if _, err := io.ReadFull(c, header[:]); err != nil {
			return
		}
		cmd := binary.BigEndian.Uint16(header[6:])
		cookie, off := binary.BigEndian.Uint64(header[8:]), int64(binary.BigEndian.Uint64(header[16:]))
		data := make([]byte, binary.BigEndian.Uint32(header[24:]))
		if cmd == cmdDisc {
			return
		}
		if cmd == cmdWrite {
			if _, err := io.ReadFull(c, data); err != nil {
				return
			}
		}
		errno, times := v.carryOut(cmd, cookie, off, data)
		reply := binary.BigEndian.AppendUint32(nil, simpleMagic)
		reply = binary.BigEndian.AppendUint32(reply, uint32(errno))
		reply = binary.BigEndian.AppendUint64(reply, cookie)
		if cmd == cmdRead && errno == 0 {
			reply = append(reply, data...)
		}
		for range times {
			if _, err := c.Write(reply); err != nil {
				return
			}
		}
	}
}

func (v *victim) carryOut(cmd uint16, cookie uint64, off int64, data []byte) (syscall.Errno, int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	times := 1
	if v.onReply != nil {
		times = v.onReply(cookie)
	}
	if v.fail != nil {
		if errno := v.fail(cmd, off, int64(len(data))); errno != 0 {
			return errno, times
		}
	}
	switch cmd {
	case cmdRead:
		copy(data, v.data[off:])
		if v.onRead != nil {
			v.onRead(data, off)
		}
	case cmdWrite, cmdWriteZeroes, cmdTrim: // data is zeros but for a write
		if v.onWrite == nil || !v.onWrite(data, off) {
			copy(v.data[off:], data)
		}
	}
	return 0, times
}

// greet is the server's part of the handshake: simple replies only.
func (v *victim) greet(c net.Conn) bool {
	b := binary.BigEndian.AppendUint64(nil, initMagic)
	b = binary.BigEndian.AppendUint64(b, optionMagic)
	if _, err := c.Write(append(b, 0, fixedNewstyle|noZeroes)); err != nil {
		return false
	}
	var flags [4]byte
	if _, err := io.ReadFull(c, flags[:]); err != nil {
		return false
	}
	for {
		var h [16]byte
		if _, err := io.ReadFull(c, h[:]); err != nil {
			return false
		}
		id := binary.BigEndian.Uint32(h[8:])
		if _, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(h[12:]))); err != nil {
			return false
		}
		if id != optGo {
			if _, err := c.Write(optionReply(id, repErrUnsup)); err != nil {
				return false
			}
			continue
		}
		b := optionReply(optGo, repInfo, []byte{0, infoExport}, be64(uint64(len(v.data))), []byte{0, HasFlags | SendFlush | SendFUA | SendTrim | SendWriteZeroes})
		b = append(b, optionReply(optGo, repInfo, []byte{0, infoBlockSize}, be32(v.minimum), be32(4096), be32(32<<20))...)
		_, err := c.Write(append(b, optionReply(optGo, repAck)...))
		return err == nil
	}
}
