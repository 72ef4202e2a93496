// Package sandbox takes from the engine and from control every right that they
// do not need, for ever and in all threads, before they listen to anyone.
//
//	keeper ──starts──> engine   drives beneath drive_dirs; sockets that it is given
//	       └─starts──> control  state folder, folder of the leases' sockets
//
// # What is applied, in this order
//
//  1. no_new_privs: no exec gives a right back.
//  2. Capabilities: all are dropped but what the process needs.
//  3. Landlock: files and folders outside of the list cannot be opened; no
//     network, no signal to others, no foreign socket (those with a path since
//     version 9 only, which leaves io_uring a way before it).
//  4. Seccomp: system calls that nothing here makes do not exist any more, or
//     end the process (filter.go, policy.go).
//
// Steps 1, 3 and 4 need no root. What the kernel lacks is left out, and said in
// the [Report]: the daemon works without, and its status shows it. Anything else
// that goes wrong is an error, on which the process must end: it may be confined
// by half.
//
// Descriptors that are open stay as they are. So what is not to be reached again
// is opened first, and what is to be confined comes after.
//
// Why, and what this does not cover: docs/adr/0009-sandbox.md.
package sandbox

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"vacate/internal/sys"
)

// EngineKeeps and ControlKeeps are the capabilities that the two processes may
// have: urgent threads, and memory beyond the limit for ordinary users; and giving
// a lease's socket to the user who may connect to it. A parent that bounds them
// from the start (sys.Bounded) spares them most of the work here.
var (
	EngineKeeps  = []sys.Capability{sys.CapSysNice, sys.CapIPCLock}
	ControlKeeps = []sys.Capability{sys.CapChown}
)

// DevicesKeeps are those of the process that makes block devices, which nothing else
// here confines: the drivers ask for the first; the second loads them; the third
// tells who has a device open that is to be removed; the others give a device to the
// user who may open it, and reach a lease's socket when that is another user's.
var DevicesKeeps = []sys.Capability{sys.CapSysAdmin, sys.CapSysModule, sys.CapSysPtrace, sys.CapChown, sys.CapFowner, sys.CapDACOverride}

// EngineOptions say what the engine may open besides what every engine may.
type EngineOptions struct {
	Off bool // apply nothing
	// DriveDirs are folders beneath which drives may be opened, for reading and
	// writing. Names in them cannot be changed.
	DriveDirs []string
	// DriveFiles are single files that may be, besides.
	DriveFiles []string
}

// ControlOptions say what control may open besides what every control may.
type ControlOptions struct {
	Off       bool     // apply nothing
	StateDir  string   // journal and lock: files are made, changed and removed
	LeasesDir string   // leases' sockets: folders and sockets are made and removed
	RunDir    string   // its files are listed and removed, and not opened
	Locks     []string // files that are opened to see who holds them
	// LogDir is the folder of the log that is kept here: files and folders are made,
	// changed and removed. Empty: there is none.
	LogDir string
	// Ports are those to which control connects, over TCP: of a log and of witnesses
	// elsewhere, and of who knows their addresses. None: it connects to nobody.
	Ports []uint16
	// AnyFile leaves Landlock out: the state folder is yet to be mounted, and
	// Landlock knows only what is there when it is applied.
	AnyFile bool
}

// A Report says what holds from now on.
type Report struct {
	Off          bool
	Capabilities []sys.Capability // that are left
	Landlock     int              // version of the interface that is in force; 0: none
	Seccomp      bool
	Missing      []string // what should hold and does not, each with the reason
}

// String says what holds and what is missing in one line, for logs and status.
func (r Report) String() string {
	if r.Off {
		return "off"
	}
	caps := "no capabilities"
	if len(r.Capabilities) > 0 {
		caps = "capabilities"
		for _, c := range r.Capabilities {
			caps += " " + c.String()
		}
	}
	on := []string{"no_new_privs", caps}
	if r.Landlock > 0 {
		on = append(on, fmt.Sprintf("landlock %d", r.Landlock))
	}
	if r.Seccomp {
		on = append(on, "seccomp")
	}
	text := strings.Join(on, ", ")
	if len(r.Missing) > 0 {
		text += "; missing: " + strings.Join(r.Missing, "; ")
	}
	return text
}

