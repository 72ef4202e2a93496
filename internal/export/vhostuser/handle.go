package vhostuser

import (
	"fmt"
	"math/bits"

	"vacate/internal/sys"
	"vacate/internal/virtioblk"
	"vacate/internal/volatile"
)

// A handler checks what a message asks, and writes it into c. It changes nothing
// else: an error leaves everything as it was.
type handler func(s *session, c *change, m *message) error

// handlers has one for each of forms.
var handlers = map[uint32]handler{
	reqGetFeatures:         (*session).getFeatures,
	reqSetFeatures:         (*session).setFeatures,
	reqSetOwner:            (*session).nothing,
	reqResetOwner:          (*session).resetOwner,
	reqSetMemTable:         (*session).setMemTable,
	reqSetLogBase:          (*session).setLogBase,
	reqSetLogFD:            (*session).nothing, // we never signal it: it is optional
	reqSetVringNum:         (*session).setVringNum,
	reqSetVringAddr:        (*session).setVringAddr,
	reqSetVringBase:        (*session).setVringBase,
	reqGetVringBase:        (*session).getVringBase,
	reqSetVringKick:        (*session).setVringKick,
	reqSetVringCall:        (*session).setVringCall,
	reqSetVringErr:         (*session).setVringErr,
	reqGetProtocolFeatures: (*session).getProtocolFeatures,
	reqSetProtocolFeatures: (*session).setProtocolFeatures,
	reqGetQueueNum:         (*session).getQueueNum,
	reqSetVringEnable:      (*session).setVringEnable,
	reqSetBackendReqFD:     (*session).setBackendReqFD,
	reqGetConfig:           (*session).getConfig,
	reqSetConfig:           (*session).setConfig,
	reqGetInflightFD:       (*session).getInflightFD,
	reqSetInflightFD:       (*session).setInflightFD,
	reqResetDevice:         (*session).resetDevice,
	reqGetMaxMemSlots:      (*session).getMaxMemSlots,
	reqAddMemReg:           (*session).addMemReg,
	reqRemMemReg:           (*session).remMemReg,
}

func (c *change) replyU64(v uint64) { c.reply = le.AppendUint64(nil, v) }

// nothing is what some messages ask for.
func (s *session) nothing(*change, *message) error { return nil }

func (s *session) offered() uint64 {
	return virtioblk.Features(s.server.cfg.ReadOnly, s.server.cfg.Queues) | featureProtocol
}

func (s *session) getFeatures(c *change, _ *message) error {
	c.replyU64(s.offered())
	return nil
}

// setFeatures: what changes how rings are read stops them for a moment; a frontend
// turns logging on and off while they run. It never disables a ring. Without
// VHOST_USER_F_PROTOCOL_FEATURES all are enabled from now on (Ring states).
func (s *session) setFeatures(c *change, m *message) error {
	f := m.u64()
	if f&^s.offered() != 0 {
		return fmt.Errorf("SET_FEATURES of %#x: %#x was not offered: %w", f, f&^s.offered(), errRefused)
	}
	if f != c.rec.Features {
		c.stop = allRings
	}
	c.rec.Features, c.rec.FeaturesSet = f, true
	if f&featureProtocol == 0 {
		for i := range c.rec.Rings[:s.server.cfg.Queues] {
			c.rec.Rings[i].Enabled = true
		}
	}
	return nil
}

func (s *session) getProtocolFeatures(c *change, _ *message) error {
	c.replyU64(protoOffered)
	return nil
}

func (s *session) setProtocolFeatures(c *change, m *message) error {
	f := m.u64()
	if f&^protoOffered != 0 {
		return fmt.Errorf("SET_PROTOCOL_FEATURES of %#x: %#x was not offered: %w", f, f&^uint64(protoOffered), errRefused)
	}
	c.rec.Protocol, c.rec.ProtocolSet = f, true
	return nil
}

func (s *session) getQueueNum(c *change, _ *message) error {
	c.replyU64(uint64(s.server.cfg.Queues))
	return nil
}

func (s *session) getMaxMemSlots(c *change, _ *message) error {
	c.replyU64(volatile.SessionRegions)
	return nil
}

// resetOwner disables all rings. Frontends that send it go on with the session.
func (s *session) resetOwner(c *change, _ *message) error {
	for i := range c.rec.Rings {
		c.rec.Rings[i].Enabled = false
	}
	c.stop = allRings
	return nil
}

// resetDevice stops and disables all rings, and forgets what the driver has set.
// What the frontend has set (memory, descriptors to call, protocol) stays, and so does
// writeback: a frontend that has read the config space tells the next driver what it
// was.
func (s *session) resetDevice(c *change, _ *message) error {
	for i := range c.rec.Rings {
		q := &c.rec.Rings[i]
		q.Enabled, q.Started, q.Kick = false, false, 0
	}
	c.stop = allRings
	return nil
}

