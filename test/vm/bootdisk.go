package vm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A BootDisk is the image of a disk that a machine's firmware can start: GPT, with
// GRUB in a partition of its own, one of ext4 with what GRUB starts, and the rest.
type BootDisk struct {
	Path string
	// Kernel and Initramfs are the paths of what is started, in the partition of
	// ext4.
	Kernel, Initramfs string
	// Started and Rest are the numbers of that partition, and of the last, in which
	// nothing is.
	Started, Rest int
}

// Layout of the image in sectors of 512 bytes, as sfdisk makes it.
const (
	grubStart   = 2048
	grubSectors = 2048
	ext4Start   = grubStart + grubSectors
	ext4MiB     = 64
)

// Positions in GRUB's two images (GRUB's include/grub/i386/pc/boot.h and
// kernel.h): the sector at which the first goes on, what it must leave of the
// sector that it is written over, and the list of one run at the end of the first
// sector of the second.
const (
	grubKernelSector = 0x5c
	grubTableStart   = 0x1b8
	grubTableEnd     = 0x1fe
	grubListStart    = 0x200 - 12
)

// MakeBootDisk makes the image in dir. What starts from it is the kernel k with
// the root file system initramfs.
func MakeBootDisk(ctx context.Context, dir string, size int64, k Kernel, initramfs string) (b BootDisk, err error) {
	p, err := FindPrograms()
	if err != nil {
		return b, err
	}
	b = BootDisk{Path: filepath.Join(dir, "boot.img"), Kernel: "vmlinuz", Initramfs: "initramfs", Started: 2, Rest: 3}
	if err := os.WriteFile(b.Path, nil, 0o600); err != nil {
		return b, err
	}
	if err := os.Truncate(b.Path, size); err != nil {
		return b, err
	}
	sfdisk := p.Command(ctx, "usr/sbin/sfdisk", "--quiet", b.Path)
	sfdisk.Stdin = strings.NewReader(fmt.Sprintf("label: gpt\nstart=%d, size=%d, type=21686148-6449-6E6F-744E-656564454649\nstart=%d, size=%dMiB\n,\n",
		grubStart, grubSectors, ext4Start, ext4MiB))
	if err := finish(sfdisk); err != nil {
		return b, err
	}
	files := filepath.Join(dir, "boot")
	if err := os.Mkdir(files, 0o755); err != nil {
		return b, err
	}
	err = errors.Join(copyFile(filepath.Join(files, b.Kernel), k.Image), copyFile(filepath.Join(files, b.Initramfs), initramfs))
	if err != nil {
		return b, err
	}
	// Without what GRUB does not read.
	err = finish(p.Command(ctx, "usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-O", "^metadata_csum_seed,^orphan_file",
		"-d", files, "-E", fmt.Sprintf("offset=%d", ext4Start*512), b.Path, fmt.Sprintf("%dM", ext4MiB)))
	if err != nil {
		return b, err
	}
	return b, installGRUB(ctx, p, dir, b)
}

// installGRUB writes GRUB's two images to the disk.
func installGRUB(ctx context.Context, p Programs, dir string, b BootDisk) error {
	config := filepath.Join(dir, "grub.cfg")
	text := fmt.Sprintf("set root=(hd0,gpt2)\nlinux /%s %s\ninitrd /%s\nboot\n", b.Kernel, CommandLine, b.Initramfs)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	modules := p.Path("usr/lib/grub/i386-pc")
	core := filepath.Join(dir, "core.img")
	err := finish(p.Command(ctx, "usr/bin/grub-mkimage", "-O", "i386-pc", "-d", modules, "-c", config, "-p", "/grub", "-o", core,
		"biosdisk", "part_gpt", "ext2", "linux"))
	if err != nil {
		return err
	}
	first, err := os.ReadFile(filepath.Join(modules, "boot.img"))
	if err != nil {
		return err
	}
	second, err := os.ReadFile(core)
	if err != nil {
		return err
	}
	sectors := (len(second) + 511) / 512
	if len(first) != 512 || sectors > grubSectors {
		return fmt.Errorf("GRUB's images have %d and %d bytes: there is room for 512 and %d", len(first), len(second), grubSectors*512)
	}
	f, err := os.OpenFile(b.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // what fails is written below
	if _, err := f.ReadAt(first[grubTableStart:grubTableEnd], grubTableStart); err != nil {
		return err
	}
	binary.LittleEndian.PutUint64(first[grubKernelSector:], grubStart)
	binary.LittleEndian.PutUint64(second[grubListStart:], grubStart+1)
	binary.LittleEndian.PutUint16(second[grubListStart+8:], uint16(sectors-1))
	if _, err := f.WriteAt(first, 0); err != nil {
		return err
	}
	_, err = f.WriteAt(second, grubStart*512)
	return err
}

func copyFile(to, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

// finish runs a command, whose output is its error's.
func finish(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}
