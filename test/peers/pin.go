package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// A cpuSet has a bit for each processor.
type cpuSet [16]uint64

func (s *cpuSet) add(cpu int) { s[cpu/64] |= 1 << (cpu % 64) }

// list returns the processors of s.
func (s *cpuSet) list() (cpus []int) {
	for cpu := range len(s) * 64 {
		if s[cpu/64]>>(cpu%64)&1 == 1 {
			cpus = append(cpus, cpu)
		}
	}
	return cpus
}

// cores says where a row's processes run.
type cores struct {
	all            cpuSet
	server, client cpuSet // one core each; the same one on a machine that has but one
}

// findCores shares out the cores this process may use: servers get the first,
// clients the second.
func findCores() (cores, error) {
	var c cores
	if _, _, errno := syscall.RawSyscall(syscall.SYS_SCHED_GETAFFINITY, 0, unsafe.Sizeof(c.all), uintptr(unsafe.Pointer(&c.all))); errno != 0 {
		return c, fmt.Errorf("asking for the cores to run on: %w", errno)
	}
	cpus := c.all.list()
	c.server.add(cpus[0])
	c.client.add(cpus[min(1, len(cpus)-1)])
	return c, nil
}

// setAffinity binds a thread (0: the caller's) to cpus.
func setAffinity(tid int, cpus *cpuSet) error {
	_, _, errno := syscall.RawSyscall(syscall.SYS_SCHED_SETAFFINITY, uintptr(tid), unsafe.Sizeof(*cpus), uintptr(unsafe.Pointer(cpus)))
	if errno != 0 {
		return fmt.Errorf("binding thread %d to cores %v: %w", tid, cpus.list(), errno)
	}
	return nil
}

// pinProcess binds all threads of a process, and so those that they will start.
func pinProcess(pid int, cpus *cpuSet) error {
	for range 2 { // the second time catches what was started meanwhile
		tids, err := threads(pid)
		if err != nil {
			return err
		}
		for _, tid := range tids {
			if err := setAffinity(tid, cpus); err != nil && !errors.Is(err, syscall.ESRCH) {
				return err
			}
		}
	}
	return nil
}

// onThread runs f on a thread that is bound to cpus. The thread does not end with
// it: some peers (nbdkit) ask the kernel to end them with their parent, which is
// the thread that started them, whatever else it has done since.
func (c *cores) onThread(cpus *cpuSet, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := setAffinity(0, cpus)
		if err == nil {
			err = errors.Join(f(), setAffinity(0, &c.all))
		}
		done <- err
	}()
	return <-done
}

func threads(pid int) ([]int, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil, err
	}
	tids := make([]int, 0, len(entries))
	for _, e := range entries {
		tid, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, err
		}
		tids = append(tids, tid)
	}
	return tids, nil
}

// cpuTime returns the nanoseconds that each thread of a process has run. With a
// tick of 4 ms what getrusage tells of a thread would be too coarse; this is exact.
func cpuTime(pid int) (map[int]int64, error) {
	tids, err := threads(pid)
	if err != nil {
		return nil, err
	}
	all := make(map[int]int64, len(tids))
	for _, tid := range tids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/schedstat", pid, tid))
		if err != nil {
			continue // it has ended
		}
		var ns int64
		if _, err := fmt.Sscan(string(b), &ns); err != nil {
			return nil, fmt.Errorf("schedstat of thread %d: %w", tid, err)
		}
		all[tid] = ns
	}
	return all, nil
}

// cpuSince returns what a process has run since before, in nanoseconds. What a
// thread ran that ended meanwhile is not in it: measure while connections are open.
func cpuSince(pid int, before map[int]int64) (int64, error) {
	after, err := cpuTime(pid)
	sum := int64(0)
	for tid, ns := range after {
		sum += ns - before[tid]
	}
	return sum, err
}

// quiet is how much of the machine others may use while it is measured on.
const quiet = 0.05

// elsewhere tells what part of the processors is in use while we do nothing.
func elsewhere() float64 {
	idle := func() (idle, all int64) {
		b, _ := os.ReadFile("/proc/stat") //nolint:errcheck // it then tells nothing, as below
		line, _, _ := strings.Cut(string(b), "\n")
		for i, field := range strings.Fields(line) {
			n, err := strconv.ParseInt(field, 10, 64)
			if err != nil || i > 8 { // its name; guests' time is in user time
				continue
			}
			if all += n; i == 4 || i == 5 { // idle, and waiting for I/O
				idle += n
			}
		}
		return idle, all
	}
	idle0, all0 := idle()
	time.Sleep(300 * time.Millisecond)
	idle1, all1 := idle()
	if all1 <= all0 {
		return 0
	}
	return 1 - float64(idle1-idle0)/float64(all1-all0)
}
