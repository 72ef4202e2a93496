package vhostclient

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
)

// play does the steps in turn.
func (c *Client) play(steps []Step) error {
	for _, s := range steps {
		if !c.applies(s) {
			continue
		}
		if len(s.Each) == 0 && !perRing[s.Message] {
			if err := c.step(s, 0); err != nil {
				return err
			}
			continue
		}
		each := s.Each
		if len(each) == 0 {
			each = []Step{s}
		}
		for i := range c.bases {
			for _, s := range each {
				if !c.applies(s) {
					continue
				}
				if err := c.step(s, i); err != nil {
					return fmt.Errorf("queue %d: %w", i, err)
				}
			}
		}
	}
	return nil
}

var perRing = map[uint32]bool{
	SetVringNum: true, SetVringAddr: true, SetVringBase: true, GetVringBase: true,
	SetVringKick: true, SetVringCall: true, SetVringErr: true, SetVringEnable: true,
}

// applies reports whether the session has what the step needs, and nothing that
// takes its place.
func (c *Client) applies(s Step) bool {
	if s.Needs != 0 && !c.hasProtocol(s.Needs) || s.Lacks != 0 && c.hasProtocol(s.Lacks) {
		return false
	}
	return s.Message != SetInflightFD && s.Message != GetInflightFD || c.o.Inflight
}

func (c *Client) step(s Step, queue int) error {
	ack := s.Ack && c.hasProtocol(ProtocolReplyAck)
	switch s.Message {
	case GetFeatures:
		return c.get(s, &c.offered)
	case GetProtocolFeatures:
		return c.get(s, &c.protocol)
	case GetQueueNum:
		if err := c.get(s, &c.maxQueue); err != nil {
			return err
		}
		if c.maxQueue < uint64(c.o.Queues) {
			return fmt.Errorf("the server has %d queues, not %d", c.maxQueue, c.o.Queues)
		}
		return nil
	case GetMaxMemSlots:
		return c.get(s, &c.maxSlots)
	case SetFeatures:
		c.Features = c.wanted() & c.offered
		return c.Conn.Set(s.Message, ack, u64(c.Features))
	case SetProtocolFeatures:
		c.Protocol = c.o.Sequence.Protocol & c.protocol
		if !c.o.MemSlots && !c.o.Sequence.MemSlots {
			c.Protocol &^= 1 << ProtocolConfigMemSlots
		}
		if c.o.Inflight && !c.hasProtocol(ProtocolInflightShmFD) {
			return errors.New("the server has no region for requests in flight")
		}
		return c.Conn.Set(s.Message, ack, u64(c.Protocol))
	case SetOwner, ResetOwner, ResetDevice:
		return c.Conn.Set(s.Message, ack, nil)
	case GetConfig:
		return c.refresh(c.flags(s))
	case SetBackendReqFD:
		return c.openBack(ack)
	case SetMemTable, AddMemReg:
		return c.tellMemory(s.Message, ack)
	case GetInflightFD:
		return c.getInflight(c.flags(s))
	case SetInflightFD:
		return c.Conn.Set(s.Message, ack, c.info, int(c.inflight.Fd()))
	}
	return c.ring(s, queue, ack)
}

// wanted is the mask of virtio features that the frontend would take.
func (c *Client) wanted() uint64 {
	f := c.o.Sequence.Features &^ c.o.Features
	if c.o.Direct {
		f &^= 1 << FeatureIndirect
	}
	if c.o.NoEvent {
		f &^= 1 << FeatureEventIdx
	}
	return f
}

func (c *Client) get(s Step, v *uint64) (err error) {
	*v, err = c.Conn.number(s.Message, c.flags(s))
	return err
}

// flags are those of a message that has a reply anyway.
func (c *Client) flags(s Step) uint32 {
	if s.Ack && c.hasProtocol(ProtocolReplyAck) {
		return flagNeedReply
	}
	return 0
}

