package vm

import (
	"fmt"
	"path/filepath"
	"slices"

	"vacate/test/vm/wire"
)

// A Config says what a machine is made of.
type Config struct {
	Kernel    Kernel // none: the machine's firmware starts what is on its first drive
	Initramfs string // as [Initramfs] makes it
	Drives    []Drive
	Dir       string // for sockets and the console's log; short enough for a socket's path
	// Processors of the guest; 0: one. One thread emulates them all: with more,
	// QEMU's emulation of memory between them is less than the real thing.
	Processors int
	// MemoryMiB is what the machine has; 0: 512.
	MemoryMiB int
	// Resets: the machine goes on where it is reset, or resets itself, and is Up
	// anew. Without, it ends.
	Resets bool
	// Event is called for each event of the guest, one after another, and for the
	// last ones while Wait waits.
	Event func(wire.Message)
}

// A Drive is behind a server on a unix socket. The machine knows one over NBD as
// /dev/NAME, one over vhost-user by the serial number that its server tells.
//
// An emulated NVMe drive promises to honour FUA (a write that is durable when it
// is answered), and forgets the flag: its writes reach the server without it. So
// what needs durable writes from a file system is on virtio-blk, which promises
// only flushes.
type Drive struct {
	Name   string
	Socket string
	Bus    Bus
	Queues int // of VhostUser; 0: as many as processors
}

// A Bus is how the machine reaches a drive.
type Bus string

// The buses. QEMU speaks NBD to the servers of the first two.
const (
	NVMe      Bus = "nvme"
	Virtio    Bus = "virtio-blk-pci"
	VhostUser Bus = "vhost-user-blk-pci"
)

// memory is what the machine has, in MiB.
func (c Config) memory() int {
	if c.MemoryMiB == 0 {
		return 512
	}
	return c.MemoryMiB
}

// processor is what is emulated. QEMU 7.2 leaves nonsense in the flags register
// after cmpxchg16b, of which Linux dies within seconds; and five-level page tables
// are of no use here.
const processor = "max,la57=off,cx16=off"

// CommandLine is the kernel's. The machine ends, or begins anew, when its kernel
// fails. The self-tests of algorithms take half a second, and the test whether the
// timer ticks fails on a busy host.
const CommandLine = "console=ttyS0 quiet panic=-1 oops=panic mitigations=off random.trust_cpu=on apparmor=0 cryptomgr.notests no_timer_check"

// args is QEMU's command line.
func (c Config) args(console, link, monitor string) []string {
	a := []string{
		"-accel", "tcg,thread=single", "-cpu", processor, "-smp", fmt.Sprint(max(c.Processors, 1)),
		"-m", fmt.Sprint(c.memory()), "-nodefaults", "-no-user-config", "-display", "none",
		"-serial", "file:" + console, "-qmp", "unix:" + monitor + ",server=on,wait=off",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=link,path=" + link,
		"-device", "virtserialport,chardev=link,name=" + wire.PortName,
	}
	if !c.Resets {
		a = append(a, "-no-reboot")
	}
	if c.Kernel.Image != "" {
		a = append(a, "-kernel", c.Kernel.Image, "-initrd", c.Initramfs, "-append", CommandLine)
	}
	machine := "pc"
	if slices.ContainsFunc(c.Drives, func(d Drive) bool { return d.Bus == VhostUser }) {
		machine += ",memory-backend=shared" // the server maps the guest's memory
		a = append(a, "-object", fmt.Sprintf("memory-backend-memfd,id=shared,size=%dM,share=on", c.memory()))
	}
	a = append(a, "-machine", machine)
	for i, d := range c.Drives {
		if d.Bus == VhostUser {
			queues := d.Queues
			if queues == 0 {
				queues = max(c.Processors, 1)
			}
			a = append(a, "-chardev", fmt.Sprintf("socket,id=%s,path=%s", d.Name, d.Socket),
				"-device", fmt.Sprintf("%s,chardev=%s,num-queues=%d,bootindex=%d", d.Bus, d.Name, queues, i+1))
			continue
		}
		a = append(a,
			"-blockdev", fmt.Sprintf("driver=nbd,node-name=%s,server.type=unix,server.path=%s", d.Name, d.Socket),
			"-device", fmt.Sprintf("%s,drive=%s,serial=%s%s", d.Bus, d.Name, wire.SerialPrefix, d.Name))
	}
	return a
}

// The paths of what belongs to a machine while it runs.
func (c Config) console() string { return filepath.Join(c.Dir, "console.log") }
func (c Config) link() string    { return filepath.Join(c.Dir, "link.sock") }
func (c Config) monitor() string { return filepath.Join(c.Dir, "monitor.sock") }
