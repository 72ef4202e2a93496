// Command init is the first and only program of a test's virtual machine, apart
// from vacate: it makes the machine ready, starts the daemon, and does what the
// test on the host asks for over a serial port (package wire).
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"vacate/test/vm/wire"
)

func main() {
	err := run()
	// Without its init program the kernel panics, and with it the machine ends.
	fmt.Fprintln(os.Stderr, "init:", err)
	os.Exit(1)
}

// modulesDir holds what is to be loaded first.
const modulesDir = "/lib/modules"

// An agent carries out requests.
type agent struct {
	conn   *wire.Conn
	daemon *daemon // nil before "serve"
	mounts []string
	stress *stress // nil if none goes on

	mu       sync.Mutex
	programs map[string]*background // by the file that each makes
}

func run() error {
	if err := makeReady(); err != nil {
		return err
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	a := &agent{conn: wire.NewConn(port), programs: map[string]*background{}}
	if err := a.conn.Begin(); err != nil {
		return err
	}
	up := wire.Up{BootID: readLine("/proc/sys/kernel/random/boot_id"), Release: readLine("/proc/sys/kernel/osrelease")}
	if err := a.event("up", up); err != nil {
		return err
	}
	for {
		var r wire.Request
		if err := a.conn.Receive(&r); err != nil {
			return fmt.Errorf("reading from the host: %w", err)
		}
		// Each on its own goroutine: a power cut may be asked of a machine that
		// waits for its daemon.
		go a.answer(r)
	}
}

func (a *agent) event(kind string, body any) error {
	return a.conn.Send(wire.Message{Kind: kind, Body: wire.Body(body)})
}

func (a *agent) answer(r wire.Request) {
	m := wire.Message{Re: r.ID}
	body, err := a.do(r)
	if err != nil {
		m.Err = err.Error()
	} else if body != nil {
		m.Body = wire.Body(body)
	}
	if err := a.conn.Send(m); err != nil {
		fmt.Fprintln(os.Stderr, "init: answering the host:", err)
	}
}

func (a *agent) do(r wire.Request) (any, error) {
	for _, of := range []func(wire.Request) (any, bool, error){a.guest, a.host} {
		if body, ok, err := of(r); ok {
			return body, err
		}
	}
	switch r.Do {
	case "mount":
		return nil, with(r, a.mount)
	case "serve":
		return nil, with(r, func(s wire.Serve) error {
			d, err := startDaemon(s)
			if err != nil {
				return err
			}
			a.daemon = d
			return d.waitReady()
		})
	case "off":
		return nil, a.off()
	}
	if a.daemon == nil {
		return nil, fmt.Errorf("%q: no daemon was started, or there is no such request", r.Do)
	}
	switch r.Do {
	case "run":
		var ran wire.Ran
		err := with(r, func(b wire.Run) (err error) {
			ran, err = a.daemon.run(b.Args...)
			return err
		})
		return ran, err
	case "log":
		return a.daemon.log.tail(40), nil
	case "keys":
		return a.daemon.keys()
	case "break":
		var b wire.Broken
		err := with(r, func(body wire.Break) (err error) {
			b, err = a.breakDrive(body)
			return err
		})
		return b, err
	case "drive":
		return nil, with(r, findDrive)
	case "check":
		return nil, with(r, a.check)
	case "load":
		return nil, with(r, a.load)
	}
	return nil, fmt.Errorf("there is no request %q", r.Do)
}

// with decodes the body of a request.
func with[T any](r wire.Request, do func(T) error) error {
	var body T
	if err := json.Unmarshal(r.Body, &body); err != nil {
		return fmt.Errorf("decoding the body of %q: %w", r.Do, err)
	}
	return do(body)
}

// makeReady mounts what every Linux has, and names the drives.
func makeReady() error {
	for _, m := range []struct{ kind, dir, options string }{
		{"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"devtmpfs", "/dev", ""},
		{"tmpfs", "/run", "mode=0755"}, {"tmpfs", "/tmp", "mode=1777"},
	} {
		if err := syscall.Mount(m.kind, m.dir, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("mounting %s: %w", m.dir, err)
		}
	}
	modules, err := filepath.Glob(modulesDir + "/*")
	if err != nil {
		return err
	}
	for _, m := range modules {
		if err := loadModule(m, ""); err != nil {
			return fmt.Errorf("loading %s: %w", m, err)
		}
	}
	return os.Setenv("PATH", "/bin:/usr/bin:/usr/sbin")
}

// loadModule loads a module, which the kernel unpacks.
func loadModule(path, parameters string) error {
	const (
		sysFinitModule = 313 // of amd64, the machine's
		compressed     = 4   // MODULE_INIT_COMPRESSED_FILE
	)
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	p := append([]byte(parameters), 0)
	_, _, errno := syscall.Syscall(sysFinitModule, f.Fd(), uintptr(unsafe.Pointer(&p[0])), compressed)
	if errno != 0 {
		return os.NewSyscallError("finit_module", errno)
	}
	return nil
}

// off unmounts what was mounted, and switches the machine off after the reply.
func (a *agent) off() error {
	for _, dir := range a.mounts {
		if err := syscall.Unmount(dir, 0); err != nil {
			return fmt.Errorf("unmounting %s: %w", dir, err)
		}
	}
	time.AfterFunc(100*time.Millisecond, func() {
		fmt.Fprintln(os.Stderr, "init: switching off:", syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF))
	})
	return nil
}

func (a *agent) mount(m wire.Mount) error {
	if err := nameDrives(m.Device); err != nil {
		return err
	}
	if err := syscall.Mount(m.Device, m.Dir, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mounting %s at %s: %w", m.Device, m.Dir, err)
	}
	a.mounts = append(a.mounts, m.Dir)
	return nil
}

// nameDrives gives each drive the name that its serial number says: those of
// the kernel depend on which drive is found first. It waits for the named one.
func nameDrives(want string) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		drives, err := filepath.Glob("/sys/block/*")
		if err != nil {
			return err
		}
		for _, d := range drives {
			serial := readLine(d + "/device/serial") // NVMe
			if serial == "" {
				serial = readLine(d + "/serial") // virtio
			}
			name, ok := strings.CutPrefix(serial, wire.SerialPrefix)
			if !ok {
				continue
			}
			var major, minor int
			if _, err := fmt.Sscanf(readLine(d+"/dev"), "%d:%d", &major, &minor); err != nil {
				return fmt.Errorf("reading the number of %s: %w", d, err)
			}
			err := syscall.Mknod("/dev/"+name, syscall.S_IFBLK|0o600, major<<8|minor)
			if err != nil && !errors.Is(err, os.ErrExist) {
				return fmt.Errorf("naming drive %s: %w", name, err)
			}
		}
		if _, err := os.Stat(want); err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no drive %s appears: there are %v", want, drives)
		}
	}
}

// openPort opens the serial port to the host once it is there.
func openPort() (io.ReadWriter, error) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			if readLine(n) == wire.PortName {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(n)), os.O_RDWR, 0)
			}
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("no serial port %q: there are %v", wire.PortName, names)
		}
	}
}

// readLine returns the content of a small file, or "" without it.
func readLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
