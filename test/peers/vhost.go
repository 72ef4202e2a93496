package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"vacate/internal/vhostclient"
	"vacate/test/daemon"
)

// vhostRows are the rows of the vhost-user export, beside qemu-storage-daemon's.
// Each client is a session with one queue.
var vhostRows = []row{
	{
		name: "vhost-4k-reads", title: "vhost-user 4 KiB random reads, depth 32, client polls, tmpfs behind", unit: "reads/s",
		contestants: onVhost(vhostJob{load: vhostclient.Load{Depth: 32, Poll: true}}, qsdRaw, qsdThread, qsdLUKS),
		bars:        []bar{times(4.5, "Vacate", qsdRaw, qsdThread), times(11, "Vacate", qsdLUKS), serverTime(1.7)},
	},
	{
		name: "vhost-4k-writes", title: "vhost-user 4 KiB random writes, depth 32, client polls, tmpfs behind", unit: "writes/s",
		contestants: onVhost(vhostJob{load: vhostclient.Load{Pattern: vhostclient.RandomWrite, Depth: 32, Poll: true}}, qsdRaw, qsdThread, qsdLUKS),
		bars:        []bar{times(5, "Vacate", qsdRaw, qsdThread), times(12, "Vacate", qsdLUKS)},
	},
	{
		name: "vhost-4k-reads-sleep", title: "vhost-user 4 KiB random reads, depth 32, client sleeps on interrupts, tmpfs behind", unit: "reads/s",
		contestants: onVhost(vhostJob{load: vhostclient.Load{Depth: 32}}, qsdRaw, qsdThread, qsdLUKS),
		bars:        []bar{times(4, "Vacate", qsdRaw, qsdThread), times(9, "Vacate", qsdLUKS)},
	},
	{
		name: "vhost-depth1-reads", title: "vhost-user 4 KiB random reads, depth 1, client sleeps on interrupts, tmpfs behind", unit: "reads/s",
		note:        "Event-driven is `poll_budget: 0s`; the others poll as they do by default: Vacate for up to 50 µs, qemu-storage-daemon with an iothread for up to 32 µs.",
		contestants: onVhostEvents(vhostJob{load: vhostclient.Load{Depth: 1}}, qsdRaw, qsdThread, qsdLUKS),
		bars:        []bar{times(1.3, eventDriven, qsdRaw), times(3, "Vacate", qsdRaw)},
	},
	{
		name: "vhost-depth1-writes", title: "vhost-user 4 KiB random writes, depth 1, client sleeps on interrupts, tmpfs behind", unit: "writes/s",
		note:        "For the latency beside the raw export's: there is no bar.",
		contestants: onVhostEvents(vhostJob{load: vhostclient.Load{Pattern: vhostclient.RandomWrite, Depth: 1}}, qsdRaw, qsdThread, qsdLUKS),
	},
	{
		name: "vhost-128k-reads", title: "vhost-user 128 KiB random reads, depth 8, client polls, tmpfs behind", unit: "GB/s",
		contestants: onVhost(vhostJob{load: vhostclient.Load{Depth: 8, BlockSize: large, Poll: true}, bytes: true}, qsdRaw, qsdThread, qsdLUKS),
		bars:        []bar{times(1.3, "Vacate", qsdRaw, qsdThread), times(18, "Vacate", qsdLUKS)},
	},
	{
		name: "vhost-128k-writes", title: "vhost-user 128 KiB random writes, depth 8, client polls, tmpfs behind", unit: "GB/s",
		contestants: onVhost(vhostJob{load: vhostclient.Load{Pattern: vhostclient.RandomWrite, Depth: 8, BlockSize: large, Poll: true}, bytes: true}, qsdRaw, qsdThread, qsdLUKS),
		bars:        []bar{times(1.4, "Vacate", qsdRaw, qsdThread), times(18, "Vacate", qsdLUKS)},
	},
	{
		name: "vhost-unwritten", title: "vhost-user 4 KiB random reads of what was never written, depth 32, client polls", unit: "reads/s",
		note:        "qemu-storage-daemon reads a raw file of which nothing was written, a hole; and one that was written.",
		contestants: vhostUnwritten,
		bars:        []bar{times(15, "unwritten", "qsd raw, a hole", qsdRaw), times(15, "unwritten", qsdRaw)},
	},
	{
		name: "vhost-disk-4k-reads", title: "vhost-user 4 KiB random reads, depth 32, client polls, the machine's disk, O_DIRECT", unit: "reads/s", longer: 2,
		contestants: vhostOnDisk(vhostJob{load: vhostclient.Load{Depth: 32, Poll: true}}),
		bars:        []bar{times(1, "Vacate", "qsd raw aio=native", "qsd raw aio=io_uring", "qsd raw aio=threads")},
	},
	{
		name: "vhost-disk-4k-writes", title: "vhost-user 4 KiB random writes, depth 32, client polls, the machine's disk, O_DIRECT", unit: "writes/s", longer: 2,
		contestants: vhostOnDisk(vhostJob{load: vhostclient.Load{Pattern: vhostclient.RandomWrite, Depth: 32, Poll: true}}),
		bars:        []bar{times(1, "Vacate", "qsd raw aio=native", "qsd raw aio=io_uring", "qsd raw aio=threads")},
	},
	{
		name: "vhost-idle", title: "64 vhost-user sessions that were just busy, and are idle", unit: "% of a core", longer: 4,
		note:        "The engine's processor time while nothing is asked for. Each session has carried out a thousand requests right before.",
		contestants: vhostIdle,
		bars: []bar{{what: "64 idle sessions", limit: 1, atMost: true, format: "%.2f %%", value: func(r *result) (float64, bool) {
			return r.median("64 idle sessions"), true
		}}},
	},
}

