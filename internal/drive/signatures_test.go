package drive

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vacate/internal/mem"
)

var pack = flag.String("pack", "", "folder of images made by testdata/signatures/make.sh, to be packed as golden files")

// A golden file is the beginning and the end of an image that the format's own
// tool made: gzip of the image's size and of its 4096-byte blocks that are not
// zeros, each after its number.
const (
	goldenHead = 72 << 10 // bytes kept at either end
	goldenDir  = "testdata/signatures"
)

func packGolden(t *testing.T, from, to string) {
	img, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	head := goldenHead
	switch filepath.Base(from) {
	case "luks1":
		head = 4 << 10 // what follows is key material, which does not compress
	case "luks2":
		head = 20 << 10
	case "udf":
		head = 520 << 10 // its anchor is at 512 KiB
	}
	var b bytes.Buffer
	z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
	binary.Write(z, binary.LittleEndian, int64(len(img)))
	for off := 0; off < len(img); off += 4096 {
		block := make([]byte, 4096)
		copy(block, img[off:])
		if (off < head || off >= len(img)-goldenHead) && !mem.IsZero(block) {
			binary.Write(z, binary.LittleEndian, int64(off/4096))
			z.Write(block)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// golden unpacks a golden file into a sparse image.
func golden(t testing.TB, name string) string {
	t.Helper()
	f, err := os.Open(filepath.Join(goldenDir, name+".gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var size int64
	if err := binary.Read(z, binary.LittleEndian, &size); err != nil {
		t.Fatal(err)
	}
	path := sparse(t, name+".img", size)
	img, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	for {
		var n int64
		block := make([]byte, 4096)
		if err := binary.Read(z, binary.LittleEndian, &n); err == io.EOF {
			return path
		} else if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(z, block); err != nil {
			t.Fatal(err)
		}
		if _, err := img.WriteAt(block[:min(4096, size-n*4096)], n*4096); err != nil {
			t.Fatal(err)
		}
	}
}

// sparse makes an empty file of size bytes.
func sparse(t testing.TB, name string, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return path
}

// goldens are the golden files, what must be said of each, and what blkid says.
var goldens = []struct{ name, code, want, blkid string }{
	{"mbr", CodePartitionTable, "an MBR partition table (2 partitions)", "dos"},
	{"gpt", CodePartitionTable, "a GPT partition table", "gpt"},
	{"sun", CodePartitionTable, "a Sun disklabel", "sun"},
	{"sgi", CodePartitionTable, "an SGI disklabel", "sgi"},
	{"ext2", CodeSignature, `an ext2 file system labelled "tenants"`, "ext2"},
	{"ext3", CodeSignature, `an ext3 file system labelled "tenants"`, "ext3"},
	{"ext4", CodeSignature, `an ext4 file system labelled "tenants"`, "ext4"},
	{"xfs", CodeSignature, `an XFS file system labelled "tenants"`, "xfs"},
	{"btrfs", CodeSignature, `a btrfs file system labelled "tenants"`, "btrfs"},
	{"f2fs", CodeSignature, "an F2FS file system", "f2fs"},
	{"fat12", CodeSignature, `a FAT file system labelled "TENANTS"`, "vfat"},
	{"fat16", CodeSignature, `a FAT file system labelled "TENANTS"`, "vfat"},
	{"fat32", CodeSignature, `a FAT file system labelled "TENANTS"`, "vfat"},
	{"exfat", CodeSignature, "an exFAT file system", "exfat"},
	{"ntfs", CodeSignature, "an NTFS file system", "ntfs"},
	{"nilfs2", CodeSignature, "a NILFS2 file system", "nilfs2"},
	{"udf", CodeSignature, "a UDF file system", "udf"},
	{"swap", CodeSignature, `swap space labelled "tenants"`, "swap"},
	{"iso9660", CodeSignature, `an ISO 9660 file system labelled "TENANTS"`, "iso9660"},
	{"squashfs", CodeSignature, "a squashfs file system", "squashfs"},
	{"erofs", CodeSignature, "an EROFS file system", "erofs"},
	{"luks1", CodeSignature, "a LUKS1 encrypted volume", "crypto_LUKS"},
	{"luks2", CodeSignature, `a LUKS2 encrypted volume labelled "tenants"`, "crypto_LUKS"},
	{"lvm", CodeSignature, "an LVM physical volume", "LVM2_member"},
	{"bcache", CodeSignature, "a bcache device (or an early bcachefs)", "bcache"},
	{"drbd", CodeSignature, "a DRBD device", "drbd"},
}

// TestSignatures inspects what the tools of each format made. Where blkid is
// installed, it must agree that the golden file is what it says.
func TestSignatures(t *testing.T) {
	if *pack != "" {
		for _, g := range goldens {
			packGolden(t, filepath.Join(*pack, g.name), filepath.Join(goldenDir, g.name+".gz"))
		}
	}
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) {
			path := golden(t, g.name)
			checkBlkid(t, path, g.blkid)
			ins, err := Inspect(path)
			if err != nil {
				t.Fatal(err)
			}
			hit := false
			for _, f := range ins.Findings {
				if f.Code == g.code && strings.Contains(f.Text, " "+g.want) {
					hit = f.Refuse && f.Force
				}
				if strings.Contains(f.Text, "unknown data") {
					t.Errorf("called unknown: %s", f.Text)
				}
			}
			if !hit {
				t.Errorf("no forceable refusal with code %q and %q in %+v", g.code, g.want, ins.Findings)
			}
			if err := tryEnroll(path); err == nil {
				t.Error("it was enrolled")
			}
		})
	}
}

// tryEnroll tries to enroll path without force.
func tryEnroll(path string) error {
	_, err := Enroll(path, EnrollOptions{Node: ID{1}, UUID: ID{2}})
	return err
}

// checkBlkid compares with util-linux, an implementation of its own.
func checkBlkid(t *testing.T, path, want string) {
	t.Helper()
	blkid, err := exec.LookPath("blkid")
	if err != nil {
		blkid = "/usr/sbin/blkid"
	}
	if _, err := os.Stat(blkid); err != nil {
		t.Log("blkid is not installed: not compared")
		return
	}
	out, _ := exec.Command(blkid, "-p", "-o", "value", "-s", "TYPE", "-s", "PTTYPE", path).Output()
	if !strings.Contains(" "+strings.Join(strings.Fields(string(out)), " ")+" ", " "+want+" ") {
		t.Errorf("blkid says %q, want %q", strings.TrimSpace(string(out)), want)
	}
}

// made are formats whose tools need a kernel with their driver: headers made by
// their specification, which blkid must recognise too ("" where it has no
// probe, or checks more than a header).
var made = []struct {
	want, blkid string
	size        int64
	write       func(b []byte)
}{
	{"a member of an MD RAID (metadata 0.90)", "linux_raid_member", 16 << 20, func(b []byte) {
		sb := b[len(b)&^0xffff-0x10000:]
		binary.LittleEndian.PutUint32(sb, 0xa92b4efc)
		binary.LittleEndian.PutUint32(sb[8:], 90)
	}},
	{`a member of an MD RAID (metadata 1.0) labelled "host:0"`, "linux_raid_member", 16 << 20, func(b []byte) { md1(b, int64(len(b))&^0xfff-0x2000) }},
	{`a member of an MD RAID (metadata 1.1) labelled "host:0"`, "linux_raid_member", 16 << 20, func(b []byte) { md1(b, 0) }},
	{`a member of an MD RAID (metadata 1.2) labelled "host:0"`, "linux_raid_member", 16 << 20, func(b []byte) { md1(b, 4096) }},
	{"a member of a ZFS pool", "zfs_member", 64 << 20, func(b []byte) { zfs(b, 0, binary.LittleEndian) }},
	{"a member of a ZFS pool", "zfs_member", 64<<20 + 8192, func(b []byte) { zfs(b, 64<<20-256<<10, binary.BigEndian) }},
	{"a LUKS2 encrypted volume", "", 16 << 20, func(b []byte) { copy(b[2<<20:], "SKUL\xba\xbe\x00\x02") }},
	{"a DRBD device", "drbd", 16 << 20, func(b []byte) { copy(b[len(b)-4096+60:], "\x83\x74\x02\x6d") }},
	{"the backup of a GPT partition table", "", 16 << 20, func(b []byte) { copy(b[len(b)-512:], "EFI PART") }},
	{"the backup of a GPT partition table", "", 16 << 20, func(b []byte) { copy(b[len(b)-4096:], "EFI PART") }},
	{"a GPT partition table", "", 16 << 20, func(b []byte) { copy(b[4096:], "EFI PART") }},
	{"an MBR partition table (1 partition)", "dos", 16 << 20, func(b []byte) {
		copy(b[446:], "\x00\x00\x02\x00\x83\x00\x00\x00\x01\x00\x00\x00\x10\x00\x00\x00")
		copy(b[510:], "\x55\xaa")
	}},
	{"a boot sector, or an empty MBR", "", 16 << 20, func(b []byte) { copy(b[510:], "\x55\xaa") }},
	{"unknown data", "", 16 << 20, func(b []byte) { b[margin-1] = 1 }},
	{"unknown data", "", 16<<20 + 511, func(b []byte) { b[len(b)-1] = 1 }},
	{"unknown data", "", 16 << 20, func(b []byte) { b[len(b)-margin] = 1 }},
}

func md1(b []byte, off int64) {
	sb := b[off:]
	binary.LittleEndian.PutUint32(sb, 0xa92b4efc)
	binary.LittleEndian.PutUint32(sb[4:], 1)
	copy(sb[32:], "host:0")
	binary.LittleEndian.PutUint64(sb[144:], uint64(off/512))
}

func zfs(b []byte, label int, order binary.ByteOrder) {
	for i := range 8 {
		order.PutUint64(b[label+128<<10+(4+i)<<10:], 0x00bab10c)
	}
}

func TestSignaturesMade(t *testing.T) {
	for _, m := range made {
		t.Run(m.want, func(t *testing.T) {
			b := make([]byte, m.size)
			m.write(b)
			path := filepath.Join(t.TempDir(), "drive.img")
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if m.blkid != "" {
				checkBlkid(t, path, m.blkid)
			}
			if err := tryEnroll(path); err == nil || !strings.Contains(err.Error(), m.want) {
				t.Errorf("enrolling: %v, want it refused for %q", err, m.want)
			}
			if after, _ := os.ReadFile(path); !bytes.Equal(after, b) {
				t.Error("a refusal changed the drive")
			}
		})
	}
}

// TestSignatureTable: each entry of the tables is found where it says, and its
// name has an article, for it becomes part of a sentence.
func TestSignatureTable(t *testing.T) {
	const size = 16 << 20
	for i, s := range append(append([]signature{}, signatures...), tables...) {
		b := make([]byte, size)
		off := s.off
		if off < 0 {
			off += size
		}
		copy(b[off:], s.magic)
		m := newMedium(size, func(off int64, n int) ([]byte, error) { return b[off : off+int64(n)], nil })
		found := m.signatures()
		found = append(found, m.partitionTables(found)...)
		if len(found) != 1 || !strings.HasPrefix(found[0], s.what) {
			t.Errorf("entry %d, %s: found %q", i, s.what, found)
		}
		if first, _, _ := strings.Cut(s.what, " "); first != "a" && first != "an" && first != "hardware" {
			t.Errorf("entry %d, %q: no article", i, s.what)
		}
	}
}

func FuzzSignatures(f *testing.F) {
	for _, m := range made {
		b := make([]byte, m.size)
		m.write(b)
		f.Add(b[:8192], b[len(b)-8192:])
	}
	f.Fuzz(func(t *testing.T, head, tail []byte) {
		const size = 2<<20 + 64<<10
		b := make([]byte, size)
		copy(b, head)
		copy(b[max(0, size-len(tail)):], tail[max(0, len(tail)-size):])
		m := newMedium(size, func(off int64, n int) ([]byte, error) { return b[off : off+int64(n)], nil })
		found := m.signatures()
		found = append(found, m.partitionTables(found)...)
		for _, s := range found {
			if printable(s) != s {
				t.Errorf("%q would reach a terminal", s)
			}
		}
		if len(found) > 0 && m.blank() && mem.IsZero(b[margin:size-margin]) {
			t.Errorf("found %q on a blank drive", found)
		}
	})
}
