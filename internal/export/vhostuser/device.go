package vhostuser

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"os"

	"vacate/internal/sys"
	"vacate/internal/virtioblk"
	"vacate/internal/virtq"
	"vacate/internal/volatile"
)

const (
	// configOffset is what some frontends add to offsets in the config space: where
	// it lies in the registers of virtio over MMIO.
	configOffset = 0x100
	// usualRing is for how long a ring requests are made, as the config space tells:
	// frontends read it before they say how long theirs are.
	usualRing = 128
)

// configSpace is the device's, and zeros behind it: newer fields are those of
// features that were not offered.
func (s *session) configSpace(r *volatile.SessionRecord) [maxConfig]byte {
	var b [maxConfig]byte
	c := virtioblk.ConfigSpace(s.server.geometry, s.server.cfg.Queues, usualRing, !r.WriteThrough)
	copy(b[:], c[:])
	return b
}

// parseConfig returns what part of the config space m is about.
func parseConfig(m *message) (off, n int, ok bool) {
	o, l := le.Uint32(m.payload), le.Uint32(m.payload[4:])
	if o >= configOffset {
		o -= configOffset
	}
	if o > maxConfig || l > maxConfig || o+l > maxConfig || int(l) != len(m.payload)-configHeader {
		return 0, 0, false
	}
	return int(o), int(l), true
}

// getConfig tells a part of the config space. An error is an empty reply.
func (s *session) getConfig(c *change, m *message) error {
	off, n, ok := parseConfig(m)
	if !ok {
		c.reply = []byte{}
		return nil
	}
	space := s.configSpace(&c.rec)
	c.reply = append(append([]byte{}, m.payload[:configHeader]...), space[off:off+n]...)
	c.rec.ToldBytes = uint64(s.server.geometry.Size)
	return nil
}

// setConfig changes writeback, the one field that a driver may. After a migration
// the frontend writes all of it, of which the rest is ours.
func (s *session) setConfig(c *change, m *message) error {
	off, n, ok := parseConfig(m)
	flags := le.Uint32(m.payload[8:])
	if !ok || flags&^configMigration != 0 {
		return fmt.Errorf("SET_CONFIG of %d bytes: %w", len(m.payload), errRefused)
	}
	data := m.payload[configHeader:]
	if at := virtioblk.ConfigWCE - off; at >= 0 && at < n && (n == 1 || flags == configMigration) {
		if data[at] > 1 {
			return fmt.Errorf("SET_CONFIG of writeback to %d: %w", data[at], errRefused)
		}
		c.rec.WriteThrough = data[at] == 0
		return nil
	}
	if flags == configMigration {
		return nil
	}
	return fmt.Errorf("SET_CONFIG of %d bytes at %d: they are read-only: %w", n, off, errRefused)
}

// setLogBase takes the dirty log of a migration.
func (s *session) setLogBase(c *change, m *message) error {
	size, off := m.u64(), le.Uint64(m.payload[8:])
	fd := m.take(0)
	mapped, err := mapFile(fd, off, size, mostLog)
	if err != nil {
		_ = sys.CloseFD(fd) // never used
		return fmt.Errorf("SET_LOG_BASE: %w: %w", errRefused, err)
	}
	place, err := c.put(fd)
	if err != nil {
		return errors.Join(err, mapped.close())
	}
	c.maps[place] = mapped
	c.rec.Log, c.rec.LogSize, c.rec.LogOffset = place, size, off
	if c.rec.Features&virtioblk.FeatureLogAll != 0 {
		c.stop = allRings
	}
	c.replyU64(0)
	return nil
}

// parseInflight reads an inflight description.
func (s *session) parseInflight(m *message) (size, off uint64, queues, ring uint16, err error) {
	p := m.payload
	size, off = le.Uint64(p), le.Uint64(p[8:])
	queues, ring = le.Uint16(p[16:]), le.Uint16(p[18:])
	if queues == 0 || int(queues) > s.server.cfg.Queues || ring == 0 || ring > volatile.MaxRingSize || bits.OnesCount16(ring) != 1 {
		err = fmt.Errorf("%s of %d rings of %d descriptors: %w", requestName(m.request), queues, ring, errRefused)
	}
	return size, off, queues, ring, err
}

// getInflightFD makes an inflight region for the frontend. It is used only when the
// frontend sets it.
func (s *session) getInflightFD(c *change, m *message) error {
	_, _, queues, ring, err := s.parseInflight(m)
	if err != nil {
		return err
	}
	page := uint64(os.Getpagesize())
	size := (virtq.InflightSize(int(queues), int(ring)) + page - 1) &^ (page - 1)
	f, err := sys.Memfd("vacate-inflight", int64(size))
	if err == nil {
		c.file, err = sys.Detach(f)
	}
	if err != nil {
		return fmt.Errorf("GET_INFLIGHT_FD: %w: %w", errRefused, err)
	}
	c.reply = make([]byte, len(m.payload))
	le.PutUint64(c.reply, size)
	le.PutUint16(c.reply[16:], queues)
	le.PutUint16(c.reply[18:], ring)
	return nil
}

// setInflightFD takes a region to note in what is in flight.
func (s *session) setInflightFD(c *change, m *message) error {
	size, off, queues, ring, err := s.parseInflight(m)
	if err != nil {
		return err
	}
	if need := virtq.InflightSize(int(queues), int(ring)); size < need || off%8 != 0 || off > math.MaxInt64 {
		return fmt.Errorf("SET_INFLIGHT_FD of %d bytes at %d: %d rings of %d descriptors take %d: %w", size, off, queues, ring, need, errRefused)
	}
	fd := m.take(0)
	mapped, err := mapFile(fd, off, size, mostInflight)
	if err != nil {
		_ = sys.CloseFD(fd) // never used
		return fmt.Errorf("SET_INFLIGHT_FD: %w: %w", errRefused, err)
	}
	place, err := c.put(fd)
	if err != nil {
		return errors.Join(err, mapped.close())
	}
	c.maps[place] = mapped
	c.rec.Inflight, c.rec.InflightSize, c.rec.InflightOffset = place, size, off
	c.rec.InflightQueues, c.rec.InflightRing = queues, ring
	c.stop = allRings
	return nil
}

// setBackendReqFD takes the channel on which we tell that the volume has grown.
func (s *session) setBackendReqFD(c *change, m *message) error {
	// The keeper would have to close whatever else it is, and wait for a FUSE server
	// that does not want it to.
	if err := sys.UnixStream(m.files[0]); err != nil {
		return fmt.Errorf("SET_BACKEND_REQ_FD: %w: %w", errRefused, err)
	}
	place, err := c.put(m.take(0))
	if err == nil {
		c.rec.Channel = place
	}
	return err
}

// tell says on the channel that the config space has changed, if the volume has
// another size than the frontend knows.
func (s *session) tell() error {
	const need = protoBackendReq | protoConfig
	size := uint64(s.server.geometry.Size)
	if s.rec.ToldBytes == 0 || s.rec.ToldBytes == size || s.rec.Channel == 0 || s.rec.Protocol&need != need {
		return nil
	}
	var b []byte
	b = le.AppendUint32(b, backendConfigChange)
	b = le.AppendUint32(b, flagsVersion)
	b = le.AppendUint32(b, 0)
	if n, errno := sys.SendNow(s.in(s.rec.Channel), b); n != len(b) {
		s.server.cfg.Log.Debug("telling a vhost-user frontend of the new size", "errno", errno)
		return nil // it is told after its next message
	}
	r := s.rec
	r.ToldBytes = size
	return s.commit(&r)
}
