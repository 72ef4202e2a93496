//go:build vm

package vm

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"testing"
	"time"

	"vacate/test/vm/wire"
)

// TestL8GuestStarts starts a machine from its volume: the firmware reads it first,
// then GRUB through the firmware, then a kernel; another kernel follows by kexec,
// and resets while requests are in flight begin all of it anew. Each must find the
// volume as the one before has left it. At last the engine is killed again and
// again while the machine starts.
func TestL8GuestStarts(t *testing.T) {
	ctx := limit(t, 4*time.Minute)
	dir := shortDir(t)
	kernel, err := FindKernel()
	if err != nil {
		t.Fatal(err)
	}
	initramfs, err := Initramfs(dir, Contents{Kernel: kernel})
	if err != nil {
		t.Fatal(err)
	}
	const size = 192 << 20
	image, err := MakeBootDisk(ctx, dir, size, kernel, initramfs)
	if err != nil {
		t.Fatal(err)
	}
	v := openVolume(t, size)
	if err := finish(exec.CommandContext(ctx, "nbdcopy", image.Path, v.uri)); err != nil {
		t.Fatal(err)
	}
	g := startGuest(ctx, t, Config{Dir: dir, Drives: []Drive{v.drive("boot")}, Resets: true})
	disk := g.disk(v)
	boot := wire.Attach{Device: disk.Path + fmt.Sprint(image.Started), Dir: "/mnt/boot", Kind: "ext4"}
	tree := wire.Tree{Dir: boot.Dir, Seed: 1, Files: 40, Max: 100 << 10}
	g.do("attach", boot, nil)
	g.do("tree", tree, nil)
	g.do("check-tree", tree, nil)

	up, err := g.Kexec(ctx, wire.Kexec{
		Kernel: boot.Dir + "/" + image.Kernel, Initramfs: boot.Dir + "/" + image.Initramfs, CommandLine: CommandLine,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("after kexec linux %s is up, %v after the machine's start", up.Release, g.Age())
	g.do("attach", boot, nil)
	g.do("check-tree", tree, nil)

	const resets, workers, sectors = 3, 4, 8192
	stress := wire.Stress{Device: g.disk(v).Path + fmt.Sprint(image.Rest), Hunt: 1, Workers: workers, Sectors: sectors}
	for n := range resets {
		stress.First = int64(n) * workers * sectors
		g.do("stress", stress, nil)
		g.settle(time.Duration(700+400*n) * time.Millisecond)
		g.fine()
		stop := func() error { return nil }
		if n == resets-1 {
			stop = v.killOften(ctx, 400*time.Millisecond)
		}
		_, err := g.Reset(ctx)
		must(t, errors.Join(err, stop()))
		stress.Rounds = g.begun(workers)
		t.Logf("after reset %d, in rounds %d, the machine is up %v after its start", n+1, stress.Rounds, g.Age())
		g.fine()
		g.do("stress-check", stress, nil)
		g.do("attach", boot, nil)
		g.do("check-tree", tree, nil)
		g.clean()
	}
	g.off()
	v.open(t)
}

// settle lets the guest go on for a while.
func (g *guest) settle(d time.Duration) {
	select {
	case <-time.After(d):
	case <-g.Done():
	case <-g.ctx.Done():
		g.t.Fatal(context.Cause(g.ctx))
	}
}
