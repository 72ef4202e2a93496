package main

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"vacate/test/vm/wire"
)

// tick is what the kernel counts processor time in (USER_HZ).
const tick = 10 * time.Millisecond

// times reads the processor time of all processes (proc_pid_stat(5)).
func times() (wire.Times, error) {
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	t := wire.Times{}
	for _, dir := range all {
		stat := readLine(filepath.Join(dir, "stat"))
		open, end := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
		if open < 0 || end < open {
			continue // it has ended
		}
		const user, system = 11, 12 // counted from the state on
		f := strings.Fields(stat[end+1:])
		if len(f) <= system {
			return nil, fmt.Errorf("%s/stat is %q", dir, stat)
		}
		u, err := strconv.ParseInt(f[user], 10, 64)
		if err != nil {
			return nil, err
		}
		s, err := strconv.ParseInt(f[system], 10, 64)
		if err != nil {
			return nil, err
		}
		name := stat[open+1 : end]
		if strings.HasPrefix(name, "kworker") {
			name = "kworker"
		}
		t[name] += time.Duration(u+s) * tick
	}
	return t, nil
}
