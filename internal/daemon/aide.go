package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"vacate/internal/child"
	"vacate/internal/config"
	"vacate/internal/devices"
	"vacate/internal/handoff"
	"vacate/internal/sandbox"
	"vacate/internal/sys"
	"vacate/internal/version"
)

// The process that makes block devices, `vacate devices`, is a child of the
// keeper's process that package keeper knows nothing of: no lease ends with it, and
// it is needed only while a device is made, taken over or removed (docs/adr/0019).
//
//	A1: it runs beside the keeper where that may use CAP_SYS_ADMIN, and device_dir is
//	    not empty. Elsewhere a service of its own may run the same command.
//	A2: it ends, however: another is started, after a while that grows. That is not
//	    put off while the kernel holds a thread of it.
//	A3: the program is replaced: the next one kills what this one has started, and
//	    starts its own. The devices, whose only state is the kernel's, stay.
//	A4: the daemon ends as planned: it gives up the lock of its folder, and sends
//	    SIGTERM. An aide that can have the lock then removes all devices by force;
//	    one to which somebody else sends that signal ends and removes nothing.
//	A5: the daemon is killed: the aide sees it by a pidfd, removes them, and ends.

// aidePath is where the aide finds modprobe(8).
const aidePath = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"

// devicesEnv carries the settings of a process that serve has started.
const devicesEnv = "VACATE_DEVICES_SETTINGS"

// aideName is the aide's name in lists of processes, by which A3 finds it.
const aideName = "vacate-devices"

// deviceSettings is what the aide gets.
type deviceSettings struct {
	Parent int           `json:"parent"` // the keeper's process id
	Config config.Config `json:"config"`
}

// aideDelays say how long is waited for what.
type aideDelays struct {
	first, last time.Duration // until the next is started: doubles from first to last
	settled     time.Duration // a life that was longer than this begins anew with first
	look        time.Duration // between looks whether the kernel holds one that has ended
	remove      time.Duration // how long one may take to remove its devices, and end
	reap        time.Duration // how long SIGKILL may take
}

var aideInService = aideDelays{
	first: 100 * time.Millisecond, last: 10 * time.Second, settled: time.Minute, look: 2 * time.Second,
	remove: 10 * time.Second, reap: 5 * time.Second,
}

// An aide keeps one process for block devices running.
type aide struct {
	aideDelays
	wanted bool // A1
	argv   []string
	env    []string
	rights []sys.Capability // nil: all
	log    *slog.Logger
	stop   chan struct{} // closed: the daemon ends
	done   chan struct{} // closed: no process is left
}

// startAide starts the aide, or nothing where there is to be none; it returns at
// once. With h it first ends the one of the program before this one.
func startAide(cfg config.Config, h *handoff.Handoff, self string, log *slog.Logger) (*aide, error) {
	if h != nil && h.Checking {
		return nil, nil //nolint:nilnil // methods may be called on it
	}
	wanted, err := aideWanted(cfg)
	if err != nil || h == nil && !wanted {
		return nil, err
	}
	env, err := variable(devicesEnv, deviceSettings{Parent: os.Getpid(), Config: cfg})
	if err != nil {
		return nil, err
	}
	a := &aide{aideDelays: aideInService, wanted: wanted, argv: []string{self, "devices"}, env: []string{env, aidePath}, log: log,
		stop: make(chan struct{}), done: make(chan struct{})}
	if !cfg.SandboxOff() {
		a.rights = sandbox.DevicesKeeps
	}
	if wanted {
		sys.ProtectFromOOM() //nolint:errcheck // the keeper does so too, and says it; the aide inherits it
	}
	go a.run(h != nil)
	return a, nil
}

// aideWanted is A1.
func aideWanted(cfg config.Config) (bool, error) {
	if cfg.DeviceDir == "" {
		return false, nil
	}
	c, err := sys.ConfinementOf(0)
	return c.Effective&(1<<sys.CapSysAdmin) != 0, err
}

// end ends the aide, which removes all devices, and waits for it, but not for ever.
// a may be nil. REQUIRES: the lock of the folder for sockets is given up (A4).
func (a *aide) end() {
	if a != nil {
		close(a.stop)
		<-a.done
	}
}

func (a *aide) run(inherited bool) {
	defer close(a.done)
	if inherited {
		a.replace()
	}
	for wait := a.first; a.wanted; wait = min(2*wait, a.last) {
		since := time.Now()
		cmd, err := a.start()
		if err == nil {
			err = a.watch(cmd)
		}
		if time.Since(since) > a.settled {
			wait = a.first
		}
		select {
		case <-a.stop:
			return
		default:
		}
		a.log.Warn("the process that makes block devices has ended, and another is started; devices that are there go on", "error", err, "after", wait)
		select {
		case <-a.stop:
			return
		case <-time.After(wait):
		}
	}
}

