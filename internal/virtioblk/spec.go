package virtioblk

import (
	"encoding/binary"
	"math/bits"

	"vacate/internal/blk"
)

// Feature bits of the device (virtio 1.2, 5.2.3) and of its rings (6).
const (
	FeatureSegMax      = 1 << 2  // VIRTIO_BLK_F_SEG_MAX
	FeatureReadOnly    = 1 << 5  // VIRTIO_BLK_F_RO
	FeatureBlkSize     = 1 << 6  // VIRTIO_BLK_F_BLK_SIZE
	FeatureFlush       = 1 << 9  // VIRTIO_BLK_F_FLUSH
	FeatureTopology    = 1 << 10 // VIRTIO_BLK_F_TOPOLOGY
	FeatureConfigWCE   = 1 << 11 // VIRTIO_BLK_F_CONFIG_WCE
	FeatureMQ          = 1 << 12 // VIRTIO_BLK_F_MQ
	FeatureDiscard     = 1 << 13 // VIRTIO_BLK_F_DISCARD
	FeatureWriteZeroes = 1 << 14 // VIRTIO_BLK_F_WRITE_ZEROES

	FeatureLogAll   = 1 << 26 // VHOST_F_LOG_ALL: the backend's, never the guest's
	FeatureIndirect = 1 << 28 // VIRTIO_F_INDIRECT_DESC
	FeatureEventIdx = 1 << 29 // VIRTIO_F_EVENT_IDX
	FeatureVersion1 = 1 << 32 // VIRTIO_F_VERSION_1
)

// Types of requests (5.2.6).
const (
	typeIn          = 0
	typeOut         = 1
	typeFlush       = 4
	typeFlushOut    = 5 // the same, of old drivers such as illumos's (virtio 0.9.5, appendix D)
	typeGetID       = 8
	typeDiscard     = 11
	typeWriteZeroes = 13
)

// Results of requests (5.2.6).
const (
	statusOK     = 0
	statusIOErr  = 1
	statusUnsupp = 2
)

// Sizes in bytes (5.2.6).
const (
	headerSize  = 16 // type, reserved, sector
	segmentSize = 16 // sector, sectors, flags: of a discard or write zeroes
	IDSize      = 20 // of the answer to GET_ID
)

// flagUnmap is the only flag of a segment (5.2.6.1).
const flagUnmap = 1

// ConfigSize is the length of the configuration space that is served, in bytes:
// all fields up to those of VIRTIO_BLK_F_WRITE_ZEROES (5.2.4).
const ConfigSize = 60

// Where the fields of the configuration space are that others look at.
const (
	ConfigCapacity = 0  // 8 bytes: sectors of 512 bytes
	ConfigWCE      = 32 // 1 byte: the write cache is on; the only field that a driver may write
)

// Features returns the feature bits that the device offers with that many queues.
// VHOST_USER_F_PROTOCOL_FEATURES is not among them: it is the protocol's.
func Features(ro bool, queues int) uint64 {
	f := uint64(FeatureSegMax | FeatureBlkSize | FeatureFlush | FeatureTopology | FeatureConfigWCE |
		FeatureLogAll | FeatureIndirect | FeatureEventIdx | FeatureVersion1)
	if ro {
		f |= FeatureReadOnly
	} else {
		f |= FeatureDiscard | FeatureWriteZeroes
	}
	if queues > 1 {
		f |= FeatureMQ
	}
	return f
}

// ConfigSpace returns the device's configuration space (5.2.4) for a volume of
// geometry g, with rings of at most queueSize descriptors. wce says that the write
// cache is on, as it is until a driver turns it off.
func ConfigSpace(g blk.Geometry, queues int, queueSize int, wce bool) [ConfigSize]byte {
	var c [ConfigSize]byte
	le := binary.LittleEndian
	logical := logicalOf(g)
	le.PutUint64(c[ConfigCapacity:], uint64(g.Size)/blk.SectorSize)
	le.PutUint32(c[12:], uint32(max(queueSize-2, 1))) // seg_max: header and status take two
	le.PutUint32(c[20:], uint32(logical))             // blk_size
	physical := max(g.Physical, logical)
	c[24] = uint8(bits.Len(uint(physical/logical)) - 1) // physical_block_exp
	le.PutUint16(c[26:], uint16(physical/logical))      // min_io_size, in logical blocks
	if wce {
		c[ConfigWCE] = 1
	}
	le.PutUint16(c[34:], uint16(queues))
	le.PutUint32(c[36:], maxSectors)                   // max_discard_sectors
	le.PutUint32(c[40:], maxSegments)                  // max_discard_seg
	le.PutUint32(c[44:], blk.BlockSize/blk.SectorSize) // discard_sector_alignment
	le.PutUint32(c[48:], maxSectors)                   // max_write_zeroes_sectors
	le.PutUint32(c[52:], maxSegments)                  // max_write_zeroes_seg
	c[56] = 1                                          // write_zeroes_may_unmap
	return c
}

// logicalOf is the smallest unit of a driver's requests, in bytes.
func logicalOf(g blk.Geometry) int { return max(g.Logical, blk.SectorSize) }
