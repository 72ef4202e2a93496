//go:build vm

package vm

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"vacate/test/vm/wire"
)

// layout is the table of a volume with three partitions: ext4, xfs (which wants
// 300 MiB), and one for whatever comes.
const layout = "label: gpt\nsize=96MiB\nsize=320MiB\nsize=32MiB\n"

const layoutSize = 480 << 20

// prepare starts a machine with file systems on a new volume's disk. It has the
// others too.
func prepare(t *testing.T, processors int, others ...func(v *volume) *volume) (*guest, *volume, wire.Disk) {
	t.Helper()
	ctx := limit(t, 5*time.Minute)
	dir := shortDir(t)
	kernel, err := FindKernel(XFS...)
	if err != nil {
		t.Fatal(err)
	}
	initramfs, err := Initramfs(dir, Contents{Kernel: kernel, Programs: tools})
	if err != nil {
		t.Fatal(err)
	}
	v := openVolume(t, layoutSize)
	cfg := Config{Kernel: kernel, Initramfs: initramfs, Dir: dir, Drives: []Drive{v.drive("volume")}, Processors: processors}
	for i, o := range others {
		cfg.Drives = append(cfg.Drives, o(v).drive(fmt.Sprintf("other%d", i)))
	}
	g := startGuest(ctx, t, cfg)
	d := g.disk(v)
	g.feed(layout, "sfdisk", "--quiet", d.Path)
	g.run("mkfs.ext4", "-q", d.Path+"1")
	g.run("mkfs.xfs", "-q", d.Path+"2")
	g.do("attach", ext4On(d), nil)
	g.do("attach", xfsOn(d), nil)
	return g, v, d
}

func ext4On(d wire.Disk) wire.Attach {
	return wire.Attach{Device: d.Path + "1", Dir: "/mnt/ext4", Kind: "ext4"}
}

func xfsOn(d wire.Disk) wire.Attach {
	return wire.Attach{Device: d.Path + "2", Dir: "/mnt/xfs", Kind: "xfs"}
}

// examine has both file systems checked by their own programs, and what is in
// them compared. They are detached after it.
func (g *guest) examine(d wire.Disk, trees ...wire.Tree) {
	g.t.Helper()
	for _, tree := range trees {
		g.do("check-tree", tree, nil)
	}
	g.do("detach", ext4On(d), nil)
	g.do("detach", xfsOn(d), nil)
	g.run("e2fsck", "-f", "-n", d.Path+"1")
	g.run("xfs_repair", "-n", d.Path+"2")
}

// TestL4GuestFiles has a guest use a volume as people do: a table of partitions,
// two file systems, files, and discards, with two processors and a queue for each.
func TestL4GuestFiles(t *testing.T) {
	var fixed, large *volume
	g, v, d := prepare(t, 2, func(v *volume) *volume {
		fixed = openLease(t, v.d, 16<<20, "--read-only")
		must(t, finish(exec.Command("qemu-io", "-f", "raw", "-c", "write -P 7 4M 64k", fixed.uri)))
		return fixed
	}, func(v *volume) *volume {
		large = openLease(t, v.d, 64<<20, "--logical-block", "4096")
		return large
	})
	readOnly(g, fixed)
	largeBlocks(g, large)
	t.Logf("the guest sees %+v", d)
	if d.Logical != 512 || d.Physical != 4096 || d.Size != layoutSize || d.FromEnd != layoutSize ||
		d.ReadOnly || d.Discard == 0 || d.Zeroes == 0 || d.WriteCache != "write back" || d.Queues != 2 {
		t.Errorf("the guest sees %+v", d)
	}
	if table := g.run("sfdisk", "--dump", d.Path); !strings.Contains(table, "label: gpt") || !strings.Contains(table, "sector-size: 512") {
		t.Errorf("the table reads\n%s", table)
	}
	trees := []wire.Tree{
		{Dir: ext4On(d).Dir, Seed: 1, Files: 60, Max: 600 << 10},
		{Dir: xfsOn(d).Dir, Seed: 2, Files: 60, Max: 600 << 10},
	}
	for _, tree := range trees {
		var tally wire.Tally
		g.do("tree", tree, &tally)
		if tally.Files != tree.Files || tally.Bytes < 1<<20 {
			t.Errorf("the guest has written %+v", tally)
		}
	}
	// More than the discards may take away: files that are removed again.
	for i, dir := range []string{ext4On(d).Dir, xfsOn(d).Dir} {
		g.do("tree", wire.Tree{Dir: dir, Seed: uint64(10 + i), Files: 40, Max: 400 << 10}, nil)
		g.do("remove-tree", wire.Tree{Dir: dir, Seed: uint64(10 + i)}, nil)
		if out := g.run("fstrim", "-v", dir); strings.Contains(out, "(0 bytes)") || !strings.Contains(out, "trimmed") {
			t.Errorf("fstrim says %q", out)
		}
	}
	g.examine(d, trees...)

	free := d.Path + "3"
	part := wire.Range{Device: free, Size: 8 << 20}
	stress := wire.Stress{Device: free, Hunt: 3, Workers: 2, Sectors: 8192}
	for i, command := range [][]string{{"blkdiscard", free}, {"blkdiscard", "-z", free}} {
		stress.Hunt += uint64(i)
		g.do("stress", stress, nil)
		g.settle(time.Second)
		var did wire.Stressed
		g.do("stress-stop", nil, &did)
		g.fine()
		stress.Rounds = g.begun(stress.Workers)
		g.do("stress-check", stress, nil)
		if err := g.Call(g.ctx, "zeros", part, nil); err == nil || !strings.Contains(err.Error(), "is not zero") {
			t.Errorf("before %v, what was written %d times reads zeros: %v", command, did.Writes, err)
		}
		g.run(command...)
		g.do("zeros", part, nil)
	}
	g.do("attach", ext4On(d), nil)
	g.do("attach", xfsOn(d), nil)
	g.examine(d, trees...)
	g.clean()
	g.off()
	v.open(t)
}

