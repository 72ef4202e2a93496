package drive

// A signature is what a format leaves at a fixed place, by which its owners
// recognise it. The table is wider than it need be: whatever it misses is found
// as unknown data. Offsets are bytes from the drive's start, or, when negative,
// from its end.
type signature struct {
	off   int64
	magic string
	what  string // with its article: it follows "holds"
	label span   // where its label is, if it has one
}

type span struct{ off, len int64 }

// signatures are what claims a whole drive or partition for itself.
var signatures = []signature{
	// Volume managers, encryption, clusters.
	{0, "LUKS\xba\xbe\x00\x01", "a LUKS1 encrypted volume", span{}},                                                                      // LUKS1 on-disk format 1.2.3, figure 1
	{0, "LUKS\xba\xbe\x00\x02", "a LUKS2 encrypted volume", span{24, 48}},                                                                // LUKS2 on-disk format 1.1.3, 2.1
	{3, "-FVE-FS-", "a BitLocker volume", span{}},                                                                                        // libbde, BitLocker volume header
	{0, "bluestore block device\n", "a Ceph OSD (BlueStore)", span{}},                                                                    // ceph src/os/bluestore/bluestore_types.h
	{4120, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "a bcache device (or an early bcachefs)", span{4168, 32}}, // linux drivers/md/bcache/bcache_ondisk.h
	{4120, "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef", "a bcachefs file system", span{4168, 32}},                 // linux fs/bcachefs/bcachefs_format.h
	{1 << 20, "\x0d\xd0\x01\xc0", "a VMware VMFS volume", span{}},                                                                        // util-linux superblocks/vmfs.c
	{2 << 20, "\x5e\xf1\xab\x2f", "a VMware VMFS file system", span{}},                                                                   // util-linux superblocks/vmfs.c
	{0, "dmvdo001", "a VDO volume", span{}},                                                                                              // linux drivers/md/dm-vdo/encodings.c
	{0, "integrt\x00", "a dm-integrity volume", span{}},                                                                                  // linux drivers/md/dm-integrity.c
	{0, "verity\x00\x00", "a dm-verity hash device", span{}},                                                                             // cryptsetup lib/verity/verity.c
	{516, "!Stra0tis\x86\xff\x02^\x41rh", "a Stratis device", span{}},                                                                    // stratisd BDA, sector 1
	{32, "ORCLDISK", "an Oracle ASM disk", span{40, 24}},                                                                                 // util-linux superblocks/oracleasm: dl_tag
	{-512, "\xde\x11\xde\x11", "hardware RAID metadata (DDF)", span{}},                                                                   // SNIA DDF 2.0, 5.1
	{-1024, "Intel Raid ISM Cfg Sig. ", "hardware RAID metadata (Intel IMSM)", span{}},                                                   // mdadm super-intel.c
	{65536, "\x01\x16\x19\x70", "a GFS2 file system", span{}},                                                                            // linux gfs2_ondisk.h, GFS2_MAGIC
	{8192, "OCFSV2", "an OCFS2 file system", span{}},                                                                                     // linux fs/ocfs2/ocfs2_fs.h, 4K blocks
	{4086, "S1SUSPEND\x00", "a hibernated system's memory", span{}},                                                                      // linux kernel/power/swap.c
	{4086, "ULSUSPEND\x00", "a hibernated system's memory", span{}},                                                                      // suspend-utils swsusp.h
	{4086, "LINHIB0001", "a hibernated system's memory", span{}},                                                                         // util-linux superblocks/swap.c

	// File systems; ext2, ext3 and ext4 are told apart in detect.go.
	{0, "XFSB", "an XFS file system", span{108, 12}},                   // XFS algorithms and data structures, 13.1
	{0x10040, "_BHRfS_M", "a btrfs file system", span{0x1012b, 256}},   // btrfs on-disk format, superblock
	{1024, "\x10\x20\xf5\xf2", "an F2FS file system", span{}},          // linux f2fs_fs.h
	{54, "FAT12   ", "a FAT file system", span{43, 11}},                // Microsoft FAT specification, 3.1
	{54, "FAT16   ", "a FAT file system", span{43, 11}},                //
	{82, "FAT32   ", "a FAT file system", span{71, 11}},                //
	{3, "EXFAT   ", "an exFAT file system", span{}},                    // Microsoft exFAT specification, 3.1.2
	{3, "NTFS    ", "an NTFS file system", span{}},                     // NTFS boot sector, OEM id
	{3, "ReFS\x00\x00\x00\x00", "a ReFS file system", span{}},          // libfsrefs, volume header
	{32769, "CD001", "an ISO 9660 file system", span{32808, 32}},       // ECMA-119, 8.1
	{32769, "BEA01", "a UDF file system", span{}},                      // ECMA-167, 2/9.2
	{0, "hsqs", "a squashfs file system", span{}},                      // squashfs 4.0
	{1024, "\xe2\xe1\xf5\xe0", "an EROFS file system", span{1088, 16}}, // linux fs/erofs/erofs_fs.h
	{0, "\x45\x3d\xcd\x28", "a cramfs file system", span{}},            // linux cramfs_fs.h
	{0, "-rom1fs-", "a romfs file system", span{16, 16}},               // linux romfs_fs.h
	{1030, "\x34\x34", "a NILFS2 file system", span{}},                 // linux nilfs2_ondisk.h
	{65588, "ReIsEr", "a ReiserFS file system", span{65636, 16}},       // linux fs/reiserfs/reiserfs.h
	{32768, "JFS1", "a JFS file system", span{32920, 16}},              // linux fs/jfs/jfs_superblock.h
	{1024, "H+\x00\x04", "an HFS+ file system", span{}},                // Apple TN1150
	{1024, "HX\x00\x05", "an HFSX file system", span{}},                // Apple TN1150
	{32, "NXSB", "an APFS container", span{}},                          // Apple File System Reference, nx_superblock_t
	{9564, "\x54\x19\x01\x00", "a UFS file system", span{}},            // FreeBSD sys/ufs/ffs/fs.h, FS_UFS1_MAGIC at 8192+1372
	{66908, "\x19\x01\x54\x19", "a UFS2 file system", span{}},          // FS_UFS2_MAGIC at 65536+1372
	{0, "\x31\x18\x10\x06", "a UBIFS file system", span{}},             // linux fs/ubifs/ubifs-media.h
	{0, "UBI#", "a UBI device", span{}},                                // linux drivers/mtd/ubi/ubi-media.h
	{0, "SFOZ", "a zonefs file system", span{}},                        // linux fs/zonefs, ZONEFS_MAGIC
}

// tables are partition tables with a fixed magic; MBR and GPT are in detect.go.
var tables = []signature{
	{0, "ER\x02\x00", "an Apple partition map", span{}},       // Inside Macintosh: Devices, 3
	{512, "PM\x00\x00\x00", "an Apple partition map", span{}}, //
	{512, "\x57\x45\x56\x82", "a BSD disklabel", span{}},      // FreeBSD sys/disklabel.h, DISKMAGIC
	{508, "\xda\xbe", "a Sun disklabel", span{}},              // util-linux pt-sun.h
	{0, "\x0b\xe5\xa9\x41", "an SGI disklabel", span{}},       // util-linux pt-sgi.h
	{0, "\xc9\xc2\xd4\xc1", "an AIX boot record", span{}},     // util-linux aix.c
}
