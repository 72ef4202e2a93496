//go:build vm

package vm

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"vacate/test/vm/wire"
)

// many reports whether the tests shall do all that the design promises: engines killed
// 100 times, 64 devices at once, 1,000 after one another.
func many() bool { return os.Getenv("VACATE_MANY") == "1" }

// either is few, or all in a long run.
func either(few, all int) int {
	if many() {
		return all
	}
	return few
}

// devicesOf is what the status shows of block devices.
type devicesOf struct {
	Devices struct {
		Kind string `json:"kind"`
		Why  string `json:"why"`
	} `json:"devices"`
}

// TestAttachWithoutDriver asks for a device where the kernel has no driver: that is
// refused, says what to load, and opens no lease.
func TestAttachWithoutDriver(t *testing.T) {
	h := onHost(t, 3*time.Minute)
	var s devicesOf
	h.say(&s, "status")
	if s.Devices.Kind != "" || !strings.Contains(s.Devices.Why, "ublk_drv") {
		t.Errorf("the status shows %+v", s)
	}
	h.refuses(codeFailed, []string{"ublk_drv", "nbd"}, "lease", "open", "--size", "4MiB", "--attach")
	h.nothingLeft()
	var plain attached
	h.say(&plain, "lease", "open", "--size", "4MiB")
	h.refuses(codeFailed, []string{"ublk_drv", "nbd"}, "lease", "attach", plain.ID)
	if l := h.show(plain.ID); l.State != "open" || l.Device != "" {
		t.Errorf("a lease that was not attached shows %+v", l)
	}
	h.vacate("lease", "close", plain.ID)
	h.nothingLeft()
	h.clean()
}

// TestL8Attach has file systems on block devices whose server is killed again and again.
func TestL8Attach(t *testing.T) {
	eachDriver(t, time.Duration(either(4, 40))*time.Minute, func(h *host, kind string) {
		var s devicesOf
		waitFor(h.ctx, h.t, "the status to show "+kind, func() bool {
			h.say(&s, "status")
			return s.Devices.Kind == kind
		})
		f := h.format(kind)
		f.survives()
		f.detaches()
		f.ends()
		h.nothingLeft()
	})
}

// fileSystems are two leases' devices with file systems, and one without.
type fileSystems struct {
	*host
	ext4, xfs, raw attached
	trees          []wire.Tree
	stress         wire.Stress
}

var onExt4, onXFS = wire.Attach{Dir: "/mnt/ext4", Kind: "ext4"}, wire.Attach{Dir: "/mnt/xfs", Kind: "xfs"}

// format opens the leases, and makes and mounts the file systems.
func (h *host) format(kind string) *fileSystems {
	h.t.Helper()
	const ext4Size, xfsSize, rawSize = 96 << 20, 320 << 20, 16 << 20
	f := &fileSystems{host: h, ext4: h.open(ext4Size), xfs: h.open(xfsSize), raw: h.open(rawSize, "--uid", "1000")}
	if d := h.device(f.raw, rawSize); d.Owner != 1000 || d.Mode != 0o600 {
		h.t.Errorf("the device of user 1000's lease belongs to %d and has mode %o", d.Owner, d.Mode)
	}
	for _, l := range []attached{f.ext4, f.xfs, f.raw} {
		if l.DeviceKind != kind {
			h.t.Errorf("lease %s has a device of kind %q, want %q", l.ID, l.DeviceKind, kind)
		}
	}
	h.run("mkfs.ext4", "-q", f.ext4.Device)
	h.run("mkfs.xfs", "-q", f.xfs.Device)
	f.mount()
	f.trees = []wire.Tree{{Dir: onExt4.Dir, Seed: 1, Files: 20, Max: 200 << 10}, {Dir: onXFS.Dir, Seed: 2, Files: 20, Max: 200 << 10}}
	f.stress = wire.Stress{Device: f.raw.Device, Hunt: 7, Workers: 2, Sectors: 8192}
	return f
}

func (f *fileSystems) mount() {
	f.t.Helper()
	for _, m := range f.mounts() {
		f.do("attach", m, nil)
	}
}

