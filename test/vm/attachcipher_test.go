//go:build vm

package vm

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"vacate/test/vm/wire"
)

// dataOffset is where a drive's first extent begins (docs/spec/superblock.md).
const dataOffset = 1 << 20

// keySize is that of a lease's key, at the start of its slot (docs/spec/cipher.md).
const keySize = 64

// TestCipherByDMCrypt has the kernel's dm-crypt read, from the drive itself, what was
// written to a lease's block device, with the table that docs/spec/cipher.md gives. The
// key comes from the keys' memory.
func TestCipherByDMCrypt(t *testing.T) {
	eachDriver(t, 3*time.Minute, (*host).decrypts, "dm-mod", "dm-crypt", "xts")
}

func (h *host) decrypts(string) {
	h.t.Helper()
	const size, sector = 12 << 20, 512
	// A lease before it, so that it does not begin with the drive's first extent.
	other := h.open(3 << 20)
	l := h.open(size)
	h.vacate("lease", "close", other.ID) // so that there is one key
	l = h.show(l.ID)
	var k wire.Keys
	h.do("keys", nil, &k)
	if len(k.Slots) != 1 || len(l.Pieces) == 0 || l.Pieces[0].FirstExtent == 0 {
		h.t.Fatalf("of one lease there are %d keys and the pieces %+v", len(k.Slots), l.Pieces)
	}
	key := hex.EncodeToString(k.Slots[0][:keySize])
	var drive struct {
		ExtentBytes int64 `json:"extentBytes"`
	}
	h.say(&drive, "drive", "show", "/dev/data")
	h.do("fill", wire.Fill{Device: l.Device, Seed: 3, Size: size}, nil)

	at := int64(0) // in the lease
	for n, p := range l.Pieces {
		bytes := min(p.Extents*drive.ExtentBytes, size-at)
		table := func(key string, iv int64) string {
			return fmt.Sprintf("0 %d crypt aes-xts-plain64 %s %d /dev/peek %d 2 sector_size:4096 iv_large_sectors",
				bytes/sector, key, iv/sector, (dataOffset+p.FirstExtent*drive.ExtentBytes)/sector)
		}
		name := fmt.Sprintf("piece%d", n)
		piece := wire.Fill{Device: h.crypt(name, table(key, at)), Seed: 3, Size: bytes, At: at}
		h.do("check-fill", piece, nil)
		h.run("dmsetup", "remove", "--noudevsync", name)
		// With another key, or the first block's number one off, it reads noise.
		wrong := "0" + key[1:]
		if key[0] == '0' {
			wrong = "1" + key[1:]
		}
		for i, table := range []string{table(wrong, at), table(key, at+8*sector)} {
			name := fmt.Sprintf("wrong%d", i)
			piece.Device = h.crypt(name, table)
			if err := h.Call(h.ctx, "check-fill", piece, nil); err == nil || !strings.Contains(err.Error(), "byte 0 of "+piece.Device) {
				h.t.Errorf("with a wrong table dm-crypt reads: %v", err)
			}
			h.run("dmsetup", "remove", "--noudevsync", name)
		}
		at += bytes
	}
	if at != size {
		h.t.Errorf("the pieces of a lease of %d bytes have %d", size, at)
	}

	// A device that another is made of is not taken away.
	h.run("dmsetup", "create", "--noudevsync", "holder", "--table", fmt.Sprintf("0 %d linear %s 0", size/sector, l.Device))
	h.refuses(codeRefused, nil, "lease", "detach", l.ID)
	h.do("check-fill", wire.Fill{Device: l.Device, Seed: 3, Size: size}, nil)
	h.run("dmsetup", "remove", "--noudevsync", "holder")
	h.vacate("lease", "detach", l.ID)
	h.clean()
	h.vacate("lease", "close", l.ID)
	h.nothingLeft()
}

// crypt makes a device of dm-crypt that can only be read, and returns its path.
func (h *host) crypt(name, table string) (path string) {
	h.t.Helper()
	h.run("dmsetup", "create", "--noudevsync", "--readonly", name, "--table", table)
	return "/dev/" + strings.TrimSpace(h.run("dmsetup", "info", "--columns", "--noheadings", "-o", "blkdevname", name))
}
