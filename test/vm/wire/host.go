package wire

import "time"

// Requests for a machine in which the daemon makes block devices of its leases.

// Module is the body of the request "module": a module that the machine carries is
// loaded, if it is not.
type Module struct {
	Name       string `json:"name"`
	Parameters string `json:"parameters"` // rd_nr=2 rd_size=65536
}

// Kill is the body of the request "kill": SIGKILL to a process of the daemon's, by the
// command that it carries out. The reply, a Killed, comes when another process carries
// that out and the daemon is ready.
type Kill struct {
	Command string `json:"command"` // engine, control, devices
}

// Killed is its reply.
type Killed struct {
	Took time.Duration `json:"took"` // from the signal until the daemon was ready again
}

// Device is the body of the request "device": the path of a block device, or of a link
// to one. The reply is a Disk without a serial number, with the path of what the link
// leads to.
type Device struct {
	Path string `json:"path"`
}

// Fill is the body of the requests "fill", which writes a part of a device and flushes
// it, and "check-fill", which reads it from the device. What is in it follows from the
// seed and the place.
type Fill struct {
	Device string `json:"device"`
	Seed   uint64 `json:"seed"`
	Start  int64  `json:"start"` // bytes, as Size a multiple of 4096
	Size   int64  `json:"size"`
	// At is where Start counts from in what the seed gives; 0: the device's first byte.
	// A second device may show a piece of the first.
	At int64 `json:"at"`
}

// Times is the reply to the request "times": the processor time that processes took
// since they began, by their names (vacate-engine, kworker). Of processes that have
// ended there is nothing.
type Times map[string]time.Duration

// Mark is the body of the request "kernel-mark": a line is written to the kernel's log.
type Mark struct {
	Text string `json:"text"`
}

// Left is the reply to the request "left": what belongs to block devices of leases, or
// is left over of them. Paths and names are sorted.
type Left struct {
	Characters []string `json:"characters"` // ublk devices: those of /dev and of sysfs
	Disks      []string `json:"disks"`      // block devices of ublk, and those of nbd that are connected
	Links      []string `json:"links"`      // in /dev/vacate
	Mounts     []string `json:"mounts"`     // SOURCE on FOLDER, of ublk and nbd
	Sockets    []string `json:"sockets"`    // all that is beneath the folder of leases' sockets
	// Descriptors are what the descriptors of the daemon's processes lead to, without
	// the numbers of sockets and pipes, by the command that they carry out.
	Descriptors map[string][]string `json:"descriptors"`
}

// Things are all but the descriptors, for people.
func (l Left) Things() (all []string) {
	for _, kind := range []struct {
		name  string
		these []string
	}{
		{"ublk device", l.Characters}, {"block device", l.Disks}, {"link", l.Links}, {"mount", l.Mounts}, {"socket", l.Sockets},
	} {
		for _, s := range kind.these {
			all = append(all, kind.name+" "+s)
		}
	}
	return all
}
