package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/elastic/go-seccomp-bpf/arch"

	"vacate/internal/sys"
)

// childVar makes this binary a child of the tests: its value is a JSON order.
const childVar = "VACATE_TEST_SANDBOX"

// An order is what a child is to do.
type order struct {
	Who string   // "engine" or "control"
	Try []string // keys of attempts
	Dir string   // of the world
	PID int      // the parent, which must not be reached
}

func TestMain(m *testing.M) {
	text := os.Getenv(childVar)
	if text == "" {
		code := m.Run()
		if err := os.RemoveAll(childDir); err != nil {
			fmt.Println(err)
			code = 1
		}
		os.Exit(code)
	}
	var o order
	err := json.Unmarshal([]byte(text), &o)
	if err == nil {
		err = o.carryOut()
	}
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// carryOut confines this process and tries one thing after the other. It prints
// the report, and then what came of each.
func (o order) carryOut() error {
	w := world{o.Dir}
	before := make(chan struct{})
	for range 4 { // threads that are there when the sandbox comes
		go func() {
			runtime.LockOSThread()
			<-before
		}()
	}
	if err := sys.Harden(); err != nil {
		return err
	}
	report, err := w.confine(o.Who)
	if err != nil {
		return err
	}
	fmt.Println("report:", report)
	defer close(before)
	for _, name := range o.Try {
		try, ok := attempts[name]
		if !ok {
			return fmt.Errorf("no attempt %q", name)
		}
		err := try(w, o)
		var errno syscall.Errno
		switch {
		case errors.As(err, &errno):
			fmt.Printf("result of %s: %s: %v\n", name, errnoName(errno), err)
		case err != nil:
			fmt.Printf("result of %s: failed: %v\n", name, err)
		default:
			fmt.Printf("result of %s: done\n", name)
		}
	}
	return nil
}

func errnoName(e syscall.Errno) string {
	for name, known := range map[string]syscall.Errno{"EPERM": syscall.EPERM, "EACCES": syscall.EACCES, "ENOSYS": syscall.ENOSYS, "EBADF": syscall.EBADF} {
		if e == known {
			return name
		}
	}
	return fmt.Sprintf("errno %d", int(e))
}

// A world is the folder that the parent makes for a child.
type world struct{ dir string }

func (w world) drives() string { return filepath.Join(w.dir, "drives") }
func (w world) drive() string  { return filepath.Join(w.drives(), "drive.img") }
func (w world) single() string { return filepath.Join(w.dir, "single.img") }
func (w world) state() string  { return filepath.Join(w.dir, "state") }
func (w world) leases() string { return filepath.Join(w.dir, "leases") }

func (w world) confine(who string) (Report, error) {
	switch who {
	case "nobody":
		return Report{Off: true}, nil
	case "engine without its folder":
		if err := os.RemoveAll(w.drives()); err != nil {
			return Report{}, err
		}
		fallthrough
	case "engine":
		return Engine(EngineOptions{DriveDirs: []string{w.drives()}, DriveFiles: []string{w.single()}})
	}
	return Control(ControlOptions{StateDir: w.state(), LeasesDir: w.leases()})
}

// call6 makes a system call by its name.
func call6(name string, args ...uintptr) error {
	m, err := arch.GetInfo("")
	if err != nil {
		return err
	}
	n, ok := m.SyscallNames[name]
	if !ok {
		return fmt.Errorf("no call %q", name)
	}
	return callNumber(uintptr(n), args...)
}

func callNumber(n uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, errno := syscall.Syscall6(n, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
		return errno
	}
	return nil
}

// raw is an attempt that makes one call with fixed arguments.
func raw(name string, args ...uintptr) func(world, order) error {
	return func(world, order) error { return call6(name, args...) }
}

func open(path func(world) string, flags int) func(world, order) error {
	return func(w world, _ order) error {
		f, err := os.OpenFile(path(w), flags, 0o600)
		if err != nil {
			return err
		}
		return f.Close()
	}
}

func file(path string) func(world) string { return func(world) string { return path } }

// attempts are what children try; what must come of it stands in the tests.
var attempts = map[string]func(world, order) error{
	// Names.
	"open the journal":     open(func(w world) string { return filepath.Join(w.state(), "journal.db") }, os.O_RDWR),
	"read the journal":     open(func(w world) string { return filepath.Join(w.state(), "journal.db") }, os.O_RDONLY),
	"make a state file":    open(func(w world) string { return filepath.Join(w.state(), "new") }, os.O_RDWR|os.O_CREATE),
	"open a drive":         open(world.drive, os.O_RDWR),
	"read a drive":         open(world.drive, os.O_RDONLY),
	"open a single drive":  open(world.single, os.O_RDWR),
	"truncate a drive":     open(world.drive, os.O_RDWR|os.O_TRUNC),
	"make a drive":         open(func(w world) string { return filepath.Join(w.drives(), "new") }, os.O_RDWR|os.O_CREATE),
	"list the drives":      func(w world, _ order) error { _, err := os.ReadDir(w.drives()); return err },
	"remove a drive":       func(w world, _ order) error { return os.Remove(w.drive()) },
	"make a symbolic link": func(w world, _ order) error { return os.Symlink("/etc/passwd", filepath.Join(w.state(), "l")) },
	"rename out of state": func(w world, _ order) error {
		return os.Rename(filepath.Join(w.state(), "journal.db"), w.leases()+"/j")
	},
	"read passwd":                    open(file("/etc/passwd"), os.O_RDONLY),
	"list the root":                  open(file("/"), os.O_RDONLY),
	"open /dev/null":                 open(file("/dev/null"), os.O_RDWR),
	"read sysfs":                     func(world, order) error { _, err := os.ReadDir("/sys/devices"); return err },
	"passwd in a folder that came":   openBeneath("etc/passwd", syscall.O_RDONLY),
	"make a file in one that came":   openBeneath("tmp/vacate-test", syscall.O_RDWR|syscall.O_CREAT),
	"a device in a folder that came": openBeneath("dev/null", syscall.O_RDWR),
	"write to procfs":                open(file("/proc/self/comm"), os.O_WRONLY),
	"read own status":                func(world, order) error { _, err := os.ReadFile("/proc/self/status"); return err },
	"read the swaps":                 func(world, order) error { _, err := os.ReadFile("/proc/swaps"); return err },
	"read the locks":                 func(world, order) error { _, err := os.ReadFile("/proc/locks"); return err },

	// Other processes.
	"parent's memory": func(_ world, o order) error {
		return open(file(fmt.Sprintf("/proc/%d/mem", o.PID)), os.O_RDONLY)(world{}, o)
	},
	"signal the parent": func(_ world, o order) error { return syscall.Kill(o.PID, syscall.SIGURG) },
	"signal everybody":  func(world, order) error { return syscall.Kill(-1, syscall.SIGURG) },
	"signal a thread": func(_ world, o order) error {
		return call6("tgkill", uintptr(o.PID), uintptr(o.PID), uintptr(syscall.SIGURG))
	},
	"be signalled by a file": func(_ world, o order) error { return call6("fcntl", 0, syscall.F_SETOWN, uintptr(o.PID)) },
	"trace the parent":       func(_ world, o order) error { return call6("ptrace", syscall.PTRACE_ATTACH, uintptr(o.PID)) },
	"process_vm_readv":       func(_ world, o order) error { return call6("process_vm_readv", uintptr(o.PID)) },
	"pidfd_getfd":            raw("pidfd_getfd", 3, 0, 0),
	"queue a signal":         func(_ world, o order) error { return call6("rt_sigqueueinfo", uintptr(o.PID), uintptr(syscall.SIGURG)) },

	// Programs.
	"run a program": func(world, order) error { return syscall.Exec("/bin/true", []string{"true"}, nil) },
	"execveat":      raw("execveat", 0, 0, 0, 0, 0),
	"fork":          func(world, order) error { return call6("clone", uintptr(syscall.SIGCHLD)) },
	"clone3":        raw("clone3", 0, 0),
	"start a process": func(world, order) error {
		_, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
		return err
	},
	"map for running": func(world, order) error {
		_, err := syscall.Mmap(-1, 0, 4096, syscall.PROT_READ|syscall.PROT_EXEC, syscall.MAP_PRIVATE|syscall.MAP_ANON)
		return err
	},
	"run what a guest sent": runGuest,
	"make memory run": func(world, order) error {
		b, err := syscall.Mmap(-1, 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
		if err != nil {
			return err
		}
		return syscall.Mprotect(b, syscall.PROT_READ|syscall.PROT_EXEC)
	},

	// Networks.
	"internet socket": raw("socket", syscall.AF_INET, syscall.SOCK_STREAM, 0),
	"netlink socket":  raw("socket", syscall.AF_NETLINK, syscall.SOCK_RAW, 0),
	"unix socket":     raw("socket", syscall.AF_UNIX, syscall.SOCK_STREAM, 0),
	"connect":         raw("connect", 0, 0, 0),
	"datagram socket": raw("socket", syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0),
	"datagram pair": func(world, order) error {
		_, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_RAW, 0) // which is one of datagrams
		return err
	},

	// Rights and limits.
	"become another user": func(world, order) error { return call6("setuid", 65534) },
	"take capabilities":   raw("capset", 0, 0),
	"raise a limit": func(world, order) error {
		core := syscall.Rlimit{Cur: 1 << 20, Max: 1 << 20}
		return call6("prlimit64", 0, syscall.RLIMIT_CORE, uintptr(unsafe.Pointer(&core)), 0)
	},
	"become dumpable": raw("prctl", syscall.PR_SET_DUMPABLE, 1),
	"new namespaces":  raw("unshare", syscall.CLONE_NEWUSER),
	"enter a space":   raw("setns", 0, 0),
	"chroot":          raw("chroot", 0),
	"type for a user": raw("ioctl", 0, syscall.TIOCSTI, 0),

	// The kernel.
	"mount":             raw("mount", 0, 0, 0, 0, 0),
	"fsopen":            raw("fsopen", 0, 0),
	"bpf":               raw("bpf", 0, 0, 0),
	"keyctl":            raw("keyctl", 0, 0, 0),
	"perf_event_open":   raw("perf_event_open", 0, 0, 0, 0, 0),
	"userfaultfd":       raw("userfaultfd", 0),
	"init_module":       raw("init_module", 0, 0, 0),
	"kexec_load":        raw("kexec_load", 0, 0, 0, 0),
	"open_by_handle_at": raw("open_by_handle_at", 0, 0, 0),
	"move_pages":        raw("move_pages", 0, 0, 0, 0, 0, 0),
	"an unknown call":   func(world, order) error { return callNumber(4000) },
	"make a ring":       raw("io_uring_setup", 1, 0),

	// Past seccomp.
	"dial by a ring":           ringDial,
	"read passwd by a ring":    onPath(ringOpenAt, file("/etc/passwd")),
	"remove a drive by a ring": onPath(ringUnlinkAt, world.drive),

	"crash": func(world, order) error { panic("a planted crash") },
	"work":  work,
}

// work is all that both processes do that a sandbox could spoil.
func work(w world, o order) error {
	if err := errors.Join(threads(), clocks(), signals(), memory(), confinedThreads(o.Who)); err != nil {
		return err
	}
	if o.Who == "engine" {
		return errors.Join(useDrive(w), serveSocket())
	}
	return errors.Join(keepState(w), leaseSocket(w))
}

func threads() error {
	var all sync.WaitGroup
	for range 30 {
		all.Go(func() {
			runtime.LockOSThread() // not unlocked: the thread ends
			sys.Urgent()
			time.Sleep(time.Millisecond)
		})
	}
	all.Wait()
	junk := make([][]byte, 0, 1000)
	for range cap(junk) {
		junk = append(junk, make([]byte, 64<<10))
	}
	clear(junk)
	runtime.GC()
	debug.FreeOSMemory()
	return nil
}

// clocks: the zone is read from a file at the first use, which was before.
func clocks() error {
	if name, off := time.Now().Zone(); os.Getenv("TZ") != "" && (off < 3600 || !strings.HasPrefix(name, "CE")) {
		return fmt.Errorf("the time zone is %s, %d s, want that of Berlin", name, off)
	}
	time.Sleep(time.Millisecond)
	return nil
}

func signals() error {
	got := make(chan os.Signal, 1)
	signal.Notify(got, syscall.SIGUSR1)
	defer signal.Stop(got)
	if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
		return err
	}
	select {
	case <-got:
		return nil
	case <-time.After(time.Minute):
		return errors.New("no signal came")
	}
}