const (
	qsdRaw      = "qsd raw"
	qsdThread   = "qsd raw, iothread"
	qsdLUKS     = "qsd LUKS"
	eventDriven = "Vacate, event-driven"
)

// A vhostJob is what a contestant of these rows is asked for.
type vhostJob struct {
	load  vhostclient.Load
	bytes bool // the rate is in bytes
}

// on returns the measurement of the job on a server.
func (j vhostJob) on(w *world, s *server) func(round int) (sample, error) {
	return func(round int) (got sample, err error) {
		j.load.Duration, j.load.Seed = w.o.span, uint64(round+1)
		if round < 0 {
			j.load.Duration = w.o.span / 4
		}
		c, err := dialVhost(s)
		if err != nil {
			return got, err
		}
		defer func() { err = errors.Join(err, c.Close()) }()
		if err := pinProcess(s.pid, &w.cores.server); err != nil { // the session's threads too
			return got, err
		}
		before, err := cpuTime(s.pid)
		if err != nil {
			return got, err
		}
		results := make([]vhostclient.Result, 1)
		busy := make([]time.Duration, 1)
		err = w.cores.onThread(&w.cores.client, func() (err error) {
			start := threadTime()
			results[0], err = j.load.Run(c)
			busy[0] = threadTime() - start
			return err
		})
		if err != nil {
			return got, err
		}
		ns, err := cpuSince(s.pid, before)
		if err != nil {
			return got, err
		}
		return job{bytes: j.bytes}.sum(results, busy, ns)
	}
}

// dialVhost connects, and waits for a server that has just been started.
func dialVhost(s *server) (*vhostclient.Client, error) {
	c, err := s.dial()
	if err != nil {
		return nil, err
	}
	return c.(*vhostclient.Client), nil
}

// onVhost runs the same job on Vacate and on qemu-storage-daemon.
func onVhost(j vhostJob, peers ...string) func(w *world) ([]contestant, error) {
	return func(w *world) ([]contestant, error) {
		s, err := w.oursVhost()
		if err != nil {
			return nil, err
		}
		return w.besideQSD([]contestant{{name: "Vacate", measure: j.on(w, s)}}, j, peers)
	}
}

