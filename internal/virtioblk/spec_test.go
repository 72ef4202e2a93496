package virtioblk

import (
	"encoding/binary"
	"testing"

	"vacate/internal/blk"
)

// TestConfigSpace: the fields as struct virtio_blk_config of linux/virtio_blk.h has
// them.
func TestConfigSpace(t *testing.T) {
	c := ConfigSpace(blk.Geometry{Size: 10 << 30, Logical: 512, Physical: 4096}, 4, 256, true)
	le := binary.LittleEndian
	for _, f := range []struct {
		name string
		got  uint64
		want uint64
	}{
		{"capacity", le.Uint64(c[0:]), 10 << 21},
		{"size_max", uint64(le.Uint32(c[8:])), 0},
		{"seg_max", uint64(le.Uint32(c[12:])), 254},
		{"blk_size", uint64(le.Uint32(c[20:])), 512},
		{"physical_block_exp", uint64(c[24]), 3},
		{"alignment_offset", uint64(c[25]), 0},
		{"min_io_size", uint64(le.Uint16(c[26:])), 8},
		{"opt_io_size", uint64(le.Uint32(c[28:])), 0},
		{"wce", uint64(c[32]), 1},
		{"num_queues", uint64(le.Uint16(c[34:])), 4},
		{"max_discard_sectors", uint64(le.Uint32(c[36:])), maxSectors},
		{"max_discard_seg", uint64(le.Uint32(c[40:])), maxSegments},
		{"discard_sector_alignment", uint64(le.Uint32(c[44:])), 8},
		{"max_write_zeroes_sectors", uint64(le.Uint32(c[48:])), maxSectors},
		{"max_write_zeroes_seg", uint64(le.Uint32(c[52:])), maxSegments},
		{"write_zeroes_may_unmap", uint64(c[56]), 1},
	} {
		if f.got != f.want {
			t.Errorf("%s = %d, want %d", f.name, f.got, f.want)
		}
	}
	c = ConfigSpace(blk.Geometry{Size: 1 << 20, Logical: 4096, Physical: 4096}, 1, 2, false)
	if le.Uint32(c[20:]) != 4096 || c[24] != 0 || c[ConfigWCE] != 0 || le.Uint32(c[12:]) != 1 {
		t.Errorf("4096-byte blocks, no cache, tiny rings: %v", c)
	}
}

// TestFeatures: what is offered, and what never is.
func TestFeatures(t *testing.T) {
	const ever = FeatureVersion1 | FeatureEventIdx | FeatureIndirect | FeatureLogAll | FeatureSegMax |
		FeatureBlkSize | FeatureTopology | FeatureFlush | FeatureConfigWCE
	for _, tt := range []struct {
		ro     bool
		queues int
		want   uint64
	}{
		{false, 1, ever | FeatureDiscard | FeatureWriteZeroes},
		{false, 8, ever | FeatureDiscard | FeatureWriteZeroes | FeatureMQ},
		{true, 1, ever | FeatureReadOnly},
	} {
		if got := Features(tt.ro, tt.queues); got != tt.want {
			t.Errorf("Features(%v, %d) = %#x, want %#x", tt.ro, tt.queues, got, tt.want)
		}
	}
	if Features(false, 1)&(1<<30) != 0 {
		t.Error("VHOST_USER_F_PROTOCOL_FEATURES is not the device's")
	}
}
