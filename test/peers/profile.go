package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// The stages of a request in the engine, as a profile tells them apart.
const (
	stageTotal   = "all of it"
	stageReceive = "kernel: receiving"
	stageSend    = "kernel: sending"
	stageCopy    = "kernel: copying"
	stageWake    = "kernel: waking the client"
	stageSwitch  = "kernel: changing tasks"
	stageDrive   = "kernel: the drive"
	stageFault   = "kernel: page faults"
	stageKernel  = "kernel: all else"
	stageNBD     = "NBD export"
	stageVolume  = "volume"
	stageMap     = "block map"
	stageCrypt   = "crypt"
	stageFetch   = "fetching the drive's memory"
	stageCipher  = "AES-XTS"
	stageEngine  = "drive engine"
	stageWipe    = "wiping buffers"
	stageRuntime = "Go's runtime"
)

var stages = []string{
	stageTotal, stageReceive, stageSend, stageCopy, stageWake, stageSwitch, stageNBD, stageVolume, stageMap, stageCrypt,
	stageFetch, stageCipher, stageEngine, stageDrive, stageFault, stageWipe, stageRuntime, stageKernel,
}

// kernelStages tell a kernel's stack by a function on it, the first that fits.
var kernelStages = []struct{ function, stage string }{
	{"try_to_wake_up", stageWake}, {"__wake_up", stageWake},
	{"__schedule", stageSwitch}, {"schedule", stageSwitch},
	{"_copy_from_iter", stageCopy}, {"_copy_to_iter", stageCopy}, {"copy_page_from_iter", stageCopy}, {"copy_page_to_iter", stageCopy},
	{"io_uring_enter", stageDrive}, {"pread", stageDrive}, {"pwrite", stageDrive},
	{"exc_page_fault", stageFault}, {"do_user_addr_fault", stageFault}, {"do_mem_abort", stageFault},
	{"sys_send", stageSend}, {"sys_recv", stageReceive}, {"sys_read", stageReceive}, {"sys_write", stageSend},
	{"poll", stageSwitch},
}

// userStages tell the engine's own stack by its innermost function that fits.
var userStages = []struct{ function, stage string }{
	{"vacate/internal/crypt.touch", stageFetch},
	{"vacate/internal/mem.Wipe", stageWipe}, {"runtime.memclrNoHeapPointers", stageWipe},
	{"vacate/internal/xts.", stageCipher},
	{"vacate/internal/crypt.", stageCrypt},
	{"vacate/internal/blockmap.", stageMap},
	{"vacate/internal/volume.", stageVolume},
	{"vacate/internal/drive.", stageEngine}, {"vacate/internal/uring.", stageEngine},
	{"vacate/internal/export/nbd.", stageNBD},
}

// A frame is one function on a stack.
type frame struct {
	kernel   bool
	function string
}

// stageOf tells the stage of a stack, innermost frame first.
func stageOf(stack []frame) string {
	if len(stack) == 0 {
		return stageRuntime
	}
	if stack[0].kernel {
		for _, k := range kernelStages {
			for _, f := range stack {
				if f.kernel && strings.Contains(f.function, k.function) {
					return k.stage
				}
			}
		}
		return stageKernel
	}
	for _, f := range stack {
		for _, u := range userStages {
			if strings.HasPrefix(f.function, u.function) {
				return u.stage
			}
		}
	}
	return stageRuntime
}

// parseStacks counts the stages of what `perf script -F ip,sym` prints: a line a
// frame, "address function", and a blank line behind each stack.
func parseStacks(script []byte) (counts map[string]int, total int) {
	counts = make(map[string]int)
	var stack []frame
	end := func() {
		if len(stack) > 0 {
			counts[stageOf(stack)]++
			total++
		}
		stack = stack[:0]
	}
	lines := bufio.NewScanner(bytes.NewReader(script))
	for lines.Scan() {
		address, function, ok := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		if !ok {
			end()
			continue
		}
		// A kernel's addresses lie in the upper half of the address space.
		stack = append(stack, frame{kernel: len(address) == 16 && address[0] >= '8', function: function})
	}
	end()
	return counts, total
}

// profiled returns a contestant for each stage of a job on a server: nanoseconds of
// processor time a request. A round measures the time a request takes, and then,
// under the profiler, what part of it each stage has.
func profiled(w *world, s *server, j job) []contestant {
	var parts map[string]float64
	all := make([]contestant, len(stages))
	for i, stage := range stages {
		all[i] = contestant{name: stage, measure: func(round int) (sample, error) {
			if i > 0 {
				return sample{Rate: parts[stage]}, nil
			}
			plain, err := j.on(w, s)(round)
			if err != nil {
				return sample{}, err
			}
			parts, err = shares(w, s, j, round)
			for name := range parts {
				parts[name] *= plain.CPU
			}
			return sample{Rate: plain.CPU}, err
		}}
	}
	return all
}

// shares profiles a server under a job, and returns the part of each stage.
func shares(w *world, s *server, j job, round int) (map[string]float64, error) {
	file := filepath.Join(w.dir, "perf.data")
	span := max(w.o.span-200*time.Millisecond, w.o.span/2)
	record := exec.Command("perf", "record", "-q", "-F", "2999", "-g", "-p", fmt.Sprint(s.pid), "-o", file, "--", "sleep", fmt.Sprint(span.Seconds()))
	record.Stderr = os.Stderr
	if err := record.Start(); err != nil {
		return nil, fmt.Errorf("profiling: %w (make test-packages installs perf)", err)
	}
	_, loadErr := j.on(w, s)(max(round, 0))
	if err := errors.Join(record.Wait(), loadErr); err != nil {
		return nil, fmt.Errorf("profiling: %w", err)
	}
	out, err := exec.Command("perf", "script", "-i", file, "-F", "ip,sym").Output()
	if err != nil {
		return nil, fmt.Errorf("reading the profile: %w", err)
	}
	counts, total := parseStacks(out)
	if total == 0 {
		return nil, errors.New("the profile is empty: may this user profile? (kernel.perf_event_paranoid)")
	}
	parts := make(map[string]float64)
	for stage, n := range counts {
		parts[stage] = float64(n) / float64(total)
	}
	return parts, nil
}
