package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"

	"vacate/internal/blk"
	"vacate/internal/nbdclient"
)

const large = 128 << 10 // bytes of a large request

// rows are the rows of the table, in its order.
var rows = slices.Concat(nbdRows, vhostRows)

// nbdRows are those of the cipher, of the NBD export and of the layers.
var nbdRows = []row{
	{
		name: "cipher", title: "AES-256-XTS, 4096-byte units, 128 KiB buffers, one core", unit: "GB/s",
		note:        "openssl is `openssl speed -evp aes-256-xts -bytes 131072`. Both count processor time.",
		contestants: ciphers,
		bars:        []bar{times(1.9, "Vacate", "openssl")},
	},
	{
		name: "4k-reads", title: "NBD 4 KiB random reads, depth 32, one connection, tmpfs behind", unit: "reads/s",
		contestants: onNBD(job{load: nbdclient.Load{Depth: 32}}, "Vacate", "qemu-nbd LUKS", "nbdkit LUKS", "qemu-nbd raw", "nbdkit file", "nbdkit memory"),
		bars:        []bar{times(7, "Vacate", "qemu-nbd LUKS"), times(1.4, "Vacate", "nbdkit memory"), serverTime(4)},
	},
	{
		name: "4k-reads-two", title: "NBD 4 KiB random reads, depth 32, two connections, not pinned, tmpfs behind", unit: "reads/s",
		contestants: onNBD(job{load: nbdclient.Load{Depth: 32}, connections: 2, loose: true}, "Vacate", "qemu-nbd LUKS", "nbdkit LUKS", "nbdkit memory"),
		bars:        []bar{times(20, "Vacate", "qemu-nbd LUKS"), times(2.5, "Vacate", "nbdkit memory")},
	},
	{
		name: "4k-writes", title: "NBD 4 KiB random writes, depth 32, one connection, tmpfs behind", unit: "writes/s",
		contestants: onNBD(job{load: nbdclient.Load{Pattern: nbdclient.RandomWrite, Depth: 32}},
			"Vacate", "qemu-nbd LUKS", "nbdkit LUKS", "qemu-nbd raw", "nbdkit file", "nbdkit memory"),
		bars: []bar{times(6, "Vacate", "qemu-nbd LUKS"), times(1.4, "Vacate", "nbdkit file")},
	},
	{
		name: "128k-reads", title: "NBD 128 KiB random reads, depth 8, one connection, tmpfs behind", unit: "GB/s",
		contestants: onNBD(job{load: nbdclient.Load{Depth: 8, BlockSize: large}, bytes: true}, "Vacate", "qemu-nbd LUKS", "nbdkit LUKS", "qemu-nbd raw", "nbdkit memory"),
		bars:        []bar{times(7, "Vacate", "qemu-nbd LUKS"), times(4, "Vacate", "nbdkit LUKS")},
	},
	{
		name: "128k-writes", title: "NBD 128 KiB random writes, depth 8, one connection, tmpfs behind", unit: "GB/s",
		contestants: onNBD(job{load: nbdclient.Load{Pattern: nbdclient.RandomWrite, Depth: 8, BlockSize: large}, bytes: true},
			"Vacate", "qemu-nbd LUKS", "nbdkit LUKS", "qemu-nbd raw", "nbdkit memory"),
		bars: []bar{times(7, "Vacate", "qemu-nbd LUKS"), times(6, "Vacate", "nbdkit LUKS")},
	},
	{
		name: "depth1-reads", title: "NBD 4 KiB random reads, depth 1, tmpfs behind", unit: "reads/s",
		contestants: onNBD(job{load: nbdclient.Load{Depth: 1}}, "Vacate", "qemu-nbd LUKS", "nbdkit LUKS", "nbdkit memory"),
		bars:        []bar{times(1.5, "Vacate", "nbdkit LUKS")},
	},
	{
		name: "depth1-writes", title: "NBD 4 KiB random writes, depth 1, tmpfs behind", unit: "writes/s",
		contestants: onNBD(job{load: nbdclient.Load{Pattern: nbdclient.RandomWrite, Depth: 1}}, "Vacate", "qemu-nbd LUKS", "nbdkit LUKS", "nbdkit memory"),
	},
	{
		name: "depth1-disk", title: "4 KiB random writes, depth 1, the machine's disk", unit: "writes/s",
		note:        "For the latency beside the raw device's: there is no bar. fio is device and client in one process, on one core.",
		contestants: onDisk(nbdclient.Load{Pattern: nbdclient.RandomWrite, Depth: 1}, fio{pattern: "randwrite", block: 4096, depth: 1}),
	},
	{
		name: "unwritten", title: "NBD 4 KiB random reads of what was never written, depth 32, one connection", unit: "reads/s",
		note:        "Clients with structured replies are told of holes; those with simple replies are sent zeros. Of qemu-nbd's two, the faster counts.",
		contestants: func(w *world) ([]contestant, error) { return unwritten(w) },
		bars:        []bar{times(2, "unwritten", "qemu-nbd empty qcow2", "qemu-nbd empty qcow2, simple"), times(1.2, "unwritten", "written")},
	},
	{
		name: "disk-4k-reads", title: "4 KiB random reads, depth 32, the machine's disk, O_DIRECT", unit: "reads/s", longer: 2,
		contestants: onDisk(nbdclient.Load{Depth: 32}, fio{pattern: "randread", block: 4096, depth: 32}),
		bars:        []bar{times(0.95, "Vacate", fioName)},
	},
	{
		name: "disk-4k-writes", title: "4 KiB random writes, depth 32, the machine's disk, O_DIRECT", unit: "writes/s", longer: 2,
		contestants: onDisk(nbdclient.Load{Pattern: nbdclient.RandomWrite, Depth: 32}, fio{pattern: "randwrite", block: 4096, depth: 32}),
		bars:        []bar{times(0.95, "Vacate", fioName)},
	},
	{
		name: "disk-128k-reads", title: "128 KiB random reads, depth 8, the machine's disk, O_DIRECT", unit: "GB/s", longer: 2,
		contestants: onDisk(nbdclient.Load{Depth: 8, BlockSize: large}, fio{pattern: "randread", block: large, depth: 8, bytes: true}),
		bars:        []bar{times(0.95, "Vacate", fioName)},
	},
	{
		name: "disk-128k-writes", title: "128 KiB random writes, depth 8, the machine's disk, O_DIRECT", unit: "GB/s", longer: 2,
		contestants: onDisk(nbdclient.Load{Pattern: nbdclient.RandomWrite, Depth: 8, BlockSize: large}, fio{pattern: "randwrite", block: large, depth: 8, bytes: true}),
		bars:        []bar{times(0.95, "Vacate", fioName)},
	},
	{
		name: "disk-4k-reads-deep", title: "4 KiB random reads, depth 128, the machine's disk, O_DIRECT", unit: "reads/s", longer: 2,
		note:        "There is no bar. With more in flight than the disk needs, what is on its way between client and server is not missing there.",
		contestants: onDisk(nbdclient.Load{Depth: 128}, fio{pattern: "randread", block: 4096, depth: 128}),
	},
	{
		name: "disk-128k-reads-deep", title: "128 KiB random reads, depth 16, the machine's disk, O_DIRECT", unit: "GB/s", longer: 2,
		note:        "There is no bar; see above.",
		contestants: onDisk(nbdclient.Load{Depth: 16, BlockSize: large}, fio{pattern: "randread", block: large, depth: 16, bytes: true}),
	},
	{
		name: "fsync", title: "4 KiB random writes with an fsync after each, the machine's disk", unit: "writes/s",
		note: "`watched` (and `qemu-nbd cache=unsafe`, its fair peer) is **not durable across loss of power, by design**: power loss ends the lease, " +
			"and its key with it, so there is nothing left to be durable for. `forward` and fio's `--fsync=1` are.",
		contestants: fsyncs,
		bars:        []bar{times(0.9, "Vacate, forward", fsyncName), times(5, "Vacate, watched", fsyncName)},
	},
	{
		name: "map", title: "The block map: the same stack with it, and without", unit: "reads/s", rounds: 4,
		note: "NBD 4 KiB random reads, depth 32, of the same blocks of the same drive, by two exports of one process. The cost is in the " +
			"server's processor time a request, the median of the rounds' own ratios. Leaving the layer out is more than making it constantly true.",
		contestants: mapContestants,
		bars:        []bar{mapCost},
	},
	{
		name: "volumes", title: "64 volumes with a client each against one volume, NBD 4 KiB random reads, depth 32", unit: "reads/s", longer: 3,
		contestants: volumes,
		bars:        []bar{times(0.9, "64 volumes", "one volume"), slowest("64 volumes", 0.7)},
	},
	{
		name: "allocations", title: "Allocations a request: client, export and all layers in one process", unit: "allocations",
		contestants: allocations,
		bars:        []bar{noAllocations("reads"), noAllocations("writes")},
	},
	{
		name: "stages-reads", title: "Where the time of a 4 KiB read goes, NBD, depth 32, tmpfs behind", unit: "ns", stages: true,
		note: stagesNote, contestants: stagesOf(nbdclient.RandomRead),
	},
	{
		name: "stages-writes", title: "Where the time of a 4 KiB write goes, NBD, depth 32, tmpfs behind", unit: "ns", stages: true,
		note: stagesNote, contestants: stagesOf(nbdclient.RandomWrite),
	},
	{
		name: "layers-reads", title: "A 4 KiB read through more and more layers, tmpfs behind", unit: "ns", stages: true,
		note: layersNote, contestants: layersOf(blk.OpRead),
	},
	{
		name: "layers-writes", title: "A 4 KiB write through more and more layers, tmpfs behind", unit: "ns", stages: true,
		note: layersNote, contestants: layersOf(blk.OpWrite),
	},
}

