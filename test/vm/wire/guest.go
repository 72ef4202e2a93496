package wire

import "time"

// Requests for what a guest does with a disk of its own. None needs the daemon
// in the machine.

// A Disk is the body of the request "disk", with its serial number alone, and of
// the reply: the disk that has it, as the guest's kernel shows it in sysfs.
type Disk struct {
	Serial     string `json:"serial"`
	Path       string `json:"path"` // of its device node
	Size       int64  `json:"size"` // bytes
	Logical    int    `json:"logical"`
	Physical   int    `json:"physical"`
	ReadOnly   bool   `json:"readOnly"`
	Discard    int64  `json:"discard"` // bytes at once; 0: it takes none
	Zeroes     int64  `json:"zeroes"`  // bytes at once; 0: it takes none
	WriteCache string `json:"writeCache"`
	Queues     int    `json:"queues"`
	Owner      uint32 `json:"owner"` // its node's, as the next, of "device" only
	Mode       uint32 `json:"mode"`
	// FromEnd is the size in bytes that the kernel told when it was asked for the
	// end of the device itself.
	FromEnd int64 `json:"fromEnd"`
}

// Exec is the body of the request "exec", any program of the machine; the reply
// is a Ran.
type Exec struct {
	Args    []string      `json:"args"`
	Stdin   string        `json:"stdin"`
	Timeout time.Duration `json:"timeout"` // 0: two minutes
}

// Start is the body of the request "start": a program runs until it is stopped. The
// reply comes when a file is there, which the program makes.
type Start struct {
	Args []string `json:"args"`
	File string   `json:"file"`
}

// Stop is the body of the request "stop": SIGTERM to the program that was started to
// make this file. The reply, a Ran, comes when it has ended.
type Stop struct {
	File string `json:"file"`
}

// Attach is the body of the requests "attach", which mounts a file system, and
// "detach", which needs only the folder.
type Attach struct {
	Device string `json:"device"`
	Dir    string `json:"dir"`
	Kind   string `json:"kind"` // ext4, xfs
}

// Tree is the body of the requests "tree", which writes files, "check-tree", which
// reads them back from the disk, and "remove-tree". What is in them follows from
// the seed. The reply of the first two is a Tally.
type Tree struct {
	Dir   string `json:"dir"`
	Seed  uint64 `json:"seed"`
	Files int    `json:"files"`
	Max   int    `json:"max"` // bytes of the longest file
}

// Tally says how much was done.
type Tally struct {
	Files int   `json:"files"`
	Bytes int64 `json:"bytes"`
}

// Stress is the body of the requests "stress", which goes on until "stress-stop"
// or the machine's end, and "stress-check". Workers each own a part of a device.
// In its round n a worker writes every sector of its part with a canary of version
// n, in pieces of any number of sectors and in any order, and compares what it
// reads in between. Before a round it sends the event "round".
type Stress struct {
	Device  string `json:"device"`
	Hunt    uint64 `json:"hunt"`
	First   int64  `json:"first"` // sector of 512 bytes at which the parts begin
	Workers int    `json:"workers"`
	Sectors int64  `json:"sectors"` // of each worker's part
	// Rounds are for "stress-check": the last that each worker has begun, 0 if
	// none. A sector may be of that round, the one before, or the one after, whose
	// event the machine's end can have cut off; no sector may be anything else.
	Rounds []uint32 `json:"rounds,omitempty"`
}

// Stressed is the reply to "stress-stop", whose workers stop within their rounds.
type Stressed struct {
	Reads   int64         `json:"reads"`
	Writes  int64         `json:"writes"`
	Rounds  []uint32      `json:"rounds"`
	Longest time.Duration `json:"longest"` // that a request took
}

// Round is the body of the event "round". The event "wrong" (with a LeaseEvent's
// Text) says what a worker found or could not do, which ends it.
type Round struct {
	Worker int    `json:"worker"`
	Round  uint32 `json:"round"`
}

// Range is the body of the request "zeros": bytes of a device, which must read
// zeros.
type Range struct {
	Device string `json:"device"`
	Start  int64  `json:"start"`
	Size   int64  `json:"size"`
}

// Kexec is the body of the request "kexec": the machine starts another kernel
// without its firmware, and sends "up" again. The file systems must be detached.
type Kexec struct {
	Kernel      string `json:"kernel"`
	Initramfs   string `json:"initramfs"`
	CommandLine string `json:"commandLine"`
}