func (f *fileSystems) unmount() {
	f.t.Helper()
	for _, m := range f.mounts() {
		f.do("detach", m, nil)
	}
}

func (f *fileSystems) mounts() []wire.Attach {
	e, x := onExt4, onXFS
	e.Device, x.Device = f.ext4.Device, f.xfs.Device
	return []wire.Attach{e, x}
}

// survives kills processes of the daemon's under load, and has it upgraded: whoever
// uses the devices sees a pause, and nothing else.
func (f *fileSystems) survives() {
	f.t.Helper()
	for _, tree := range f.trees {
		f.do("tree", tree, nil)
	}
	f.do("stress", f.stress, nil)
	f.settle(300 * time.Millisecond)
	kill := func(command string) func() error {
		return func() error {
			var k wire.Killed
			err := f.Call(f.ctx, "kill", wire.Kill{Command: command}, &k)
			f.t.Logf("after the death of its %s the daemon was ready within %v", command, k.Took.Round(time.Millisecond))
			return err
		}
	}
	var strikes []func() error
	for range either(5, 100) {
		strikes = append(strikes, kill("engine"))
	}
	strikes = append(strikes, kill("control"), kill("devices"), func() error {
		ran, err := f.Run(f.ctx, "upgrade")
		if err == nil && ran.Code != 0 {
			err = fmt.Errorf("vacate upgrade: exit code %d: %s", ran.Code, ran.Stderr)
		}
		return err
	}, kill("engine"))
	for n, strike := range strikes {
		f.during(strike, func() error { return f.files(uint64(n)) })
		f.fine()
		f.clean()
	}
	var did wire.Stressed
	f.do("stress-stop", nil, &did)
	f.fine()
	f.stress.Rounds = f.begun(f.stress.Workers)
	f.t.Logf("%d requests read and %d wrote, the longest within %v, in rounds %d", did.Reads, did.Writes, did.Longest, f.stress.Rounds)
	f.do("stress-check", f.stress, nil)
	for _, tree := range f.trees {
		f.do("check-tree", tree, nil)
	}
	f.clean()
}