// readOnly demands that the guest reads what is in a volume, and can not write.
func readOnly(g *guest, v *volume) {
	g.t.Helper()
	d := g.disk(v)
	if !d.ReadOnly || d.Size != 16<<20 {
		g.t.Errorf("of a volume that is not to be written the guest sees %+v", d)
	}
	g.do("zeros", wire.Range{Device: d.Path, Size: 4 << 20}, nil)
	err := g.Call(g.ctx, "zeros", wire.Range{Device: d.Path, Size: d.Size}, nil)
	if err == nil || !strings.Contains(err.Error(), "byte 4194304 of ") {
		g.t.Errorf("where there is something, the guest reads: %v", err)
	}
	for _, args := range [][]string{{"blkdiscard", d.Path}, {"mkfs.ext4", "-q", d.Path}} {
		var ran wire.Ran
		if g.do("exec", wire.Exec{Args: args}, &ran); ran.Code == 0 {
			g.t.Errorf("%v has worked on a volume that is not to be written", args)
		}
	}
}

// largeBlocks has the guest use a volume whose logical blocks are as large as
// those that it is made of.
func largeBlocks(g *guest, v *volume) {
	g.t.Helper()
	d := g.disk(v)
	if d.Logical != 4096 || d.Physical != 4096 || d.Size != 64<<20 {
		g.t.Errorf("of a volume with large blocks the guest sees %+v", d)
	}
	fs := wire.Attach{Device: d.Path, Dir: "/mnt/large", Kind: "ext4"}
	tree := wire.Tree{Dir: fs.Dir, Seed: 6, Files: 20, Max: 400 << 10}
	g.run("mkfs.ext4", "-q", fs.Device)
	g.do("attach", fs, nil)
	g.do("tree", tree, nil)
	g.do("check-tree", tree, nil)
	g.do("detach", fs, nil)
	g.run("e2fsck", "-f", "-n", fs.Device)
}

// TestL8GuestKilled kills the engine under a guest that works, and hands over to
// another program under it: the guest sees a pause, and nothing else.
func TestL8GuestKilled(t *testing.T) {
	g, v, d := prepare(t, 2)
	trees := []wire.Tree{{Dir: ext4On(d).Dir, Seed: 1, Files: 30, Max: 400 << 10}, {Dir: xfsOn(d).Dir, Seed: 2, Files: 30, Max: 400 << 10}}
	stress := wire.Stress{Device: d.Path + "3", Hunt: 7, Workers: 4, Sectors: 8192}
	g.do("stress", stress, nil)
	g.settle(500 * time.Millisecond)
	const kills = 12
	for n := range kills {
		if n == kills/2 {
			v.upgrade(t)
		} else {
			v.kill(t)
		}
		for _, tree := range trees {
			tree.Seed += 10 * uint64(n)
			g.do("tree", tree, nil)
			g.do("check-tree", tree, nil)
			g.do("remove-tree", tree, nil)
		}
		g.fine()
		if n == kills/3 {
			g.run("fstrim", ext4On(d).Dir)
		}
	}
	for _, tree := range trees {
		g.do("tree", tree, nil)
	}
	v.kill(t)
	var did wire.Stressed
	g.do("stress-stop", nil, &did)
	g.fine()
	stress.Rounds = g.begun(stress.Workers)
	t.Logf("the guest has read %d times and written %d, the longest in %v, in rounds %d", did.Reads, did.Writes, did.Longest, stress.Rounds)
	g.do("stress-check", stress, nil)
	g.examine(d, trees...)
	g.clean()
	g.off()
	v.open(t)
}

