package e2e

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"vacate/internal/nbdclient"
	"vacate/internal/plant"
	"vacate/test/daemon"
)

const driveSize = 512 << 20

// fileDrive starts a daemon with one more drive, a file of driveSize bytes, on
// which a lease may take every extent.
func fileDrive(t *testing.T, binary string, env ...string) (d *daemon.Daemon, drive string) {
	t.Helper()
	dir := shortDir(t)
	drive = filepath.Join(dir, "drives", "drive")
	if err := errors.Join(os.Mkdir(filepath.Dir(drive), 0o700), os.WriteFile(drive, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(drive, driveSize); err != nil {
		t.Fatal(err)
	}
	d = startIn(t, binary, filepath.Join(dir, "d"), daemon.Options{Env: env, Args: driveDir(drive)})
	if _, err := d.Run("drive", "enroll", drive); err != nil {
		t.Fatal(err)
	}
	return d, drive
}

// driveDir are the arguments that let a daemon enrol a drive and its neighbours.
func driveDir(drive string) []string { return []string{"--drive-dir", filepath.Dir(drive)} }

type driveInfo struct {
	Path                 string
	SizeBytes, FreeBytes int64
	State                string
}

func showDrive(t testing.TB, d *daemon.Daemon, path string) (info driveInfo) {
	t.Helper()
	if err := d.JSON(&info, "drive", "show", path); err != nil {
		t.Fatal(err)
	}
	return info
}

// openAll opens a lease over all that is free on a drive.
func openAll(t testing.TB, d *daemon.Daemon, drive, tenant string) daemon.Lease {
	t.Helper()
	free := showDrive(t, d, drive).FreeBytes
	if free < driveSize*9/10 {
		t.Fatalf("only %d bytes are free on a drive of %d", free, driveSize)
	}
	return open(t, d, "--drive", drive, "--size", fmt.Sprint(free), "--tenant", tenant)
}

// needles are fingerprints of a file system's blocks: each block that is its
// own, by the hash of its bytes.
func needles(t *testing.T, image string) map[[32]byte]bool {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // read only
	set := map[[32]byte]bool{}
	eachBlock(t, f, func(_ int64, b []byte) { set[sha256.Sum256(b)] = true })
	delete(set, sha256.Sum256(make([]byte, 4096)))
	delete(set, sha256.Sum256(bytes.Repeat([]byte{0xff}, 4096)))
	return set
}

func eachBlock(t *testing.T, r io.Reader, fn func(off int64, b []byte)) {
	t.Helper()
	buf := make([]byte, 1<<20)
	for off := int64(0); ; off += int64(len(buf)) {
		n, err := io.ReadFull(r, buf)
		for i := 0; i+4096 <= n; i += 4096 {
			fn(off+int64(i), buf[i:i+4096])
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// searchDrive reads the whole drive and counts the needles in it, and the
// canaries at any byte.
func searchDrive(t *testing.T, drive string, set map[[32]byte]bool, canary []byte) (blocks, canaries int) {
	t.Helper()
	f, err := os.Open(drive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // read only
	found := map[[32]byte]bool{}
	var read int64
	eachBlock(t, f, func(_ int64, b []byte) {
		read += int64(len(b))
		if h := sha256.Sum256(b); set[h] {
			found[h] = true
		}
		canaries += bytes.Count(b, canary)
	})
	if read != driveSize {
		t.Fatalf("searched %d of %d bytes", read, driveSize)
	}
	return len(found), canaries
}

// TestL3NothingReachesTheDrive: what a tenant wrote cannot be found on the drive,
// while its lease is open or afterwards. The same search finds all of it when
// the cipher is left out.
func TestL3NothingReachesTheDrive(t *testing.T) {
	image, files := sourceImage(t, 384<<20)
	set := needles(t, image)
	canary := []byte("canary:e2e:7c1b0f6f4a9d")
	t.Logf("%d files, %d distinct blocks", files, len(set))

	live := func(t *testing.T, d *daemon.Daemon, drive string) (during, after [2]int) {
		l := openAll(t, d, drive, "acme")
		command(t, "nbdcopy", image, l.URI())
		c := dial(t, l)
		for i := range int64(64) {
			write(t, c, 400<<20+i*9001, canary) // any alignment: through read-modify-write
		}
		c.Close() //nolint:errcheck // done
		during[0], during[1] = searchDrive(t, drive, set, canary)
		if _, err := d.Run("lease", "close", l.ID); err != nil {
			t.Fatal(err)
		}
		after[0], after[1] = searchDrive(t, drive, set, canary)
		return during, after
	}

	d, drive := fileDrive(t, bin)
	during, after := live(t, d, drive)
	if during != [2]int{} || after != [2]int{} {
		t.Errorf("found on the drive: %v while open, %v after close (blocks, canaries); want none", during, after)
	}

	t.Run("planted", func(t *testing.T) {
		d, drive := fileDrive(t, planted, "VACATE_PLANTED="+plant.CipherNull)
		during, after := live(t, d, drive)
		if want := [2]int{len(set), 64}; during != want || after != want {
			t.Errorf("with the cipher left out the search finds %v and %v of %v", during, after, want)
		}
	})
}

// TestL4NextTenantReadsZeros: a lease over all of the space of one that was
// full reads as zeros, to the last block. Without the map it does not.
func TestL4NextTenantReadsZeros(t *testing.T) {
	// live counts the blocks that tenant b, which never wrote, does not read as zeros.
	live := func(t *testing.T, d *daemon.Daemon, drive string) (nonzero, blocks int64) {
		a := openAll(t, d, drive, "a")
		c := dial(t, a)
		fill := bytes.Repeat([]byte("data of tenant a"), 16<<10)
		for off := int64(0); off < a.SizeBytes; off += int64(len(fill)) {
			write(t, c, off, fill[:min(int64(len(fill)), a.SizeBytes-off)])
		}
		c.Close() //nolint:errcheck // done
		if _, err := d.Run("lease", "close", a.ID); err != nil {
			t.Fatal(err)
		}
		b := openAll(t, d, drive, "b")
		if b.SizeBytes != a.SizeBytes {
			t.Fatalf("b has %d bytes, a had %d", b.SizeBytes, a.SizeBytes)
		}
		c = dial(t, b)
		defer c.Close() //nolint:errcheck // done
		zero := make([]byte, 4096)
		eachBlock(t, io.NewSectionReader(c, 0, b.SizeBytes), func(_ int64, blk []byte) {
			blocks++
			if !bytes.Equal(blk, zero) {
				nonzero++
			}
		})
		if blocks != b.SizeBytes/4096 {
			t.Fatalf("read %d blocks of a volume of %d bytes", blocks, b.SizeBytes)
		}
		return nonzero, blocks
	}
	d, drive := fileDrive(t, bin)
	if nonzero, blocks := live(t, d, drive); nonzero != 0 {
		t.Errorf("%d of %d blocks are not zero", nonzero, blocks)
	}
	t.Run("planted", func(t *testing.T) {
		d, drive := fileDrive(t, planted, "VACATE_PLANTED="+plant.MapIgnored)
		if nonzero, blocks := live(t, d, drive); nonzero != blocks {
			t.Errorf("with the map left out, %d of %d blocks are not zero: want all", nonzero, blocks)
		}
	})
}

func dial(t testing.TB, l daemon.Lease) *nbdclient.Client {
	t.Helper()
	c, err := nbdclient.Dial(l.URI(), nbdclient.Options{NoBlockSize: true}) // any alignment
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func write(t testing.TB, c *nbdclient.Client, off int64, b []byte) {
	t.Helper()
	if _, err := c.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}
