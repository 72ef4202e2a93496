package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"vacate/test/daemon"
)

// A world is what the rows share: the folders, the daemon and the servers that
// were started so far.
type world struct {
	o       options
	bin     string // vacate
	cores   cores
	dir     string // on the disk
	drives  string // a folder in it
	shm     string // on the tmpfs
	daemon  *daemon.Daemon
	engine  int // pid
	servers map[string]*server
	names   []string // of servers, in the order of their start
	layers  *stack   // of the rows of layers; nil: not yet made
}

func newWorld(o options) (_ *world, err error) {
	w := &world{o: o, servers: make(map[string]*server)}
	if w.cores, err = findCores(); err != nil {
		return nil, err
	}
	if w.dir, err = os.MkdirTemp(o.disk, "vp"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	w.drives = filepath.Join(w.dir, "drives")
	if err := os.Mkdir(w.drives, 0o700); err != nil {
		return nil, err
	}
	if w.shm, err = os.MkdirTemp(o.shm, "vp"); err != nil {
		return nil, err
	}
	bin := o.bin
	if bin == "" {
		if bin, err = daemon.Build(w.dir); err != nil {
			return nil, err
		}
	}
	w.bin = bin
	env := []string{"VACATE_LOG__LEVEL=warn", "VACATE_MAX_CONNECTIONS=512", "VACATE_DANGER_ZONE__ENABLED=true",
		"VACATE_DANGER_ZONE__FORCE_FORWARD=" + w.forwarded()}
	if o.env != "" {
		env = append(env, strings.Split(o.env, ",")...)
	}
	w.daemon, err = daemon.Start(bin, filepath.Join(w.dir, "d"), daemon.Options{Env: env, Args: []string{"--drive-dir", w.drives, "--drive-dir", w.shm}})
	if err != nil {
		return nil, err
	}
	w.engine, err = w.daemon.Child("engine")
	return w, err
}

// close ends what runs, and removes the folders.
func (w *world) close() (err error) {
	for _, name := range w.names {
		err = errors.Join(err, w.servers[name].stop())
	}
	if w.daemon != nil {
		err = errors.Join(err, w.daemon.Stop())
	}
	for _, dir := range []string{w.dir, w.shm} {
		if dir != "" {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}
	return err
}

// serve returns the server of that name. The first who asks for it starts it, and
// fills it unless it is to stay empty.
func (w *world) serve(name string, start func() (*server, error), filled int64) (*server, error) {
	if s := w.servers[name]; s != nil {
		return s, nil
	}
	if !strings.HasPrefix(name, "volume ") { // of which there are many
		fmt.Fprintf(os.Stderr, "  starting %s\n", name)
	}
	s, err := start()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	w.servers[name], w.names = s, append(w.names, name)
	if filled > 0 {
		if err := s.fill(filled); err != nil {
			return nil, fmt.Errorf("filling %s: %w", name, err)
		}
	}
	return s, nil
}

// peer returns one of the peers, with its data on the tmpfs.
func (w *world) peer(name string) (*server, error) {
	at := place{dir: w.shm, size: w.o.size}
	filled := w.o.size
	var start func() (*server, error)
	switch name {
	case "qemu-nbd raw":
		start = func() (*server, error) { return at.qemuRaw("qemu-raw") }
	case "qemu-nbd LUKS":
		start = at.qemuLUKS
	case "qemu-nbd empty qcow2":
		start, filled = at.qemuEmpty, 0
	case "nbdkit memory":
		start = at.kitMemory
	case "nbdkit file":
		start = at.kitFile
	case "nbdkit LUKS":
		start = at.kitLUKS
	default:
		panic("peers: no peer is called " + name)
	}
	return w.serve(name, start, filled)
}

// volume opens a lease of size bytes on the drive at path, which is made and
// enrolled if need be.
func (w *world) volume(name, path string, size, filled int64) (*server, error) {
	return w.serve(name, func() (*server, error) {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			if err := sparse(path, driveBytes); err != nil {
				return nil, err
			}
			if _, err := w.daemon.Run("drive", "enroll", path); err != nil {
				return nil, err
			}
		}
		l, err := w.daemon.Open("--drive", path, "--size", fmt.Sprint(size), "--tenant", "bench")
		if err != nil {
			return nil, err
		}
		return &server{target: l.URI(), pid: w.engine, stop: func() error {
			_, err := w.daemon.Run("lease", "close", l.ID)
			return err
		}}, nil
	}, filled)
}

// driveBytes is the size of each drive, a sparse file: room for 64 volumes of one
// extent each, and for those of the other rows.
const driveBytes = 8 << 30

// forwarded is the path of a drive whose flushes are forwarded whatever it is.
func (w *world) forwarded() string { return filepath.Join(w.drives, "forward") }

// ours is the volume on the tmpfs that all rows share.
func (w *world) ours() (*server, error) {
	return w.volume("Vacate", filepath.Join(w.shm, "drive"), w.o.size, w.o.size)
}

// thisMachine describes where figures come from.
func thisMachine() string {
	model := "unknown processor"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				model = strings.Trim(name, "\t :\n")
				break
			}
		}
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease") //nolint:errcheck // shown as empty
	return fmt.Sprintf("%d cores of %s, Linux %s, %s", runtime.NumCPU(), model,
		strings.TrimSpace(string(kernel)), runtime.Version())
}

// thisCommit names what was built, as far as the repository tells.
func thisCommit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}