// onVhostEvents is onVhost with a daemon that never polls beside the other.
func onVhostEvents(j vhostJob, peers ...string) func(w *world) ([]contestant, error) {
	return func(w *world) ([]contestant, error) {
		s, err := w.oursVhost()
		if err != nil {
			return nil, err
		}
		events, err := w.eventDriven()
		if err != nil {
			return nil, err
		}
		return w.besideQSD([]contestant{{name: "Vacate", measure: j.on(w, s)}, {name: eventDriven, measure: j.on(w, events)}}, j, peers)
	}
}

func (w *world) besideQSD(all []contestant, j vhostJob, peers []string) ([]contestant, error) {
	for _, name := range peers {
		s, err := w.qsd(name, place{dir: w.shm, size: w.o.size}, w.o.size)
		if err != nil {
			return nil, err
		}
		all = append(all, contestant{name: name, plain: name != qsdLUKS, measure: j.on(w, s)})
	}
	return all, nil
}

func vhostUnwritten(w *world) ([]contestant, error) {
	j := vhostJob{load: vhostclient.Load{Depth: 32, Poll: true}}
	empty, err := w.vhostVolume("Vacate vhost-user, nothing written", filepath.Join(w.shm, "drive"), 0)
	if err != nil {
		return nil, err
	}
	hole, err := w.qsd("qsd raw, a hole", place{dir: w.shm, size: w.o.size}, 0)
	if err != nil {
		return nil, err
	}
	all := []contestant{{name: "unwritten", measure: j.on(w, empty)}, {name: "qsd raw, a hole", plain: true, measure: j.on(w, hole)}}
	return w.besideQSD(all, j, []string{qsdRaw})
}

func vhostOnDisk(j vhostJob) func(w *world) ([]contestant, error) {
	return func(w *world) ([]contestant, error) {
		s, err := w.vhostVolume("Vacate vhost-user on disk", filepath.Join(w.drives, "disk"), w.o.size)
		if err != nil {
			return nil, err
		}
		all := []contestant{{name: "Vacate", measure: j.on(w, s)}}
		for _, aio := range []string{"native", "io_uring", "threads"} {
			name := "qsd raw aio=" + aio
			s, err := w.qsd(name, place{dir: w.dir, size: w.o.size}, w.o.size, "cache.direct=on", "aio="+aio)
			if err != nil {
				return nil, err
			}
			all = append(all, contestant{name: name, plain: true, measure: j.on(w, s)})
		}
		return all, nil
	}
}

// vhostIdle measures what sessions cost of which nobody asks anything.
func vhostIdle(w *world) ([]contestant, error) {
	many := make([]*server, neighbours)
	for i := range many {
		var err error
		if many[i], err = w.serve(fmt.Sprintf("volume idle %d", i+1), func() (*server, error) {
			return w.lease(w.daemon, w.engine, filepath.Join(w.shm, "drive"), w.o.size/neighbours)
		}, 0); err != nil {
			return nil, err
		}
	}
	return []contestant{{name: "64 idle sessions", measure: func(round int) (got sample, err error) {
		for _, s := range many {
			c, err := dialVhost(s)
			if err != nil {
				return got, err
			}
			defer func() { err = errors.Join(err, c.Close()) }()
			if _, err := (vhostclient.Load{Depth: 8, Requests: 1000}).Run(c); err != nil {
				return got, err
			}
		}
		time.Sleep(100 * time.Millisecond)
		before, err := cpuTime(w.engine)
		if err != nil {
			return got, err
		}
		start := time.Now()
		time.Sleep(w.o.span)
		ns, err := cpuSince(w.engine, before)
		got.Rate = 100 * float64(ns) / float64(time.Since(start))
		return got, err
	}}}, nil
}