const (
	stagesNote = "Nanoseconds of the engine's processor time a request (`/proc/PID/task/*/schedstat`), shared out as `perf record` (2999 samples a second) " +
		"finds its stacks. Changing tasks is what a sleep for the client costs: perf's clock strikes when interrupts are allowed again, so some of the kernel's time before that counts as such."
	layersNote = "One thread, batches of 32, no export, in this process: the difference of two lines is what a layer takes."
)

// stagesOf profiles the engine.
func stagesOf(p nbdclient.Pattern) func(w *world) ([]contestant, error) {
	return func(w *world) ([]contestant, error) {
		s, err := w.ours()
		if err != nil {
			return nil, err
		}
		return profiled(w, s, job{load: nbdclient.Load{Pattern: p, Depth: 32}, simple: true}), nil
	}
}

// onNBD runs the same job on Vacate and on peers, by name. All get simple
// replies: with structured ones qemu-nbd looks for holes before it reads.
func onNBD(j job, names ...string) func(w *world) ([]contestant, error) {
	j.simple = true
	return func(w *world) (all []contestant, err error) {
		for _, name := range names {
			var s *server
			if name == "Vacate" {
				s, err = w.ours()
			} else {
				s, err = w.peer(name)
			}
			if err != nil {
				return nil, err
			}
			plain := name != "Vacate" && name != "qemu-nbd LUKS" && name != "nbdkit LUKS"
			all = append(all, contestant{name: name, plain: plain, measure: j.on(w, s)})
		}
		return all, nil
	}
}

