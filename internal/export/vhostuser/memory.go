package vhostuser

import (
	"fmt"
	"sync/atomic"
	"syscall"

	"vacate/internal/sys"
	"vacate/internal/virtq"
	"vacate/internal/volatile"
)

// How much is mapped, in bytes. A file with a hole in it costs a frontend nothing, but
// this process has 2^47 bytes of addresses, for all its sessions and for itself.
const (
	mostMemory   = 8 << 40  // of a session's regions together
	mostLog      = 8 << 30  // of a dirty log: a bit a page, up to the highest guest address
	mostInflight = 64 << 20 // of an inflight region
	mostMapped   = 64 << 40 // of all sessions
)

// allMapped is how much is mapped now.
var allMapped atomic.Uint64

// A mapping is memory of the frontend's that is mapped here.
type mapping struct {
	whole []byte // as it was mapped
	host  []byte // what was asked for
}

// mapFile maps size bytes of a file. Beyond most it is refused.
func mapFile(fd int, off, size, most uint64) (*mapping, error) {
	if size > most {
		return nil, fmt.Errorf("mapping %d bytes: at most %d are: %w", size, most, syscall.ENOMEM)
	}
	if all := allMapped.Add(size); all > mostMapped {
		allMapped.Add(-size)
		return nil, fmt.Errorf("mapping %d bytes: with those of all sessions these are more than %d: %w", size, uint64(mostMapped), syscall.ENOMEM)
	}
	whole, host, err := sys.MapGuest(fd, off, size)
	if err != nil {
		allMapped.Add(-size)
		return nil, err
	}
	return &mapping{whole: whole, host: host}, nil
}

func (m *mapping) close() error {
	allMapped.Add(-uint64(len(m.host)))
	return sys.Unmap(m.whole)
}

// parseRegion reads a memory region description.
func parseRegion(b []byte) volatile.SessionRegion {
	return volatile.SessionRegion{Guest: le.Uint64(b), Size: le.Uint64(b[8:]), User: le.Uint64(b[16:]), Offset: le.Uint64(b[24:])}
}

// addRegion puts r, whose memory lies in the file fd, into slot i of the record.
func (c *change) addRegion(i int, r volatile.SessionRegion, fd int) error {
	m, err := mapFile(fd, r.Offset, r.Size, mostMemory)
	if err != nil {
		_ = sys.CloseFD(fd) // never used
		return fmt.Errorf("memory region at guest address %#x: %w: %w", r.Guest, errRefused, err)
	}
	if r.Place, err = c.put(fd); err != nil {
		_ = m.close() // likewise
		return err
	}
	c.maps[r.Place] = m
	c.rec.Regions[i] = r
	return nil
}

// memory returns the guest's memory as c describes it, nil without any.
func (s *session) memory(c *change) (*virtq.Memory, error) {
	var regions []virtq.Region
	total := uint64(0)
	for i := range c.rec.Regions {
		r := &c.rec.Regions[i]
		if r.Place == 0 {
			continue
		}
		m := c.maps[r.Place]
		if m == nil {
			m = s.maps[r.Place]
		}
		if total += r.Size; total > mostMemory {
			return nil, fmt.Errorf("guest memory of more than %d bytes: %w", uint64(mostMemory), errRefused)
		}
		regions = append(regions, virtq.Region{GuestAddr: r.Guest, Size: r.Size, UserAddr: r.User, Host: m.host})
	}
	if len(regions) == 0 {
		return nil, nil
	}
	m, err := virtq.NewMemory(regions)
	if err != nil {
		return nil, fmt.Errorf("guest memory: %w: %w", errRefused, err)
	}
	return m, nil
}

// setMemTable replaces all regions (SET_MEM_TABLE).
func (s *session) setMemTable(c *change, m *message) error {
	n := int(le.Uint32(m.payload))
	if n > maxTable || n != len(m.files) || len(m.payload) < 8+n*regionSize {
		return fmt.Errorf("SET_MEM_TABLE of %d regions in %d bytes with %d descriptors: %w", n, len(m.payload), len(m.files), errGarbage)
	}
	c.rec.Regions = [volatile.SessionRegions]volatile.SessionRegion{}
	c.rec.Removed = volatile.SessionRegion{}
	for i := range n {
		if err := c.addRegion(i, parseRegion(m.payload[8+i*regionSize:]), m.take(i)); err != nil {
			return err
		}
	}
	c.stop = allRings
	return nil
}

// same reports whether a and b are the same piece of the guest's memory.
func same(a, b *volatile.SessionRegion) bool {
	return a.Guest == b.Guest && a.User == b.User && a.Size == b.Size
}

// addMemReg adds a region (ADD_MEM_REG). One that is there is replaced: the
// predecessor may have done this message already.
func (s *session) addMemReg(c *change, m *message) error {
	r := parseRegion(m.payload[8:])
	free := -1
	for i := range c.rec.Regions {
		g := &c.rec.Regions[i]
		if g.Place != 0 && same(g, &r) {
			free = i
			break
		}
		if g.Place == 0 && free < 0 {
			free = i
		}
	}
	if free < 0 {
		return fmt.Errorf("ADD_MEM_REG: there are %d regions already: %w", volatile.SessionRegions, errRefused)
	}
	c.rec.Removed = volatile.SessionRegion{}
	c.stop = allRings
	return c.addRegion(free, r, m.take(0))
}

// remMemReg removes a region (REM_MEM_REG). Done again, it is done.
func (s *session) remMemReg(c *change, m *message) error {
	r := parseRegion(m.payload[8:])
	for i := range c.rec.Regions {
		if g := &c.rec.Regions[i]; g.Place != 0 && same(g, &r) {
			c.rec.Regions[i] = volatile.SessionRegion{}
			r.Offset = 0
			c.rec.Removed = r
			c.stop = allRings
			return nil
		}
	}
	if c.rec.Removed.Size != 0 && same(&c.rec.Removed, &r) {
		return nil
	}
	return fmt.Errorf("REM_MEM_REG: no region of %#x bytes at guest address %#x: %w", r.Size, r.Guest, errRefused)
}