// files writes trees, compares them with what was written, and removes them.
func (f *fileSystems) files(n uint64) error {
	for _, tree := range f.trees {
		tree.Seed += 10 * (n + 1)
		for _, what := range []string{"tree", "check-tree", "remove-tree"} {
			if err := f.Call(f.ctx, what, tree, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// detaches has devices detached: mounted ones are not. What they held is there when
// the leases are attached again.
func (f *fileSystems) detaches() {
	f.t.Helper()
	for _, m := range f.mounts() {
		f.refuses(codeRefused, []string{m.Dir}, "lease", "detach", strings.TrimPrefix(m.Device, "/dev/vacate/"))
	}
	for _, tree := range f.trees {
		f.do("check-tree", tree, nil)
	}
	f.unmount()
	f.run("e2fsck", "-f", "-n", f.ext4.Device)
	f.run("xfs_repair", "-n", f.xfs.Device)
	for _, l := range []attached{f.ext4, f.xfs, f.raw} {
		f.vacate("lease", "detach", l.ID)
		f.vacate("lease", "detach", l.ID) // nothing more happens
		if now := f.show(l.ID); now.State != "open" || now.Device != "" {
			f.t.Errorf("a lease that was detached shows %+v", now)
		}
	}
	if l := f.left(); len(l.Characters)+len(l.Disks)+len(l.Links) > 0 || len(l.Sockets) == 0 {
		f.t.Errorf("with three open leases, none attached, there is %q", l.Things())
	}
	for _, l := range []attached{f.ext4, f.xfs, f.raw} {
		var again attached
		f.say(&again, "lease", "attach", l.ID)
		f.device(again, l.SizeBytes)
		f.vacate("lease", "attach", l.ID) // nothing more happens
	}
	f.do("stress-check", f.stress, nil)
	f.mount()
	for _, tree := range f.trees {
		f.do("check-tree", tree, nil)
	}
	f.clean()
}

// ends closes leases whose devices are in use: their users get errors, and the devices
// are gone when nobody holds them.
func (f *fileSystems) ends() {
	f.t.Helper()
	l := f.left()
	links, mounts := strings.Join(l.Links, " "), strings.Join(l.Mounts, " ")
	for _, m := range f.mounts() {
		if !strings.Contains(links, m.Device) || !strings.Contains(mounts, m.Dir) {
			f.t.Errorf("while %s is mounted, there is %q", m.Dir, l.Things()) // so nothing could be found left over
		}
	}
	if len(l.Disks) < 3 || len(l.Sockets) < 3 {
		f.t.Errorf("of three attached leases there is %q", l.Things())
	}
	for i, lease := range []attached{f.ext4, f.xfs, f.raw} {
		var closed []attached
		f.say(&closed, "lease", "close", lease.ID)
		if len(closed) != 1 || closed[0].State != "closed" || closed[0].Result != "ok" {
			f.t.Errorf("a lease that was closed while it was used shows %+v", closed)
		}
		if i >= len(f.trees) {
			continue
		}
		if err := f.Call(f.ctx, "check-tree", f.trees[i], nil); err == nil {
			f.t.Errorf("the files in %s can be read after the lease's end", f.trees[i].Dir)
		} else if !strings.Contains(err.Error(), "input/output error") {
			f.t.Errorf("after the lease's end, reading files in %s: %v", f.trees[i].Dir, err)
		}
	}
	keys(f.ctx, f.t, f.VM, 0)
	f.unmount()
}

// TestAttachDiscard discards parts of a device: they read zeros, and the lease holds
// less.
func TestAttachDiscard(t *testing.T) { eachDriver(t, 3*time.Minute, (*host).discards) }

func (h *host) discards(string) {
	h.t.Helper()
	const size, part = 64 << 20, 8 << 20
	l := h.open(size)
	written := func() int64 {
		h.t.Helper()
		s := h.show(l.ID).Stats
		if s == nil {
			h.t.Fatal("the lease shows no counters")
		}
		return s.WrittenBytes
	}
	all := wire.Fill{Device: l.Device, Seed: 1, Size: 4 * part}
	h.do("fill", all, nil)
	if n := written(); n != 4*part {
		h.t.Errorf("after writing %d bytes the lease holds %d", 4*part, n)
	}
	for i, args := range [][]string{{"blkdiscard"}, {"blkdiscard", "-z"}} {
		at := int64(2 * i * part)
		h.run(append(args, "-o", fmt.Sprint(at), "-l", fmt.Sprint(part), l.Device)...)
		h.do("zeros", wire.Range{Device: l.Device, Start: at, Size: part}, nil)
		h.do("check-fill", wire.Fill{Device: l.Device, Seed: 1, Start: at + part, Size: part, At: at + part}, nil)
		if n := written(); n != int64(3-i)*part {
			h.t.Errorf("after %v of %d bytes the lease holds %d", args, part, n)
		}
	}

	fs := wire.Attach{Device: l.Device, Dir: "/mnt/discard", Kind: "ext4"}
	h.run("mkfs.ext4", "-q", l.Device)
	h.do("attach", fs, nil)
	keep := wire.Tree{Dir: fs.Dir, Seed: 1, Files: 20, Max: 100 << 10}
	gone := wire.Tree{Dir: fs.Dir, Seed: 2, Files: 60, Max: 400 << 10}
	var tally wire.Tally
	h.do("tree", keep, nil)
	h.do("tree", gone, &tally)
	before := written()
	h.do("remove-tree", gone, nil)
	h.do("check-tree", keep, nil) // which syncs: what the journal still names is not trimmed
	if out := h.run("fstrim", "-v", fs.Dir); !strings.Contains(out, "trimmed") {
		h.t.Errorf("fstrim says %q", out)
	}
	if n := written(); n > before-tally.Bytes*3/4 {
		h.t.Errorf("after files of %d bytes were removed and trimmed, the lease holds %d bytes, and held %d before", tally.Bytes, n, before)
	}
	h.do("check-tree", keep, nil)
	h.do("detach", fs, nil)
	h.run("e2fsck", "-f", "-n", l.Device)
	h.clean()
	h.vacate("lease", "close", l.ID)
	h.nothingLeft()
}

// TestAttachResize makes an attached lease larger. Linux 6.12 can not tell that to a
// device in use: it is seen when the lease is attached again.
func TestAttachResize(t *testing.T) { eachDriver(t, 3*time.Minute, (*host).resizes) }

func (h *host) resizes(string) {
	h.t.Helper()
	const size, larger = 32 << 20, 96 << 20
	l := h.open(size)
	fs := wire.Attach{Device: l.Device, Dir: "/mnt/resize", Kind: "ext4"}
	h.run("mkfs.ext4", "-q", l.Device)
	h.do("attach", fs, nil)
	small := wire.Tree{Dir: fs.Dir, Seed: 1, Files: 20, Max: 100 << 10}
	h.do("tree", small, nil)
	h.vacate("lease", "resize", l.ID, "--size", fmt.Sprint(larger))
	h.do("check-tree", small, nil) // who has mounted it notices nothing
	h.do("detach", fs, nil)
	h.vacate("lease", "detach", l.ID)
	var again attached
	h.say(&again, "lease", "attach", l.ID)
	h.device(again, larger)
	h.do("zeros", wire.Range{Device: l.Device, Start: size, Size: larger - size}, nil)
	h.run("e2fsck", "-f", "-p", l.Device)
	h.run("resize2fs", l.Device)
	h.do("attach", fs, nil)
	big := wire.Tree{Dir: fs.Dir, Seed: 2, Files: 60, Max: 1 << 20}
	var tally wire.Tally
	h.do("tree", big, &tally)
	if tally.Bytes < size*3/4 {
		h.t.Errorf("only %d bytes were written", tally.Bytes)
	}
	h.do("check-tree", big, nil)
	h.do("check-tree", small, nil)
	h.do("detach", fs, nil)
	h.run("e2fsck", "-f", "-n", l.Device)
	h.clean()
	h.vacate("lease", "close", l.ID)
	h.nothingLeft()
}

// TestAttachVerify has fio write blocks with sums of their own and read them back soon
// after, while the engine is killed again and again.
func TestAttachVerify(t *testing.T) {
	runtime := time.Duration(either(20, 600)) * time.Second
	eachDriver(t, runtime+2*time.Minute, func(h *host, _ string) { h.verifies(runtime) })
}

func (h *host) verifies(runtime time.Duration) {
	h.t.Helper()
	const size, kills = 32 << 20, 3
	l := h.open(size)
	args := []string{
		"fio", "--name=verify", "--filename=" + l.Device, "--direct=1", "--ioengine=libaio", "--iodepth=8", "--rw=randwrite",
		"--bsrange=4k-64k", "--size=" + fmt.Sprint(size), "--time_based", "--runtime=" + fmt.Sprint(int(runtime.Seconds())),
		"--fsync=64", "--verify=crc32c", "--verify_backlog=64", "--verify_fatal=1", "--do_verify=1", "--randseed=7",
	}
	ran, result := wire.Ran{}, make(chan error, 1)
	go func() { result <- h.Call(h.ctx, "exec", wire.Exec{Args: args}, &ran) }()
	n := 0
	for ended := false; !ended; {
		select {
		case err := <-result:
			must(h.t, err)
			ended = true
		case <-time.After(time.Second): // time to get on
			h.kill("engine")
			n++
		}
	}
	if ran.Code != 0 || !strings.Contains(ran.Stdout, "err= 0") || !strings.Contains(ran.Stdout, " READ: ") || !strings.Contains(ran.Stdout, " WRITE: ") {
		h.t.Errorf("fio: exit code %d\n%s%s", ran.Code, ran.Stdout, ran.Stderr)
	}
	if n <= kills { // the last may have come after its end
		h.t.Errorf("fio has ended after the death of %d engines, of more than %d wanted", n, kills)
	}
	h.t.Logf("%d engines were killed\n%s", n, ran.Stdout)
	h.clean()
	h.vacate("lease", "close", l.ID)
	h.nothingLeft()
}