func (a *aide) start() (*exec.Cmd, error) {
	program, err := sys.OpenProgram("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer program.Close() //nolint:errcheck // opened by path only
	cmd := child.Command(program, a.argv, a.env)
	cmd.Stdout = os.Stdout
	start := cmd.Start
	if a.rights != nil {
		start = func() error { return sys.Bounded(a.rights, cmd.Start) }
	}
	return cmd, start()
}

// watch returns when cmd has ended, as after A2, or the daemon is to end.
func (a *aide) watch(cmd *exec.Cmd) error {
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		if err == nil {
			err = errors.New("it has ended without an error")
		}
		ended <- err
	}()
	look := time.NewTicker(a.look)
	defer look.Stop()
	for held := false; ; {
		select {
		case err := <-ended:
			return err
		case <-look.C:
			dying := sys.Dying(cmd.Process.Pid)
			if dying && held {
				return fmt.Errorf("process %d has ended, and the kernel still holds it", cmd.Process.Pid)
			}
			held = dying
		case <-a.stop:
			cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
			if !within(a.remove, ended) {
				a.log.Warn("the process that makes block devices does not remove them in time, and is killed", "pid", cmd.Process.Pid)
				cmd.Process.Kill() //nolint:errcheck // likewise
				within(a.reap, ended)
			}
			return nil
		}
	}
}

// replace is A3: it ends what an earlier program of this process has started.
func (a *aide) replace() {
	pids, err := aides(os.Getpid())
	if err != nil {
		a.log.Warn("looking for the process that makes block devices", "error", err)
	}
	for _, pid := range pids {
		p, err := os.FindProcess(pid)
		if err != nil {
			continue // reaped: by the program that comes back, maybe
		}
		ended := make(chan error, 1)
		go func() {
			_, err := p.Wait()
			ended <- err
		}()
		p.Kill() //nolint:errcheck // it may have ended
		if !within(a.reap, ended) {
			a.log.Warn("the kernel still holds the process that made block devices", "pid", pid)
		}
	}
}

func within(d time.Duration, ended <-chan error) bool {
	select {
	case <-ended: //nolint:errcheck // that it has is all that is asked
		return true
	case <-time.After(d):
		return false
	}
}

// aides are the children of a process that make block devices, zombies included.
// They are searched for, and not noted: between the start of a process and a note
// of it this program may be replaced.
func aides(parent int) (pids []int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // it has ended
		}
		// proc_pid_stat(5): the name in parentheses, which may hold such itself; the
		// state; the parent.
		open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
		if open < 0 || end < open {
			return pids, fmt.Errorf("/proc/%d/stat is %q", pid, stat)
		}
		fields := strings.Fields(string(stat[end+1:]))
		if len(fields) < 2 || fields[1] != strconv.Itoa(parent) {
			continue
		}
		if string(stat[open+1:end]) == aideName || secondWord(pid) == "devices" { // it has not come to name itself
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// secondWord is the first argument of a process.
func secondWord(pid int) string {
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) //nolint:errcheck // it has ended
	if words := strings.Split(string(line), "\x00"); len(words) > 1 {
		return words[1]
	}
	return ""
}

// Devices is the process of `vacate devices`: serve's, or, with a configuration of its
// own, a service beside a daemon that has no privileges.
func Devices(load func() (config.Config, error)) error {
	var s deviceSettings
	if _, ok := os.LookupEnv(devicesEnv); ok {
		if err := settings(devicesEnv, &s); err != nil {
			return err
		}
		become(aideName, 3)
	} else if err := devicesAlone(load, &s.Config); err != nil {
		return err
	}
	debug.SetGCPercent(20) // nothing here is in a hurry, and memory is for tenants
	sys.TrimProgram()      //nolint:errcheck // likewise
	// Ctrl-C is for the service: what serve starts has a process group of its own.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	return devices.Run(ctx, devices.Config{
		Socket: s.Config.DevicesSocket(), RunDir: s.Config.RunDir, DeviceDir: s.Config.DeviceDir, Parent: s.Parent,
		Version: version.String(), Log: logger(s.Config.Log, os.Stderr, "devices"),
	})
}

// devicesAlone prepares a service of its own. It may be started before the daemon,
// whose folder for sockets need not be there; its owner is the daemon's user.
func devicesAlone(load func() (config.Config, error), cfg *config.Config) (err error) {
	if *cfg, err = load(); err != nil {
		return err
	}
	if cfg.DeviceDir == "" {
		return &RefusedError{"device_dir is empty, which turns block devices off: set it, or do not start this process"}
	}
	sys.SetName(aideName)          //nolint:errcheck // for people
	signal.Ignore(syscall.SIGPIPE) // a reader of the log that goes away must not end it
	if err := os.MkdirAll(cfg.RunDir, 0o755); err != nil {
		return fmt.Errorf("making the folder for sockets: %w: make it, or name another with run_dir or --dev", err)
	}
	return nil
}