// ring sends a message about one ring.
func (c *Client) ring(s Step, i int, ack bool) error {
	var q *Queue
	if i < len(c.Queues) {
		q = c.Queues[i]
	}
	state := func(v uint32) []byte {
		return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, uint32(i)), v)
	}
	switch s.Message {
	case SetVringNum:
		return c.Conn.Set(s.Message, ack, state(uint32(q.Size)))
	case SetVringBase:
		return c.Conn.Set(s.Message, ack, state(uint32(c.bases[i])))
	case SetVringEnable:
		return c.Conn.Set(s.Message, ack, state(s.Arg))
	case SetVringAddr:
		b := state(0)
		for _, part := range [][]byte{table(q), q.used, q.avail} {
			b = binary.LittleEndian.AppendUint64(b, c.Memory.User(part))
		}
		return c.Conn.Set(s.Message, ack, binary.LittleEndian.AppendUint64(b, 0))
	case GetVringBase:
		b, files, err := c.Conn.Ask(s.Message, c.flags(s), state(0))
		closeFiles(files)
		if err == nil && (len(b) != 8 || binary.LittleEndian.Uint32(b) != uint32(i) || binary.LittleEndian.Uint32(b[4:]) > 0xffff) {
			err = fmt.Errorf("the reply to GET_VRING_BASE is %x", b)
		}
		if err == nil {
			c.bases[i] = uint16(binary.LittleEndian.Uint32(b[4:]))
		}
		return err
	case SetVringKick:
		return c.Conn.Set(s.Message, ack, u64(uint64(i)), int(q.Kick.Fd()))
	case SetVringErr, SetVringCall:
		const none = 1 << 8
		switch {
		case c.o.NoCall:
			return c.Conn.Set(s.Message, ack, u64(uint64(i)|none))
		case q == nil: // before there is a guest: a descriptor that nobody reads
			f, err := newEvent()
			if err != nil {
				return err
			}
			return errors.Join(c.Conn.Set(s.Message, ack, u64(uint64(i)), int(f.Fd())), f.Close())
		case s.Message == SetVringErr:
			return c.Conn.Set(s.Message, ack, u64(uint64(i)), int(q.Err.Fd()))
		}
		return c.Conn.Set(s.Message, ack, u64(uint64(i)), int(q.Call.Fd()))
	}
	return fmt.Errorf("vhost-user: no way to play %s", name(s.Message))
}

func u64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

// tellMemory tells the server of the memory, unless it knows it.
func (c *Client) tellMemory(message uint32, ack bool) error {
	if c.told && message == AddMemReg {
		return nil
	}
	c.told = true
	fd := int(c.Memory.File.Fd())
	if message == AddMemReg {
		for _, r := range c.Memory.Regions {
			if err := c.Conn.Set(message, ack, r.encode(u64(0)), fd); err != nil {
				return err
			}
		}
		return nil
	}
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(c.Memory.Regions)))
	b = binary.LittleEndian.AppendUint32(b, 0)
	var fds []int
	for _, r := range c.Memory.Regions {
		b, fds = r.encode(b), append(fds, fd)
	}
	return c.Conn.Set(message, ack, b, fds...)
}

// getInflight asks for a region, unless the client has one.
func (c *Client) getInflight(flags uint32) error {
	if c.inflight != nil {
		return nil
	}
	ask := make([]byte, c.o.Sequence.inflightSize())
	binary.LittleEndian.PutUint16(ask[16:], uint16(c.o.Queues))
	binary.LittleEndian.PutUint16(ask[18:], uint16(c.o.QueueSize))
	b, files, err := c.Conn.Ask(GetInflightFD, flags, ask)
	if err == nil && (len(b) < 20 || len(files) != 1 || binary.LittleEndian.Uint64(b) == 0) {
		err = fmt.Errorf("the reply to GET_INFLIGHT_FD is %x with %d descriptors", b, len(files))
	}
	if err != nil {
		closeFiles(files)
		return err
	}
	c.inflight, c.info = files[0], append(make([]byte, 0, len(ask)), b[:20]...)[:len(ask)]
	return nil
}

// openBack opens the back channel, and listens there until it is closed.
func (c *Client) openBack(ack bool) error {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "back"), os.NewFile(uintptr(fds[1]), "back")
	conn, err := net.FileConn(ours)
	_ = ours.Close() // conn has a copy
	if err == nil {
		c.back, c.backDone = conn.(*net.UnixConn), make(chan struct{})
		go c.listen(c.back, c.backDone)
		err = c.Conn.Set(SetBackendReqFD, ack, nil, fds[1])
	}
	return errors.Join(err, theirs.Close())
}

func (c *Client) listen(back *net.UnixConn, done chan<- struct{}) {
	defer close(done)
	for {
		request, flags, _, files, err := receive(back)
		closeFiles(files)
		if err != nil {
			return // the session's end, which its connection tells of
		}
		if request == backendConfigChange {
			select {
			case c.changes <- struct{}{}:
			default:
			}
		}
		if flags&flagNeedReply != 0 {
			b := binary.LittleEndian.AppendUint32(nil, request)
			b = binary.LittleEndian.AppendUint32(b, flagVersion|flagReply)
			b = binary.LittleEndian.AppendUint32(b, 8)
			if _, err := back.Write(append(b, u64(0)...)); err != nil {
				return
			}
		}
	}
}