const (
	fioName   = "fio io_uring, raw file"
	fsyncName = "fio --fsync=1, raw file"
)

// onDisk runs the same load on a volume on the machine's disk, and by fio on a
// raw file of it: from the core that Vacate's server has, where the bar is, and
// from the other. It is not the same: the disk's interrupts come to one of them.
func onDisk(load nbdclient.Load, f fio) func(w *world) ([]contestant, error) {
	return func(w *world) ([]contestant, error) {
		s, err := w.onDisk()
		if err != nil {
			return nil, err
		}
		raw, err := f.on(w, w.dir, &w.cores.server)
		if err != nil {
			return nil, err
		}
		other, err := f.on(w, w.dir, &w.cores.client)
		if err != nil {
			return nil, err
		}
		return []contestant{
			{name: "Vacate", measure: job{load: load, bytes: f.bytes, simple: true}.on(w, s)},
			{name: fioName, plain: true, measure: raw},
			{name: fioName + ", other core", plain: true, measure: other},
		}, nil
	}
}

func (w *world) onDisk() (*server, error) {
	return w.volume("Vacate on disk", filepath.Join(w.drives, "disk"), w.o.size, w.o.size)
}

// fsyncs are the ways to write what fsync promises, and not to.
func fsyncs(w *world) ([]contestant, error) {
	forward, err := w.volume("Vacate on disk, flushes forwarded", w.forwarded(), w.o.size/4, w.o.size/4)
	if err != nil {
		return nil, err
	}
	raw, err := fio{pattern: "randwrite", block: 4096, depth: 1, fsync: true}.on(w, w.dir, &w.cores.server)
	if err != nil {
		return nil, err
	}
	j := job{load: nbdclient.Load{Pattern: nbdclient.RandomWrite, Depth: 1, Flush: true}, simple: true}
	all := []contestant{{name: "Vacate, forward", measure: j.on(w, forward)}, {name: fsyncName, plain: true, measure: raw}}
	s, err := w.onDisk()
	if err != nil {
		return nil, err
	}
	class, why, err := w.flushClass(filepath.Join(w.drives, "disk"))
	if err != nil {
		return nil, err
	}
	if class == "forward" {
		fmt.Printf("  no drive of class watched here: %s\n", why)
	} else {
		all = append(all, contestant{name: "Vacate, " + class, measure: j.on(w, s)})
	}
	for _, cache := range []string{"unsafe", "none"} {
		name := "qemu-nbd cache=" + cache
		peer, err := w.serve(name, func() (*server, error) { return place{w.dir, w.o.size / 4}.qemuRaw("qemu-"+cache, "--cache="+cache) }, w.o.size/4)
		if err != nil {
			return nil, err
		}
		all = append(all, contestant{name: name, plain: true, measure: j.on(w, peer)})
	}
	return all, nil
}