// TestL4GuestDies pulls the plug of a machine whose disk is busy, and starts it
// again: what was synced is there, what was in flight is there or not, and the next
// frontend is served as the first was.
func TestL4GuestDies(t *testing.T) {
	g, v, d := prepare(t, 2)
	trees := []wire.Tree{{Dir: ext4On(d).Dir, Seed: 1, Files: 30, Max: 400 << 10}, {Dir: xfsOn(d).Dir, Seed: 2, Files: 30, Max: 400 << 10}}
	for _, tree := range trees {
		g.do("tree", tree, nil)
	}
	stress := wire.Stress{Device: d.Path + "3", Hunt: 7, Workers: 4, Sectors: 8192}
	g.do("stress", stress, nil)
	g.settle(2 * time.Second)
	g.Kill()
	g.fine()
	stress.Rounds = g.begun(stress.Workers)
	t.Logf("the machine has died in rounds %d", stress.Rounds)

	g = startGuest(g.ctx, t, g.cfg)
	if now := g.disk(v); now != d {
		t.Errorf("the next machine sees %+v, the first saw %+v", now, d)
	}
	g.do("stress-check", stress, nil)
	g.do("attach", ext4On(d), nil)
	g.do("attach", xfsOn(d), nil)
	g.examine(d, trees...)
	g.clean()
	g.off()
	v.open(t)
}

// TestL4GuestResized gives a volume more space under a guest, which sees it at
// once, reads zeros there, and makes use of it.
func TestL4GuestResized(t *testing.T) {
	g, v, d := prepare(t, 1)
	tree := wire.Tree{Dir: ext4On(d).Dir, Seed: 1, Files: 30, Max: 400 << 10}
	g.do("tree", tree, nil)
	stress := wire.Stress{Device: d.Path + "3", Hunt: 7, Workers: 2, Sectors: 8192}
	g.do("stress", stress, nil)
	g.settle(300 * time.Millisecond)
	const more = 64 << 20
	v.resize(t, layoutSize+more)
	waitFor(g.ctx, t, "the guest to see the volume's new size", func() bool {
		now := g.disk(v)
		return now.Size == layoutSize+more && now.FromEnd == now.Size
	})
	g.do("zeros", wire.Range{Device: d.Path, Start: layoutSize, Size: more}, nil)
	g.do("stress-stop", nil, nil)
	g.fine()
	g.begun(stress.Workers)
	// The table's copy moves to the new end, the last partition grows, and with it
	// its file system, in which there is something.
	last := wire.Attach{Device: d.Path + "3", Dir: "/mnt/more", Kind: "ext4"}
	g.run("mkfs.ext4", "-q", last.Device)
	g.do("attach", last, nil)
	small := wire.Tree{Dir: last.Dir, Seed: 4, Files: 20, Max: 400 << 10}
	g.do("tree", small, nil)
	g.run("sfdisk", "--quiet", "--relocate", "gpt-bak-std", d.Path)
	g.feed(", +\n", "sfdisk", "--quiet", "--force", "--no-reread", "--no-tell-kernel", "-N", "3", d.Path)
	g.run("partx", "--update", "--nr", "3", d.Path)
	g.run("resize2fs", last.Device)
	big := wire.Tree{Dir: last.Dir, Seed: 5, Files: 60, Max: 2 << 20}
	var tally wire.Tally
	g.do("tree", big, &tally)
	if tally.Bytes < 40<<20 {
		t.Errorf("the guest has written only %d bytes", tally.Bytes)
	}
	g.do("check-tree", big, nil)
	g.do("check-tree", small, nil)
	g.do("detach", last, nil)
	g.run("e2fsck", "-f", "-n", last.Device)
	g.examine(d, tree)
	g.clean()
	g.off()
	v.open(t)
}
