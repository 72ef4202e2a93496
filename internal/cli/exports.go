package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	vacatev1 "vacate/api/vacate/v1"
)

// The kinds of export, as the API names them.
const (
	exportNBD       = "nbd"
	exportVhostUser = "vhost-user"
)

// exportFlags are the flags that say how a lease's volume is to be reached.
type exportFlags struct {
	kinds    []string
	queues   uint32
	readOnly bool
}

func (f *exportFlags) add(c *cobra.Command) {
	c.Flags().StringSliceVar(&f.kinds, "export", nil, "how the volume is reached: nbd, vhost-user (virtual machines), or both (default nbd)")
	c.Flags().Uint32Var(&f.queues, "queues", 0, "virtqueues of the vhost-user export, 1 to 64 (default: one for each processor, at most 8)")
	c.Flags().Lookup("queues").DefValue = "" // the help says it already
	c.Flags().BoolVar(&f.readOnly, "read-only", false, "the vhost-user export refuses writes")
	complete(c, "export", exportNBD, exportVhostUser)
	complete(c, "queues")
}

// set puts the flags into req. What they may be, the daemon says; but 0 queues,
// which to it is no wish, are a mistake when somebody has typed them.
func (f *exportFlags) set(c *cobra.Command, req *vacatev1.LeaseServiceOpenRequest) error {
	if c.Flags().Changed("queues") && f.queues == 0 {
		return usageErrorf("--queues 0: a virtual machine needs at least one")
	}
	req.Exports, req.Queues, req.ReadOnly = f.kinds, f.queues, f.readOnly
	return nil
}

// exportOf is a lease's export of a kind, or nil.
func exportOf(l *vacatev1.Lease, kind string) *vacatev1.Export {
	i := slices.IndexFunc(l.GetExports(), func(e *vacatev1.Export) bool { return e.GetKind() == kind })
	if i < 0 {
		return nil
	}
	return l.GetExports()[i]
}

// exportText is where an export is, and what it has, for people.
func exportText(e *vacatev1.Export) string {
	if e.GetKind() != exportVhostUser {
		return e.GetUri()
	}
	parts := []string{e.GetSocket(), fmt.Sprintf("%d queues", e.GetQueues())}
	if e.GetQueues() == 1 {
		parts[1] = "1 queue"
	}
	if e.GetReadOnly() {
		parts = append(parts, "read-only")
	}
	return strings.Join(parts, ", ")
}

// queuesText says what a virtual machine has made of its queues; empty where
// there is nothing to say.
func queuesText(s *vacatev1.LeaseStats) string {
	var parts []string
	if n := s.GetQueues(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d in use", n))
	}
	if n := s.GetBrokenQueues(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d given up because of what the guest put into them", n))
	}
	if n := s.GetExpelled(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d machines disconnected because of what they sent", n))
	}
	return strings.Join(parts, ", ")
}

// tryText is what a person may do with an open lease, a command a line.
func tryText(l *vacatev1.Lease) []string {
	var lines []string
	for _, e := range l.GetExports() {
		switch e.GetKind() {
		case exportNBD:
			lines = append(lines, "nbdinfo "+shellQuote(e.GetUri()))
		case exportVhostUser:
			lines = append(lines, "vacate lease show "+l.GetId()+" --print-config qemu")
		}
	}
	if l.GetDevice() != "" {
		lines = append([]string{"mkfs.ext4 " + l.GetDevice()}, lines...)
	}
	if len(lines) == 0 {
		return nil
	}
	return append(lines, "vacate lease close "+l.GetId())
}
