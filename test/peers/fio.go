package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// fio is the device itself: fio's io_uring with registered buffers and files, past
// the page cache, on a raw file that was written in full.
type fio struct {
	pattern string // of --rw
	block   int    // bytes
	depth   int
	fsync   bool // after each write
	bytes   bool // the rate is in bytes, not requests
}

const rawFile = "raw"

// rawOn returns the raw file of that folder, and writes it when it is not there.
func rawOn(dir string, size int64) (string, error) {
	path := filepath.Join(dir, rawFile)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	fmt.Fprintf(os.Stderr, "  writing %s\n", path)
	_, err := runFio("--name=fill", "--filename="+path, "--rw=write", "--bs=1M", "--ioengine=io_uring", "--iodepth=4", "--direct=1",
		fmt.Sprintf("--size=%d", size), "--end_fsync=1", "--refill_buffers")
	return path, err
}

// on returns the measurement on the raw file of a folder, from one of the cores.
func (f fio) on(w *world, dir string, cores *cpuSet) (func(round int) (sample, error), error) {
	path, err := rawOn(dir, w.o.size)
	if err != nil {
		return nil, err
	}
	core := cores.list()[0]
	return func(round int) (sample, error) {
		span := w.o.span
		if round < 0 {
			span /= 4
		}
		args := []string{
			"--name=raw", "--filename=" + path, "--rw=" + f.pattern, fmt.Sprintf("--bs=%d", f.block), fmt.Sprintf("--iodepth=%d", f.depth),
			"--ioengine=io_uring", "--fixedbufs=1", "--registerfiles=1", "--direct=1", fmt.Sprintf("--size=%d", w.o.size), "--time_based",
			fmt.Sprintf("--runtime=%dms", span.Milliseconds()), fmt.Sprintf("--randseed=%d", round+2), fmt.Sprintf("--cpus_allowed=%d", core),
		}
		if f.fsync {
			args = append(args, "--fsync=1")
		}
		got, err := runFio(args...)
		if err != nil {
			return sample{}, err
		}
		if f.bytes {
			got.Rate *= float64(f.block)
		}
		return got, nil
	}, nil
}

// runFio runs one job. The rate is in requests; latencies are complete, from
// submission to completion.
func runFio(args ...string) (sample, error) {
	var out, errs bytes.Buffer
	cmd := exec.Command("fio", append(args, "--output-format=json")...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return sample{}, fmt.Errorf("fio: %w: %s (make test-packages installs it)", err, errs.String())
	}
	return parseFio(out.Bytes())
}

func parseFio(out []byte) (got sample, err error) {
	type direction struct {
		Requests int64   `json:"total_ios"`
		Rate     float64 `json:"iops"`
		Lat      struct {
			Percentile map[string]int64 `json:"percentile"`
		} `json:"clat_ns"`
	}
	var j struct {
		Jobs []struct {
			Error int       `json:"error"`
			Read  direction `json:"read"`
			Write direction `json:"write"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal(out, &j); err != nil {
		return got, fmt.Errorf("fio's result: %w", err)
	}
	if len(j.Jobs) != 1 || j.Jobs[0].Error != 0 {
		return got, fmt.Errorf("fio: jobs %+v: want one without an error", j.Jobs)
	}
	d := j.Jobs[0].Read
	if d.Requests == 0 {
		d = j.Jobs[0].Write
	}
	if d.Requests == 0 {
		return got, fmt.Errorf("fio has done nothing: %+v", j.Jobs)
	}
	got.Rate = d.Rate
	got.P50 = time.Duration(d.Lat.Percentile["50.000000"])
	got.P999 = time.Duration(d.Lat.Percentile["99.900000"])
	return got, nil
}

// openssl measures AES-256-XTS as `openssl speed` does.
func openssl(w *world) func(round int) (sample, error) {
	return func(round int) (sample, error) {
		seconds := max(1, int(w.o.span.Round(time.Second).Seconds()))
		core := strconv.Itoa(w.cores.client.list()[0])
		cmd := exec.Command("taskset", "-c", core, "openssl", "speed", "-mr", "-seconds", strconv.Itoa(seconds),
			"-bytes", strconv.Itoa(cipherBuffer), "-evp", "aes-256-xts")
		out, err := cmd.Output()
		if err != nil {
			return sample{}, fmt.Errorf("openssl speed: %w", err)
		}
		return parseOpenssl(string(out))
	}
}

// parseOpenssl reads +F:25:AES-256-XTS:7600689616.49, bytes a second.
func parseOpenssl(out string) (sample, error) {
	for line := range strings.Lines(out) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) >= 4 && fields[0] == "+F" {
			rate, err := strconv.ParseFloat(fields[len(fields)-1], 64)
			if err == nil && rate > 0 {
				return sample{Rate: rate}, nil
			}
		}
	}
	return sample{}, fmt.Errorf("openssl speed: no result in %q", out)
}
