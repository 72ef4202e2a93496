package cli

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	vacatev1 "vacate/api/vacate/v1"
)

// This file prints what is to be pasted so that a virtual machine has a lease's
// volume as a disk. Each text stands for itself: it says which lease it is for,
// and what of it is an example. docs/guide has a page for each program.

// vmPrograms are the programs that there is a text for.
var vmPrograms = []string{"qemu", "libvirt", "cloud-hypervisor", "firecracker"}

// vmTexts makes the text for each of them.
var vmTexts = map[string]func(l *vacatev1.Lease, e *vacatev1.Export) string{
	"qemu": qemuText, "libvirt": libvirtText, "cloud-hypervisor": cloudHypervisorText, "firecracker": firecrackerText,
}

// programFlag is the program that --print-config names.
type programFlag struct{ name string }

func (f *programFlag) String() string { return f.name }

func (f *programFlag) Set(s string) error {
	if !slices.Contains(vmPrograms, s) {
		return fmt.Errorf("there is nothing to paste for %q; write %s", s, strings.Join(vmPrograms, ", "))
	}
	f.name = s
	return nil
}

// Type is the word for the value in the help.
func (f *programFlag) Type() string { return "program" }

func (f *programFlag) add(c *cobra.Command) {
	c.Flags().Var(f, "print-config", "print what to paste for a virtual machine: "+strings.Join(vmPrograms, ", "))
	complete(c, "print-config", vmPrograms...)
}

// text is what to paste for l; empty where --print-config was not given.
func (f *programFlag) text(l *vacatev1.Lease) (string, error) {
	if f.name == "" {
		return "", nil
	}
	e := exportOf(l, exportVhostUser)
	switch {
	case e != nil:
		return vmTexts[f.name](l, e), nil
	case l.GetState() != vacatev1.LeaseState_LEASE_STATE_OPEN:
		return "", &ExitError{Code: ExitRefused, Err: fmt.Errorf("lease %s is %s: nothing reaches its volume", l.GetId(), stateName(l.GetState()))}
	}
	return "", &ExitError{Code: ExitRefused, Err: fmt.Errorf("lease %s has no vhost-user export, which is what a virtual machine connects to", l.GetId()),
		Next: "open another with --export vhost-user, or give the virtual machine its NBD URI (docs/guide/tenant.md)"}
}

// head is the comment above a text for a shell. The lines that follow are the
// program's own.
func head(l *vacatev1.Lease, program string, lines ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# For lease %s, %s. %s must run as uid %d or root.\n", l.GetId(), formatSize(l.GetSizeBytes()), program, l.GetUid())
	for _, s := range lines {
		b.WriteString("# " + s + "\n")
	}
	return b.String()
}

// qemuText is a command line of QEMU 5.0 or newer. Without reconnect a session
// lives as long as the virtual machine: the daemon hands it from engine to engine.
// The option has two names, of which neither fits every version.
func qemuText(l *vacatev1.Lease, e *vacatev1.Export) string {
	path := strings.ReplaceAll(e.GetSocket(), ",", ",,") // qemu(1): a comma within a value is doubled
	return head(l, "QEMU",
		"2G of memory is an example: the memory must be shared as it is here, and -m and size= must agree.") +
		"qemu-system-x86_64 -machine q35,accel=kvm:tcg,memory-backend=vacate-memory -m 2G \\\n" +
		"  -object memory-backend-memfd,id=vacate-memory,size=2G,share=on \\\n" +
		"  -chardev " + shellWord("socket,id=vacate-"+l.GetId()+",path="+path) + " \\\n" +
		fmt.Sprintf("  -device vhost-user-blk-pci,chardev=vacate-%s,num-queues=%d\n", l.GetId(), e.GetQueues())
}

// libvirtText is two pieces of a domain's XML. libvirt refuses the elements
// readonly and serial for such a disk: both are the export's to say.
func libvirtText(l *vacatev1.Lease, e *vacatev1.Export) string {
	var path strings.Builder
	xml.EscapeText(&path, []byte(e.GetSocket())) //nolint:errcheck // a Builder takes everything
	return fmt.Sprintf(`<!-- For lease %s, %s. QEMU must run as uid %d or root. -->
<!-- Into <domain>, where there is none yet: the memory must be shared. -->
<memoryBacking>
  <source type='memfd'/>
  <access mode='shared'/>
</memoryBacking>
<!-- Into <devices>; vdb is an example. -->
<disk type='vhostuser' device='disk'>
  <driver name='qemu' type='raw' queues='%d'/>
  <source type='unix' path='%s'>
    <reconnect enabled='yes' timeout='10'/>
  </source>
  <target dev='vdb' bus='virtio'/>
</disk>
`, l.GetId(), formatSize(l.GetSizeBytes()), l.GetUid(), e.GetQueues(), path.String())
}

// cloudHypervisorText is a command line. It wants at least as many processors
// as queues.
func cloudHypervisorText(l *vacatev1.Lease, e *vacatev1.Export) string {
	return head(l, "Cloud Hypervisor",
		"Firmware, processors and memory are examples: the memory must be shared, and there must be a processor for each queue.") +
		fmt.Sprintf("cloud-hypervisor --firmware hypervisor-fw --cpus boot=%d --memory size=2G,shared=on \\\n", e.GetQueues()) +
		"  --disk " + shellWord(fmt.Sprintf("vhost_user=on,socket=%s,num_queues=%d,queue_size=128", e.GetSocket(), e.GetQueues())) + "\n"
}

// firecrackerText is a call of its API, which is to be made before the virtual
// machine is started. It uses one queue.
func firecrackerText(l *vacatev1.Lease, e *vacatev1.Export) string {
	body, err := json.Marshal(struct {
		ID     string `json:"drive_id"`
		Root   bool   `json:"is_root_device"`
		Cache  string `json:"cache_type"` // without it the guest is offered no flush, and each write is one
		Socket string `json:"socket"`
	}{l.GetId(), false, "Writeback", e.GetSocket()})
	if err != nil {
		panic("cli: a drive does not marshal: " + err.Error())
	}
	return head(l, "Firecracker", "Its API's socket is an example. Call it before the machine is started.") +
		"curl --unix-socket /run/firecracker.socket -X PUT http://localhost/drives/" + l.GetId() + " \\\n" +
		"  -H 'Content-Type: application/json' \\\n  -d " + shellQuote(string(body)) + "\n"
}

// shellWord quotes a word for a shell where it must be.
func shellWord(s string) string {
	const safe = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./=,:+@%"
	if strings.Trim(s, safe) == "" && s != "" {
		return s
	}
	return shellQuote(s)
}
