//go:build vm

package vm

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"vacate/test/vm/wire"
)

// benchTools are what is measured beside vacate.
func benchTools() []string {
	if os.Getenv("VACATE_BENCH") != "1" {
		return nil
	}
	return []string{"usr/bin/qemu-nbd", "usr/bin/qemu-img"}
}

// The contestants of TestBenchDevices, and what it measures of each.
const (
	onUblk = "Vacate, ublk"
	onNBD  = "Vacate, kernel's nbd"
	onLUKS = "qemu-nbd LUKS, kernel's nbd"

	benchSize   = 32 << 20
	benchRounds = 5 // besides one that does not count
	benchTime   = 5 * time.Second
)

// TestBenchDevices measures random reads of 4 KiB, 32 at once, from devices whose
// drives are the machine's memory: a lease's over ublk, one's over the kernel's nbd
// driver, and that of qemu-nbd with a LUKS image. They are read in turn. It prints what
// it found; figures of one machine are no test.
func TestBenchDevices(t *testing.T) {
	if len(benchTools()) == 0 {
		t.Skip("VACATE_BENCH is not 1")
	}
	must(t, closeHost()) // it may lack the programs
	h := onHost(t, 15*time.Minute, "nbd")
	t.Cleanup(func() { must(t, closeHost()) }) // it has another drive
	h.do("module", wire.Module{Name: "brd", Parameters: "rd_nr=2 rd_size=131072"}, nil)
	h.vacate("drive", "enroll", "/dev/ram0")
	nbd := h.open(benchSize, "--drive", "/dev/ram0")
	h.load([]string{"ublk_drv"})
	ublk := h.open(benchSize, "--drive", "/dev/ram0")
	if nbd = h.show(nbd.ID); nbd.DeviceKind != "nbd" || ublk.DeviceKind != "ublk" {
		t.Fatalf("leases have devices of kinds %q and %q, want nbd and ublk", nbd.DeviceKind, ublk.DeviceKind)
	}
	luks, end := h.luks("/dev/ram1")
	devices := map[string]string{onUblk: ublk.Device, onNBD: nbd.Device, onLUKS: luks}
	order := []string{onUblk, onNBD, onLUKS}
	for _, name := range order {
		h.fio(devices[name], "--rw=write", "--bs=64k", "--iodepth=4", "--end_fsync=1")
	}
	rates, times := map[string][]float64{}, map[string]wire.Times{}
	for round := range benchRounds + 1 {
		for _, name := range order {
			f, took := h.reads(devices[name])
			if round > 0 {
				rates[name], times[name] = append(rates[name], f.IOPS), took
			}
		}
	}
	report(t, order, rates, times)
	end()
	h.vacate("lease", "close", nbd.ID)
	h.vacate("lease", "close", ublk.ID)
	h.clean()
}

// TestBenchDeletes measures how long DeleteVolume takes of volumes that have, or had, a
// device. An emulated machine is some twenty times slower than a real one.
func TestBenchDeletes(t *testing.T) {
	if len(benchTools()) == 0 {
		t.Skip("VACATE_BENCH is not 1")
	}
	eachDriver(t, 10*time.Minute, func(h *host, _ string) {
		const socket = "/run/csi.sock"
		h.do("start", wire.Start{File: socket, Args: []string{"/bin/vacate", "csi", "--endpoint", "unix://" + socket, "--node-id", "node-1"}}, nil)
		ran := h.long(8*time.Minute, sanityPath, "-test.run", "NONE", "-test.bench", "Delete", "-test.benchtime", "100x", "-endpoint", "unix://"+socket)
		if ran.Code != 0 || strings.Count(ran.Stdout, "p99-ms/delete") != 2 {
			h.t.Errorf("exit code %d\n%s", ran.Code, ran.Stderr)
		}
		h.t.Log(ran.Stdout)
		h.do("stop", wire.Stop{File: socket}, nil)
		h.clean()
		h.nothingLeft()
	})
}