// Engine confines this process to what the engine does.
func Engine(o EngineOptions) (Report, error) {
	if o.Off {
		return Report{Off: true}, nil
	}
	rules := []rule{{"/proc", readTree}, {"/sys", readTree}}
	for _, dir := range o.DriveDirs {
		rules = append(rules, rule{dir, useDrives})
	}
	for _, file := range o.DriveFiles {
		rules = append(rules, rule{file, useFile})
	}
	return apply("engine", rules, nil, enginePolicy(os.Getpid()), EngineKeeps...)
}

// Control confines this process to what control does. It is called when the
// journal is open, and the folder of the leases' sockets is there.
func Control(o ControlOptions) (Report, error) {
	if o.Off {
		return Report{Off: true}, nil
	}
	rules := []rule{
		{"/proc/self", readTree}, {"/proc/stat", readFiles}, {"/proc/swaps", readFiles}, {"/proc/sys/kernel", readTree},
		{o.StateDir, keepFiles}, {o.LeasesDir, keepNames},
	}
	if o.RunDir != "" {
		rules = append(rules, rule{o.RunDir, listNames})
	}
	for _, path := range o.Locks {
		rules = append(rules, rule{path, useFile})
	}
	if o.LogDir != "" {
		rules = append(rules, rule{o.LogDir, keepTree})
	}
	if len(o.Ports) > 0 {
		rules = append(rules, resolverFiles()...)
	}
	if o.AnyFile {
		rules = nil
	}
	return apply("control", rules, o.Ports, controlPolicy(os.Getpid(), len(o.Ports) > 0), ControlKeeps...)
}

// apply does the four steps, and looks whether they took.
func apply(who string, rules []rule, ports []uint16, p policy, keep ...sys.Capability) (r Report, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("confining %s: %w", who, err)
		}
	}()
	_, _ = time.Now().Zone() // reads /etc/localtime, the first time
	if err := sys.NoNewPrivileges(); err != nil {
		return r, err
	}
	if r.Capabilities, err = sys.KeepCapabilities(keep...); err != nil {
		return r, err
	}
	if rules == nil {
		r.Missing = append(r.Missing, "landlock: left out until the state folder can be used and control is started anew")
	} else if r.Landlock, r.Missing, err = restrict(rules, ports); err != nil {
		return r, err
	}
	why, err := filter(p)
	if err != nil {
		return r, err
	}
	if r.Seccomp = why == ""; !r.Seccomp {
		r.Missing = append(r.Missing, why)
	}
	return r, r.check()
}

// filter installs the seccomp filter; why says why there is none.
func filter(p policy) (why string, err error) {
	m, ok := thisMachine()
	if !ok {
		return "seccomp: there is no table of system calls for " + runtime.GOARCH, nil
	}
	err = sys.InstallFilter(p.compile(m))
	if errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.EINVAL) {
		return fmt.Sprintf("seccomp: this kernel has none (%v)", err), nil
	}
	return "", err
}

// check compares the report with what the kernel says of this process.
func (r Report) check() error {
	c, err := sys.ConfinementOf(0)
	if err != nil {
		return err
	}
	var caps uint64
	for _, k := range r.Capabilities {
		caps |= 1 << k
	}
	const filtered = 2 // SECCOMP_MODE_FILTER
	if c.NoNewPrivs != 1 || c.Effective != caps || c.Held != caps || r.Seccomp && c.Seccomp != filtered {
		return fmt.Errorf("the kernel says that no_new_privs is %d, seccomp %d, capabilities %#x and %#x, which is not what was asked for",
			c.NoNewPrivs, c.Seccomp, c.Effective, c.Held)
	}
	return nil
}