// oursVhost is the volume on the tmpfs that these rows share.
func (w *world) oursVhost() (*server, error) {
	return w.vhostVolume("Vacate vhost-user", filepath.Join(w.shm, "drive"), w.o.size)
}

// vhostVolume opens a lease with both exports on the drive at path; the first
// filled bytes of it are written.
func (w *world) vhostVolume(name, path string, filled int64) (*server, error) {
	return w.serve(name, func() (*server, error) { return w.lease(w.daemon, w.engine, path, w.o.size) }, filled)
}

// lease opens one of size bytes with both exports, and one queue.
func (w *world) lease(d *daemon.Daemon, engine int, path string, size int64) (*server, error) {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if err := sparse(path, driveBytes); err != nil {
			return nil, err
		}
		if _, err := d.Run("drive", "enroll", path); err != nil {
			return nil, err
		}
	}
	l, err := d.Open("--drive", path, "--size", fmt.Sprint(size), "--tenant", "bench", "--export", "nbd,vhost-user", "--queues", "1")
	if err != nil {
		return nil, err
	}
	s := &server{pid: engine, stop: func() error {
		_, err := d.Run("lease", "close", l.ID)
		return err
	}}
	for _, e := range l.Exports {
		switch e.Kind {
		case "nbd":
			s.target = e.URI
		case "vhost-user":
			s.vhost = e.Socket
		}
	}
	if s.target == "" || s.vhost == "" {
		return nil, errors.Join(fmt.Errorf("lease %s has not both exports", l.ID), s.stop())
	}
	return s, nil
}

// eventDriven is a volume of a daemon of its own, which never polls.
func (w *world) eventDriven() (*server, error) {
	return w.serve(eventDriven, func() (*server, error) {
		d, err := daemon.Start(w.bin, filepath.Join(w.dir, "e"), daemon.Options{
			Env: []string{"VACATE_LOG__LEVEL=warn", "VACATE_POLL_BUDGET=0s"}, Args: []string{"--drive-dir", w.shm},
		})
		if err != nil {
			return nil, err
		}
		engine, err := d.Child("engine")
		var s *server
		if err == nil {
			s, err = w.lease(d, engine, filepath.Join(w.shm, "events"), w.o.size)
		}
		if err != nil {
			return nil, errors.Join(err, d.Stop())
		}
		closeLease := s.stop
		s.stop = func() error { return errors.Join(closeLease(), d.Stop()) }
		return s, nil
	}, w.o.size)
}

// qsd is qemu-storage-daemon with one image, of which the first filled bytes are
// written; more are options of its file.
func (w *world) qsd(name string, at place, filled int64, more ...string) (*server, error) {
	return w.serve(name, func() (*server, error) { return at.startQSD(name, more...) }, filled)
}

// startQSD starts it; what it serves depends on the name.
func (p place) startQSD(name string, more ...string) (*server, error) {
	base := filepath.Join(p.dir, strings.NewReplacer(" ", "-", ",", "", "=", "-").Replace(name))
	image, socket := base+".img", base+".sock"
	file := "driver=file,node-name=f,filename=" + image
	for _, o := range more {
		file += "," + o
	}
	args := []string{"qemu-storage-daemon", "--blockdev", file}
	node := "f"
	if name == qsdLUKS {
		if err := p.createLUKS(image); err != nil {
			return nil, err
		}
		args = append(args, "--object", luksSecret, "--blockdev", "driver=luks,node-name=l,key-secret=s,file=f")
		node = "l"
	} else if err := sparse(image, p.size); err != nil {
		return nil, err
	}
	export := "type=vhost-user-blk,id=v,writable=on,num-queues=1,node-name=" + node + ",addr.type=unix,addr.path=" + socket
	if name == qsdThread {
		args = append(args, "--object", "iothread,id=t")
		export += ",iothread=t"
	}
	s, err := spawn(socket, append(args, "--export", export)...)
	if err != nil {
		return nil, err
	}
	s.vhost = socket
	return s, nil
}
