package drive

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
)

// A FlushClass says what a drive does with a flush. Losing power loses the keys
// too, so a flush that only guards against power loss guards nothing; it may be
// skipped only where every loss of a completed write also ends the lease
// (docs/ARCHITECTURE.md).
type FlushClass string

// The classes.
const (
	// FlushNone: nothing to flush. Memory file systems; local drives with direct
	// I/O and no volatile cache.
	FlushNone FlushClass = "none"
	// FlushWatched: skipped, while whatever may lose a volatile cache (a reset, a
	// reappearance, an unsafe shutdown) is watched for and ends the leases.
	FlushWatched FlushClass = "watched"
	// FlushForward: handed to the kernel, whose errors reach the guest.
	FlushForward FlushClass = "forward"
)

// flushFacts is all that a drive's flush class depends on.
type flushFacts struct {
	Kind       string // as in Info
	FileSystem string // of files
	Direct     bool
	DAX        bool   // a file that is mapped without a page cache
	Transport  string // of block devices, see transport
	Model      string
	WriteCache string // queue/write_cache in sysfs: "write through", "write back"
	Watching   bool   // the loss of its volatile cache is watched for
	Unwatched  error  // why not
	Forced     bool   // danger_zone asks for forward
}

// localTransports are those behind which a drive in this machine is.
var localTransports = map[string]string{"nvme-pcie": "NVMe over PCIe", "sata": "SATA", "sas": "SAS", "pmem": "persistent memory"}

// remoteModels are network-attached volumes that look like local NVMe drives.
var remoteModels = []string{"Amazon Elastic Block Store", "nvme_card-pd", "MSFT NVMe Accelerator", "Virtual_Disk"}

// classify returns a drive's flush class and a sentence for people that says
// why it has it.
func classify(f flushFacts) (FlushClass, string) {
	if f.Forced {
		return FlushForward, "danger_zone asks for it"
	}
	if f.Kind == "file" {
		if f.FileSystem == "tmpfs" || f.FileSystem == "ramfs" {
			return FlushNone, "a file in memory (" + f.FileSystem + "): its contents end with the power, as the keys do"
		}
		if f.DAX {
			return FlushNone, "a file on " + f.FileSystem + " in memory that is mapped as it is (DAX): a write that has completed is on the medium"
		}
		return FlushForward, "a file on " + f.FileSystem + ": only its file system knows when a write is safe from a crash of the host"
	}
	if !f.Direct {
		return FlushForward, "no direct I/O: completed writes may be in the page cache only"
	}
	name, local := localTransports[f.Transport]
	if !local {
		return FlushForward, fmt.Sprintf("%s (%s) may be layered or network-attached: it may lose writes without this host losing power", f.Kind, f.Transport)
	}
	for _, m := range remoteModels {
		if strings.Contains(f.Model, m) {
			return FlushForward, m + " is network-attached: it may lose writes without this host losing power"
		}
	}
	switch f.WriteCache {
	case "write through":
		return FlushNone, "local (" + name + "), direct I/O, no volatile cache"
	case "write back":
		if f.Watching {
			return FlushWatched, "local (" + name + "), direct I/O, volatile cache: its loss is watched for, and ends the leases"
		}
		return FlushForward, fmt.Sprintf("local (%s), direct I/O, volatile cache: %v", name, f.Unwatched)
	}
	return FlushForward, "local (" + name + "), but the kernel does not say whether it has a volatile cache"
}

// pathTransports finds what a device is attached by in its path in /sys/devices.
// The first that matches counts: a USB bridge speaks SCSI, and so on.
var pathTransports = []struct {
	re   *regexp.Regexp
	name string
}{
	{regexp.MustCompile(`/virtual/block/dm-`), "device-mapper"},
	{regexp.MustCompile(`/virtual/block/md`), "MD RAID"},
	{regexp.MustCompile(`/virtual/block/loop`), "loop"},
	{regexp.MustCompile(`/virtual/block/`), "virtual"},
	{regexp.MustCompile(`/virtio[0-9]+/`), "virtio"},
	{regexp.MustCompile(`/usb[0-9]+/`), "usb"},
	{regexp.MustCompile(`/session[0-9]+/`), "iscsi"},
	{regexp.MustCompile(`/rport-`), "fibre channel"},
	{regexp.MustCompile(`/ata[0-9]+/`), "sata"},
	{regexp.MustCompile(`/end_device-`), "sas"},
	{regexp.MustCompile(`/mmc_host/`), "mmc"},
	{regexp.MustCompile(`/VMBUS|/vmbus`), "hyper-v"},
	{regexp.MustCompile(`/vbd-`), "xen"},
	{regexp.MustCompile(`/ndbus[0-9]+/.*/block/pmem`), "pmem"},
}

// transport names what a device is attached by, "unknown" if nothing tells.
// NVMe controllers say it themselves; a namespace with several paths is as
// local as its most distant path.
func (h host) transport(dir string) string {
	disk := diskDir(dir)
	if base := filepath.Base(disk); strings.HasPrefix(base, "nvme") {
		var ts []string
		if t := attr(disk, "device/transport"); t != "" {
			ts = append(ts, t)
		} else if paths, err := filepath.Glob(filepath.Join(disk, "device/nvme*/transport")); err == nil {
			for _, p := range paths {
				ts = append(ts, attr(filepath.Dir(p), "transport"))
			}
		}
		t := "unknown"
		for _, t = range ts {
			if t != "pcie" {
				break
			}
		}
		return "nvme-" + t
	}
	rel := strings.TrimPrefix(disk, h.root)
	for _, p := range pathTransports {
		if p.re.MatchString(rel) {
			return p.name
		}
	}
	return "unknown"
}
