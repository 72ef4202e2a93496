package drive

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"vacate/internal/mem"
)

// A medium is the drive as detectors see it: its first and last MiB in memory,
// the rest by small reads. The first read that fails is kept.
type medium struct {
	size       int64
	head, tail []byte
	tailOff    int64
	read       func(off int64, n int) ([]byte, error)
	err        error
}

func newMedium(size int64, read func(off int64, n int) ([]byte, error)) *medium {
	m := &medium{size: size, read: read, tailOff: max(0, size-margin)}
	m.head = m.get(0, int(min(size, margin)))
	m.tail = m.get(m.tailOff, int(size-m.tailOff))
	return m
}

func (m *medium) get(off int64, n int) []byte {
	b, err := m.read(off, n)
	if err != nil && m.err == nil {
		m.err = err
	}
	return b
}

// at returns n bytes at off, which is from the end when negative; nil if that
// is not within the drive, or cannot be read.
func (m *medium) at(off int64, n int) []byte {
	if off < 0 {
		off += m.size
	}
	if off < 0 || off > m.size-int64(n) {
		return nil
	}
	switch end := off + int64(n); {
	case end <= int64(len(m.head)):
		return m.head[off:end]
	case off >= m.tailOff && end-m.tailOff <= int64(len(m.tail)):
		return m.tail[off-m.tailOff : end-m.tailOff]
	}
	b := m.get(off, n)
	if len(b) != n {
		return nil
	}
	return b
}

func (m *medium) is(off int64, magic string) bool { return string(m.at(off, len(magic))) == magic }

// label returns what a label says, in quotes, after a blank; or nothing.
func (m *medium) label(s span) string {
	b := m.at(s.off, int(s.len))
	if s.len == 0 || b == nil {
		return ""
	}
	b, _, _ = bytes.Cut(b, []byte{0})
	if text := printable(string(b)); text != "" && text != "NO NAME" {
		return fmt.Sprintf(" labelled %q", text)
	}
	return ""
}

// signatures returns all that is recognised but partition tables, each named
// once.
func (m *medium) signatures() []string {
	var all []string
	for _, s := range signatures {
		if m.is(s.off, s.magic) {
			all = append(all, s.what+m.label(s.label))
		}
	}
	for _, detect := range []func(*medium) string{detectExt, detectSwap, detectLVM, detectLUKS2, detectMD, detectDRBD, detectZFS} {
		if what := detect(m); what != "" {
			all = append(all, what)
		}
	}
	return unique(all)
}