// luks makes a LUKS image of a drive, and has qemu-nbd serve it to the kernel.
func (h *host) luks(drive string) (device string, end func()) {
	h.t.Helper()
	const secret, up = "secret,id=s,data=bench", "/sys/block/nbd15/pid"
	device = "/dev/nbd15"
	h.run("qemu-img", "create", "-q", "-f", "luks", "--object", secret, "-o", "key-secret=s,iter-time=10,cipher-alg=aes-256,cipher-mode=xts",
		drive, fmt.Sprint(benchSize))
	h.do("start", wire.Start{File: up, Args: []string{
		"qemu-nbd", "--connect", device, "--socket", "/run/qemu-nbd.sock", "--object", secret,
		"--image-opts", "driver=luks,key-secret=s,file.driver=host_device,file.cache.direct=on,file.aio=native,file.filename=" + drive,
	}}, nil)
	return device, func() {
		h.run("qemu-nbd", "--disconnect", device)
		h.do("stop", wire.Stop{File: up}, nil)
	}
}

// A measured is what fio tells of reads.
type measured struct {
	IOPS    float64 `json:"iops"`
	Ios     int64   `json:"total_ios"`
	Runtime int64   `json:"runtime"` // ms

	busy float64 // per cent of that which fio's own thread worked
}

// fio runs fio on a device, past the page cache.
func (h *host) fio(device string, args ...string) measured {
	h.t.Helper()
	all := append([]string{"fio", "--name=bench", "--filename=" + device, "--direct=1", "--ioengine=libaio",
		"--size=" + fmt.Sprint(benchSize), "--output-format=json"}, args...)
	out := h.run(all...)
	var result struct {
		Jobs []struct {
			Error  int      `json:"error"`
			User   float64  `json:"usr_cpu"`
			System float64  `json:"sys_cpu"`
			Read   measured `json:"read"`
		} `json:"jobs"`
	}
	must(h.t, json.Unmarshal([]byte(out), &result))
	if len(result.Jobs) != 1 || result.Jobs[0].Error != 0 {
		h.t.Fatalf("fio says %s", out)
	}
	job := result.Jobs[0]
	job.Read.busy = job.User + job.System
	return job.Read
}

// reads measures a device, with the processor time that a request took of each process.
func (h *host) reads(device string) (measured, wire.Times) {
	h.t.Helper()
	var before, after wire.Times
	h.do("times", nil, &before)
	f := h.fio(device, "--rw=randread", "--bs=4k", "--iodepth=32", "--time_based", "--norandommap", "--runtime="+fmt.Sprint(int(benchTime.Seconds())))
	if h.do("times", nil, &after); f.Ios == 0 {
		h.t.Fatalf("nothing was read from %s", device)
	}
	took := wire.Times{"fio": time.Duration(f.busy / 100 * float64(f.Runtime) / float64(f.Ios) * 1e6)}
	for name, d := range after {
		if d -= before[name]; d > 0 {
			took[name] = d / time.Duration(f.Ios)
		}
	}
	return f, took
}

// report prints medians, ratios, and where the time went in the last round.
func report(t *testing.T, order []string, rates map[string][]float64, times map[string]wire.Times) {
	t.Helper()
	median := func(name string) float64 {
		s := slices.Sorted(slices.Values(rates[name]))
		return s[len(s)/2]
	}
	var b strings.Builder
	for _, name := range order {
		fmt.Fprintf(&b, "%-28s %7.0f a second (%.0f–%.0f)", name, median(name), slices.Min(rates[name]), slices.Max(rates[name]))
		by := slices.SortedFunc(maps.Keys(times[name]), func(x, y string) int { return int(times[name][y] - times[name][x]) })
		for _, command := range by[:min(4, len(by))] {
			fmt.Fprintf(&b, "; %s %v", command, times[name][command].Round(100*time.Nanosecond))
		}
		b.WriteByte('\n')
	}
	for _, bar := range []struct {
		other string
		want  float64
	}{{onNBD, 1}, {onLUKS, 1.5}} {
		verdict, ratio := "reached", median(onUblk)/median(bar.other)
		if ratio < bar.want {
			verdict = "NOT REACHED"
		}
		fmt.Fprintf(&b, "%s / %s: %.2f, bar %.2f: %s\n", onUblk, bar.other, ratio, bar.want, verdict)
	}
	t.Logf("random reads of 4 KiB, 32 at once; medians of %d rounds in turn; processor time a request, by process\n%s", benchRounds, b.String())
}