// ring returns ring i of the record, if it is one of ours.
func (s *session) ring(c *change, what uint32, i uint32) (*volatile.SessionRing, error) {
	if i >= uint32(s.server.cfg.Queues) {
		return nil, fmt.Errorf("%s of ring %d: there are %d: %w", requestName(what), i, s.server.cfg.Queues, errRefused)
	}
	return &c.rec.Rings[i], nil
}

func (s *session) setVringNum(c *change, m *message) error {
	i, n := m.state()
	q, err := s.ring(c, m.request, i)
	switch {
	case err != nil:
		return err
	case n == 0 || n > volatile.MaxRingSize || bits.OnesCount32(n) != 1:
		return fmt.Errorf("SET_VRING_NUM of ring %d: %d descriptors: must be a power of two up to %d: %w", i, n, volatile.MaxRingSize, errRefused)
	case q.Running && q.Size != uint16(n):
		return fmt.Errorf("SET_VRING_NUM of ring %d: it runs: %w", i, errRefused)
	}
	q.Size = uint16(n)
	return nil
}

// setVringAddr: a frontend turns the logging of a used ring on and off with it,
// while the ring runs. The used index is read again.
func (s *session) setVringAddr(c *change, m *message) error {
	p := m.payload
	i, flags := le.Uint32(p), le.Uint32(p[4:])
	q, err := s.ring(c, m.request, i)
	if err != nil {
		return err
	}
	q.Desc, q.Use, q.Avail, q.LogAddr = le.Uint64(p[8:]), le.Uint64(p[16:]), le.Uint64(p[24:]), le.Uint64(p[32:])
	q.Addressed, q.LogUsed = true, flags&vringLog != 0
	c.stop = 1 << i
	return nil
}

// setVringBase: what counts is the used index in the ring, with which the base
// agrees wherever nothing is in flight; it is kept to be told again.
func (s *session) setVringBase(c *change, m *message) error {
	i, n := m.state()
	q, err := s.ring(c, m.request, i)
	switch {
	case err != nil:
		return err
	case n > 0xffff:
		return fmt.Errorf("SET_VRING_BASE of ring %d: index %d: %w", i, n, errRefused)
	case q.Running && q.Base != uint16(n): // else a predecessor may have done this message
		return fmt.Errorf("SET_VRING_BASE of ring %d: it runs: %w", i, errRefused)
	}
	q.Base = uint16(n)
	return nil
}

// getVringBase stops a ring, once nothing of it is in flight, and tells where it
// stands. It runs again when it is given a kick.
func (s *session) getVringBase(c *change, m *message) error {
	i, _ := m.state()
	q, err := s.ring(c, m.request, i)
	if err != nil {
		return err
	}
	c.stop = 1 << i
	c.stopped = func() {
		q.Started, q.Kick = false, 0
		c.reply = le.AppendUint32(le.AppendUint32(nil, i), uint32(q.Base))
	}
	return nil
}

func (s *session) setVringEnable(c *change, m *message) error {
	i, on := m.state()
	q, err := s.ring(c, m.request, i)
	if err != nil {
		return err
	}
	if on > 1 {
		return fmt.Errorf("SET_VRING_ENABLE of ring %d: %d: %w", i, on, errRefused)
	}
	if q.Enabled = on == 1; !q.Enabled {
		c.stop = 1 << i
	}
	return nil
}

// event takes the event descriptor of a ring out of m.
func (s *session) event(c *change, m *message) (q *volatile.SessionRing, place uint8, err error) {
	v := m.u64()
	i := uint32(v & vringIndex)
	if q, err = s.ring(c, m.request, i); err != nil {
		return nil, 0, err
	}
	if none := v&vringNoFD != 0; none != (len(m.files) == 0) || v > vringNoFD|vringIndex {
		return nil, 0, fmt.Errorf("%s of %#x with %d descriptors: %w", requestName(m.request), v, len(m.files), errGarbage)
	}
	c.signal |= 1 << i
	if len(m.files) == 0 {
		return q, 0, nil
	}
	if err := sys.AdoptEvent(m.files[0]); err != nil {
		return nil, 0, fmt.Errorf("%s of ring %d: %w: %w", requestName(m.request), i, errRefused, err)
	}
	place, err = c.put(m.take(0))
	return q, place, err
}

// setVringKick starts a ring that is enabled; one that is not waits.
func (s *session) setVringKick(c *change, m *message) error {
	q, place, err := s.event(c, m)
	if err == nil {
		q.Kick, q.Started = place, true
	}
	return err
}

func (s *session) setVringCall(c *change, m *message) error {
	q, place, err := s.event(c, m)
	if err == nil {
		q.Call = place
	}
	return err
}

func (s *session) setVringErr(c *change, m *message) error {
	q, place, err := s.event(c, m)
	if err == nil {
		q.Err = place
	}
	return err
}