func unique(all []string) []string {
	seen := make(map[string]bool)
	var out []string
	for _, s := range all {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}

// detectExt tells ext2, ext3 and ext4 apart by their features
// (linux fs/ext4/ext4.h: s_magic, s_feature_compat, s_feature_incompat).
func detectExt(m *medium) string {
	sb := m.at(1024, 256)
	if sb == nil || sb[56] != 0x53 || sb[57] != 0xef {
		return ""
	}
	const hasJournal, extents = 0x4, 0x40
	name := "ext2"
	switch compat, incompat := binary.LittleEndian.Uint32(sb[92:]), binary.LittleEndian.Uint32(sb[96:]); {
	case incompat&extents != 0:
		name = "ext4"
	case compat&hasJournal != 0:
		name = "ext3"
	}
	return "an " + name + " file system" + m.label(span{1024 + 120, 16})
}

// detectSwap: the magic ends the first page, whatever its size was there
// (linux include/linux/swap.h).
func detectSwap(m *medium) string {
	for page := int64(4096); page <= 65536; page *= 2 {
		if m.is(page-10, "SWAPSPACE2") {
			return "swap space" + m.label(span{1024 + 28, 16})
		}
		if m.is(page-10, "SWAP-SPACE") {
			return "swap space"
		}
	}
	return ""
}

// detectLVM: the label is in one of the first four sectors
// (lvm2 lib/label/label.h).
func detectLVM(m *medium) string {
	for sector := range int64(4) {
		if m.is(512*sector, "LABELONE") {
			return "an LVM physical volume"
		}
	}
	return ""
}

// detectLUKS2 finds the second header, which outlives the wiping of the first
// (LUKS2 on-disk format 1.1.3, 2.2: places of the secondary header).
func detectLUKS2(m *medium) string {
	for off := int64(16 << 10); off <= 4<<20; off *= 2 {
		if m.is(off, "SKUL\xba\xbe") {
			return "a LUKS2 encrypted volume" + m.label(span{off + 24, 48})
		}
	}
	return ""
}

// detectMD looks for the superblock of each metadata version where it belongs
// (md(4), linux include/uapi/linux/raid/md_p.h).
func detectMD(m *medium) string {
	const little, big = "\xfc\x4e\x2b\xa9", "\xa9\x2b\x4e\xfc" // MD_SB_MAGIC
	if off := m.size&^0xffff - 0x10000; off > 0 && (m.is(off, little) || m.is(off, big)) {
		return "a member of an MD RAID (metadata 0.90)"
	}
	for _, v := range []struct {
		off  int64
		name string
	}{{m.size&^0xfff - 0x2000, "1.0"}, {0, "1.1"}, {4096, "1.2"}} {
		if v.off >= 0 && m.is(v.off, little+"\x01\x00\x00\x00") {
			return "a member of an MD RAID (metadata " + v.name + ")" + m.label(span{v.off + 32, 32})
		}
	}
	return ""
}

// detectDRBD: internal metadata ends the device; the magic is at the same place
// in versions 8 and 9 (drbd-headers drbd_meta_data.h).
func detectDRBD(m *medium) string {
	for _, magic := range []string{"\x83\x74\x02\x6b", "\x83\x74\x02\x6c", "\x83\x74\x02\x6d"} {
		if m.is(m.size&^0xfff-4096+60, magic) {
			return "a DRBD device"
		}
	}
	return ""
}

// detectZFS looks for uberblocks in the four labels of a device (ZFS on-disk
// specification, 1.2 and 1.3: two at either end, of 256 KiB).
func detectZFS(m *medium) string {
	const label, ring, step = 256 << 10, 128 << 10, 1 << 10
	const little, big = "\x0c\xb1\xba\x00\x00\x00\x00\x00", "\x00\x00\x00\x00\x00\xba\xb1\x0c"
	end := m.size &^ (label - 1)
	for _, l := range []int64{0, label, end - 2*label, end - label} {
		for off := l + ring; l >= 0 && off < l+label; off += step {
			if m.is(off, little) || m.is(off, big) {
				return "a member of a ZFS pool"
			}
		}
	}
	return ""
}

// partitionTables returns the partition tables. others tells of a file system
// whose boot sector looks like an MBR.
func (m *medium) partitionTables(others []string) []string {
	var all []string
	// UEFI 2.10, 5.3.2: the header is in the second logical block, its backup in
	// the last.
	for _, g := range []struct {
		off  int64
		what string
	}{{512, "a GPT partition table"}, {4096, "a GPT partition table"}, {-512, "the backup of a GPT partition table"}, {-4096, "the backup of a GPT partition table"}} {
		if m.is(g.off, "EFI PART") {
			all = append(all, g.what)
		}
	}
	for _, t := range tables {
		if m.is(t.off, t.magic) {
			all = append(all, t.what)
		}
	}
	if what := m.mbr(); what != "" && len(all) == 0 && !bootSector(others) {
		all = append(all, what)
	}
	return unique(all)
}

// bootSector reports whether one of these ends its first sector as an MBR does.
func bootSector(others []string) bool {
	for _, o := range others {
		for _, fs := range []string{"FAT", "NTFS", "ReFS", "BitLocker"} {
			if strings.Contains(o, fs) {
				return true
			}
		}
	}
	return false
}

// mbr recognises a master boot record (UEFI 2.10, 5.2.1).
func (m *medium) mbr() string {
	if !m.is(510, "\x55\xaa") {
		return ""
	}
	n := 0
	for i := range int64(4) {
		if e := m.at(446+16*i, 16); e[4] != 0 {
			n++
		}
	}
	switch n {
	case 0:
		return "a boot sector, or an empty MBR partition table"
	case 1:
		return "an MBR partition table (1 partition)"
	}
	return fmt.Sprintf("an MBR partition table (%d partitions)", n)
}

// blank reports whether the first and the last MiB are all zeros.
func (m *medium) blank() bool { return mem.IsZero(m.head) && mem.IsZero(m.tail) }
