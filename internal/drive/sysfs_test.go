package drive

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vacate/internal/sys"
)

// fakeHost lays out files ("path" → contents) and links ("path@" → target) under
// a root of its own, as /sys and /proc are.
func fakeHost(t *testing.T, tree map[string]string) host {
	t.Helper()
	h := host{root: t.TempDir(), stat: func(path string) (sys.FileStat, error) {
		var major, minor uint32
		switch n, err := fmt.Sscanf(path, "/dev/fake-%d-%d", &major, &minor); {
		case err == nil && n == 2:
			return sys.FileStat{Type: sys.BlockDevice, Major: major, Minor: minor, Dev: 5, Inode: uint64(major)<<20 | uint64(minor)}, nil
		case strings.HasPrefix(path, "/file/"):
			return sys.FileStat{Type: sys.RegularFile, Dev: 9, Inode: uint64(len(path))}, nil
		}
		return sys.FileStat{}, os.ErrNotExist
	}}
	for name, contents := range tree {
		name, link := strings.CutSuffix(name, "@")
		path := h.path(name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if link {
			err = os.Symlink(contents, path)
		} else {
			err = os.WriteFile(path, []byte(contents), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return h
}

const (
	nvmeDir = "sys/devices/pci0000:00/0000:00:1d.0/0000:02:00.0/nvme/nvme0"
	sataDir = "sys/devices/pci0000:00/0000:00:17.0/ata3/host2/target2:0:0/2:0:0:0"
)

// machine is a host with an NVMe drive, a SATA disk with two partitions (one
// mounted, one a physical volume), a logical volume on it, a virtio disk.
var machine = map[string]string{
	nvmeDir + "/nvme0n1/dev":               "259:0\n",
	nvmeDir + "/nvme0n1/queue/write_cache": "write through\n",
	nvmeDir + "/nvme0n1/device@":           "..",
	nvmeDir + "/nvme0n1/wwid":              "eui.0025385b71b1c1d1\n",
	nvmeDir + "/model":                     "SAMSUNG MZVL21T0HCLR-00B00              \n",
	nvmeDir + "/serial":                    "S676NX0R912345      \n",
	nvmeDir + "/transport":                 "pcie\n",
	"sys/dev/block/259:0@":                 "../../../" + nvmeDir + "/nvme0n1",

	sataDir + "/block/sda/dev":                "8:0\n",
	sataDir + "/block/sda/queue/write_cache":  "write back\n",
	sataDir + "/block/sda/device@":            "../..",
	sataDir + "/block/sda/sda1/dev":           "8:1\n",
	sataDir + "/block/sda/sda1/partition":     "1\n",
	sataDir + "/block/sda/sda2/dev":           "8:2\n",
	sataDir + "/block/sda/sda2/partition":     "2\n",
	sataDir + "/block/sda/sda2/holders/dm-0@": "../../../../../../../../../../virtual/block/dm-0",
	sataDir + "/vendor":                       "ATA     \n",
	sataDir + "/model":                        "INTEL SSDSC2KB48\n",
	sataDir + "/vpd_pg80":                     "\x00\x80\x00\x14  BTYF1234567890AB\n",
	"sys/dev/block/8:0@":                      "../../../" + sataDir + "/block/sda",
	"sys/dev/block/8:1@":                      "../../../" + sataDir + "/block/sda/sda1",
	"sys/dev/block/8:2@":                      "../../../" + sataDir + "/block/sda/sda2",

	"sys/devices/virtual/block/dm-0/dev":               "253:0\n",
	"sys/devices/virtual/block/dm-0/dm/name":           "vg0-root\n",
	"sys/devices/virtual/block/dm-0/dm/uuid":           "LVM-abcdef\n",
	"sys/devices/virtual/block/dm-0/queue/write_cache": "write through\n",
	"sys/dev/block/253:0@":                             "../../devices/virtual/block/dm-0",

	"sys/devices/virtual/block/dm-1/dm/uuid": "CRYPT-LUKS2-abc\n",
	"sys/dev/block/253:1@":                   "../../devices/virtual/block/dm-1",

	"sys/devices/pci0000:00/0000:00:02.0/virtio1/block/vda/serial":            "vol-0123\n",
	"sys/devices/pci0000:00/0000:00:02.0/virtio1/block/vda/queue/write_cache": "write back\n",
	"sys/dev/block/254:0@": "../../devices/pci0000:00/0000:00:02.0/virtio1/block/vda",

	"sys/devices/virtual/block/loop3/loop/backing_file": "/file/backing\n",
	"sys/dev/block/7:3@": "../../devices/virtual/block/loop3",
	"sys/block/loop3@":   "../devices/virtual/block/loop3",

	// A namespace with two paths, one of them over the network.
	"sys/devices/virtual/nvme-subsystem/nvme-subsys1/nvme1n1/device@": "..",
	"sys/devices/virtual/nvme-subsystem/nvme-subsys1/nvme1@":          "../../../nvme1",
	"sys/devices/virtual/nvme-subsystem/nvme-subsys1/nvme2@":          "../../../nvme2",
	"sys/devices/nvme1/transport":                                     "pcie\n",
	"sys/devices/nvme2/transport":                                     "tcp\n",
	"sys/dev/block/259:1@":                                            "../../devices/virtual/nvme-subsystem/nvme-subsys1/nvme1n1",

	"proc/self/mountinfo": `22 27 8:1 / /boot\040files rw,relatime - ext4 /dev/fake-8-1 rw
23 27 0:40 / /srv rw,relatime shared:5 - btrfs /dev/fake-259-0 rw
24 27 0:5 / /dev rw - devtmpfs devtmpfs rw
garbage
25 27 0:6 / /nowhere rw -
`,
	"proc/swaps":         "Filename\t\t\t\tType\t\tSize\tUsed\tPriority\n/dev/fake-254-0 partition 100 0 -2\n/file/swap\\040file file 100 0 -3\n",
	"proc/4711/comm":     "vacate\n",
	"proc/4711/fd/7@":    "/dev/fake-7-3",
	"proc/1/fd/3@":       "/dev/null",
	"proc/locks":         "1: FLOCK  ADVISORY  WRITE 4711 00:05:8388608 0 EOF\n2: POSIX  ADVISORY  WRITE 1 00:05:8388608 0 EOF\n3: FLOCK  ADVISORY  WRITE 4712 00:09:13 0 EOF\nx\n",
	"sys/dev/block/1:1@": "../../devices/gone",
}

func TestHost(t *testing.T) {
	h := fakeHost(t, machine)
	for _, tt := range []struct {
		major, minor                   uint32
		kind, model, serial, transport string
		parts, holders, mounts         []string
		swap                           bool
	}{
		{259, 0, "block device", "SAMSUNG MZVL21T0HCLR-00B00", "S676NX0R912345", "nvme-pcie", nil, nil, []string{"/srv"}, false},
		{8, 0, "block device", "ATA INTEL SSDSC2KB48", "BTYF1234567890AB", "sata", []string{"sda1", "sda2"}, []string{"dm-0 (vg0-root)"}, []string{"/boot files"}, false},
		{8, 1, "partition", "ATA INTEL SSDSC2KB48", "BTYF1234567890AB", "sata", nil, nil, []string{"/boot files"}, false},
		{8, 2, "partition", "ATA INTEL SSDSC2KB48", "BTYF1234567890AB", "sata", nil, []string{"dm-0 (vg0-root)"}, nil, false},
		{253, 0, "logical volume", "", "", "device-mapper", nil, nil, nil, false},
		{253, 1, "device-mapper", "", "", "device-mapper", nil, nil, nil, false},
		{254, 0, "block device", "", "vol-0123", "virtio", nil, nil, nil, true},
		{7, 3, "loop", "", "", "loop", nil, nil, nil, false},
		{259, 1, "block device", "", "", "nvme-tcp", nil, nil, nil, false},
	} {
		dir := h.blockDir(tt.major, tt.minor)
		if dir == "" {
			t.Errorf("%d:%d has no folder", tt.major, tt.minor)
			continue
		}
		model, serial := identity(dir)
		if k := kindOf(dir); k != tt.kind || model != tt.model || serial != tt.serial {
			t.Errorf("%d:%d is %q, %q, %q, want %q, %q, %q", tt.major, tt.minor, k, model, serial, tt.kind, tt.model, tt.serial)
		}
		if tr := h.transport(dir); tr != tt.transport {
			t.Errorf("%d:%d: transport %q, want %q", tt.major, tt.minor, tr, tt.transport)
		}
		var parts []string
		for _, p := range partitions(dir) {
			parts = append(parts, filepath.Base(p))
		}
		if !slices.Equal(parts, tt.parts) {
			t.Errorf("%d:%d: partitions %q, want %q", tt.major, tt.minor, parts, tt.parts)
		}
		if hs := holders(dir); !slices.Equal(hs, tt.holders) {
			t.Errorf("%d:%d: holders %q, want %q", tt.major, tt.minor, hs, tt.holders)
		}
		devs := numbers(dir)
		if len(devs) == 0 { // the fake tree leaves it out where it does not matter
			devs = []string{fmt.Sprintf("%d:%d", tt.major, tt.minor)}
		}
		if ms := h.mounts(devs); !slices.Equal(ms, tt.mounts) {
			t.Errorf("%d:%d: mounts %q, want %q", tt.major, tt.minor, ms, tt.mounts)
		}
		if s := h.isSwap(sys.FileStat{}, devs); s != tt.swap {
			t.Errorf("%d:%d: swap %v, want %v", tt.major, tt.minor, s, tt.swap)
		}
	}
	if dir := h.blockDir(1, 1); dir != "" {
		t.Errorf("a dangling link led to %q", dir)
	}
	swapFile := sys.FileStat{Dev: 9, Inode: uint64(len("/file/swap file"))}
	if !h.isSwap(swapFile, nil) {
		t.Error("a swap file was not recognised")
	}
	backing := sys.FileStat{Dev: 9, Inode: uint64(len("/file/backing"))}
	if l := h.loopsOn(backing); !slices.Equal(l, []string{"loop3"}) {
		t.Errorf("loops on a file: %q", l)
	}
}

func TestHolding(t *testing.T) {
	h := fakeHost(t, machine)
	for path, want := range map[string][]string{
		"/dev/fake-8-0": {"the file system at /boot files", "dm-0 (vg0-root)", "process 4711 (vacate)"},
		"/dev/fake-7-3": {"process 4711 (vacate)"},
		"/file/backing": {"process 4712, which has ended: its I/O may still be in flight"},
		"/dev/missing":  nil,
	} {
		if got := h.holdersOf(path); !slices.Equal(got, want) {
			t.Errorf("%s is held by %q, want %q", path, got, want)
		}
	}
}

func TestClassify(t *testing.T) {
	for _, tt := range []struct {
		name string
		f    flushFacts
		want FlushClass
		why  string
	}{
		{"tmpfs", flushFacts{Kind: "file", FileSystem: "tmpfs"}, FlushNone, "memory"},
		{"ramfs", flushFacts{Kind: "file", FileSystem: "ramfs"}, FlushNone, "memory"},
		{"ext4", flushFacts{Kind: "file", FileSystem: "ext4"}, FlushForward, "ext4"},
		{"ext4, direct", flushFacts{Kind: "file", FileSystem: "ext4", Direct: true}, FlushForward, "ext4"},
		{"nvme without a cache", flushFacts{Kind: "block device", Direct: true, Transport: "nvme-pcie", WriteCache: "write through"}, FlushNone, "no volatile cache"},
		{"its partition", flushFacts{Kind: "partition", Direct: true, Transport: "nvme-pcie", WriteCache: "write through"}, FlushNone, "no volatile cache"},
		{"the same, buffered", flushFacts{Kind: "block device", Transport: "nvme-pcie", WriteCache: "write through"}, FlushForward, "page cache"},
		{"nvme with a cache, watched", flushFacts{Kind: "block device", Direct: true, Transport: "nvme-pcie", WriteCache: "write back", Watching: true}, FlushWatched, "watched for"},
		{"nvme with a cache", flushFacts{Kind: "block device", Direct: true, Transport: "nvme-pcie", WriteCache: "write back", Unwatched: errUnwatched}, FlushForward, "cannot be watched"},
		{"nvme that does not say", flushFacts{Kind: "block device", Direct: true, Transport: "nvme-pcie"}, FlushForward, "does not say"},
		{"nvme over tcp", flushFacts{Kind: "block device", Direct: true, Transport: "nvme-tcp", WriteCache: "write through"}, FlushForward, "nvme-tcp"},
		{"a cloud's network volume", flushFacts{Kind: "block device", Direct: true, Transport: "nvme-pcie", Model: "Amazon Elastic Block Store", WriteCache: "write through"}, FlushForward, "network-attached"},
		{"a cloud's instance storage", flushFacts{Kind: "block device", Direct: true, Transport: "nvme-pcie", Model: "Amazon EC2 NVMe Instance Storage", WriteCache: "write through"}, FlushNone, "local"},
		{"sata", flushFacts{Kind: "block device", Direct: true, Transport: "sata", WriteCache: "write through"}, FlushNone, "SATA"},
		{"sas, watched", flushFacts{Kind: "block device", Direct: true, Transport: "sas", WriteCache: "write back", Watching: true}, FlushWatched, "SAS"},
		{"virtio", flushFacts{Kind: "block device", Direct: true, Transport: "virtio", WriteCache: "write through"}, FlushForward, "virtio"},
		{"iscsi", flushFacts{Kind: "block device", Direct: true, Transport: "iscsi", WriteCache: "write through"}, FlushForward, "iscsi"},
		{"device-mapper", flushFacts{Kind: "logical volume", Direct: true, Transport: "device-mapper", WriteCache: "write through"}, FlushForward, "logical volume"},
		{"loop", flushFacts{Kind: "loop", Direct: true, Transport: "loop", WriteCache: "write through"}, FlushForward, "loop"},
		{"unknown", flushFacts{Kind: "block device", Direct: true, Transport: "unknown", WriteCache: "write through"}, FlushForward, "unknown"},
		{"forced", flushFacts{Kind: "file", FileSystem: "tmpfs", Forced: true}, FlushForward, "danger_zone"},
	} {
		got, why := classify(tt.f)
		if got != tt.want || !strings.Contains(why, tt.why) {
			t.Errorf("%s: %s, %q, want %s and %q", tt.name, got, why, tt.want, tt.why)
		}
	}
}

func TestTransportPaths(t *testing.T) {
	const pci = "/sys/devices/pci0000:00/0000:00:14.0/"
	h := host{}
	for path, want := range map[string]string{
		pci + "usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0/block/sdb":                                    "usb",
		pci + "host0/port-0:0/end_device-0:0/target0:0:0/0:0:0:0/block/sdc":                             "sas",
		pci + "host0/rport-0:0-1/target0:0:0/0:0:0:0/block/sdd":                                         "fibre channel",
		"/sys/devices/platform/host3/session1/target3:0:0/3:0:0:1/block/sde":                            "iscsi",
		pci + "virtio2/host2/target2:0:0/2:0:0:1/block/sdf":                                             "virtio",
		"/sys/devices/LNXSYSTM:00/LNXSYBUS:00/ACPI0012:00/ndbus0/region0/namespace0.0/block/pmem0":      "pmem",
		"/sys/devices/platform/soc/fe340000.mmc/mmc_host/mmc0/mmc0:0001/block/mmcblk0":                  "mmc",
		"/sys/devices/LNXSYSTM:00/LNXSYBUS:00/PNP0A03:00/device:07/VMBUS:01/f8b3781a/host0/0:0:0:0/sda": "hyper-v",
		"/sys/devices/vbd-768/block/xvda":                                                               "xen",
		"/sys/devices/virtual/block/md127":                                                              "MD RAID",
		"/sys/devices/virtual/block/zram0":                                                              "virtual",
		pci + "host9/target9:2:0/9:2:0:0/block/sdg":                                                     "unknown", // a RAID controller
	} {
		if got := h.transport(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}
