package control

import (
	"bytes"
	"fmt"
	"os"
	"strings"
)

// hostWarnings says what about this host deserves a look although the daemon
// works: keys and buffers are locked and left out of dumps, so neither swap nor
// a core that is piped to a program gets them. Other processes of the tenants
// may be less careful.
func hostWarnings() []string {
	var out []string
	if b, err := os.ReadFile("/proc/swaps"); err == nil {
		if n := bytes.Count(b, []byte("\n")) - 1; n > 0 { // the first line is the head
			out = append(out, fmt.Sprintf("%d swap areas are in use: keys and buffers are locked and never reach them, the memory of other programs may", n))
		}
	}
	if b, err := os.ReadFile("/proc/sys/kernel/core_pattern"); err == nil && strings.HasPrefix(string(b), "|") {
		out = append(out, fmt.Sprintf("core dumps are piped to %s: the daemon's processes are not dumpable, guests' may be", strings.Fields(string(b))[0][1:]))
	}
	return out
}