func memory() error {
	f, err := sys.Memfd("test", 1<<20)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := sys.MapShared(f, 1<<20)
	if err != nil {
		return err
	}
	b[0] = 1
	return sys.Unmap(b)
}

// confinedThreads looks at each thread, the ones that were there before and new
// ones.
func confinedThreads(who string) error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	own, err := sys.ConfinementOf(0)
	if err != nil {
		return err
	}
	seen := make(map[string]int)
	for _, t := range tasks {
		b, err := os.ReadFile(filepath.Join("/proc/self/task", t.Name(), "status"))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return err
		}
		var lines []string
		for line := range strings.Lines(string(b)) {
			for _, key := range []string{"NoNewPrivs:", "Seccomp:", "CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"} {
				if strings.HasPrefix(line, key) {
					lines = append(lines, strings.Join(strings.Fields(line), ""))
				}
			}
		}
		seen[strings.Join(lines, " ")]++
	}
	if len(seen) != 1 || own.NoNewPrivs != 1 || own.Seccomp != 2 {
		return fmt.Errorf("%s: threads differ: %v", who, slices.Sorted(maps.Keys(seen)))
	}
	return nil
}

func serveSocket() error {
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := holdSession(c.(*net.UnixConn)); err != nil {
		return fmt.Errorf("holding a session: %w", err)
	}
	_, err = c.Write([]byte(strconv.Itoa(os.Getpid())))
	return err
}