// flushClass asks the daemon what becomes of flushes to a drive.
func (w *world) flushClass(path string) (class, why string, err error) {
	out, err := w.daemon.Run("drive", "show", path, "-o", "json")
	if err != nil {
		return "", "", err
	}
	var d struct {
		Flush    string `json:"flush"`
		FlushWhy string `json:"flushWhy"`
	}
	if err = json.Unmarshal([]byte(out), &d); err == nil && d.Flush == "" {
		err = fmt.Errorf("no flush class in %s", out)
	}
	return d.Flush, d.FlushWhy, err
}

func unwritten(w *world) ([]contestant, error) {
	written, err := w.ours()
	if err != nil {
		return nil, err
	}
	empty, err := w.volume("Vacate, nothing written", filepath.Join(w.shm, "drive"), w.o.size, 0)
	if err != nil {
		return nil, err
	}
	qcow, err := w.peer("qemu-nbd empty qcow2")
	if err != nil {
		return nil, err
	}
	j := job{load: nbdclient.Load{Depth: 32}}
	simple := j
	simple.simple = true
	return []contestant{
		{name: "unwritten", measure: j.on(w, empty)},
		{name: "unwritten, simple", measure: simple.on(w, empty)},
		{name: "written", measure: j.on(w, written)},
		{name: "qemu-nbd empty qcow2", plain: true, measure: j.on(w, qcow)},
		{name: "qemu-nbd empty qcow2, simple", plain: true, measure: simple.on(w, qcow)},
	}, nil
}

const neighbours = 64

// volumes compares one volume of 1 GiB with 64 that have as much together.
func volumes(w *world) ([]contestant, error) {
	one, err := w.ours()
	if err != nil {
		return nil, err
	}
	many := make([]*server, neighbours)
	for i := range many {
		if many[i], err = w.volume(fmt.Sprintf("volume %d", i+1), filepath.Join(w.shm, "drive"), w.o.size/neighbours, w.o.size/neighbours); err != nil {
			return nil, err
		}
	}
	j := job{load: nbdclient.Load{Depth: 32}, simple: true}
	return []contestant{{name: "64 volumes", measure: j.on(w, many...)}, {name: "one volume", measure: j.on(w, one)}}, nil
}
