// Command hunt looks for what must not be found: each hunt drives real daemons
// with a random, replayable mix of work and faults, and fails at the first thing
// that a law forbids.
//
//	go run ./test/hunt NAME [flags]
package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"vacate/test/hunt/power"
	"vacate/test/search"
)

// A hunt runs with its own flags and returns an error for what it found.
type hunt struct {
	name string
	what string
	run  func(args []string) error
}

var hunts = []hunt{
	{"upgrade", "replace the binary under a load that verifies every byte and keeps its connections", upgrade},
	{"kill", "kill engine and control under a load that verifies every byte", kill},
	{"keeper", "kill the keeper: what was open is recorded as lost, its space reads zeros, nothing else changes", keeperHunt},
	{"late-write", "kill engines with writes in flight: none lands after a successor's, or in another lease", lateWrite},
	{"power", "cut the power of a machine with leases open: nothing is left on its disks, and the node says so", power.Run},
	{"spool", "kill control while it signs and logs records: the log has each once, in order, and each lease its certificate", spool},
	{"leak", "live many leases on one small drive: nothing is read that was not written, nothing is left in memory", leak},
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == search.RegistersCommand {
		if err := search.RegistersMain(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "hunt:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 {
		i := slices.IndexFunc(hunts, func(h hunt) bool { return h.name == os.Args[1] })
		if i >= 0 {
			if err := hunts[i].run(os.Args[2:]); err != nil {
				fmt.Fprintf(os.Stderr, "hunt %s: %v\n", hunts[i].name, err)
				os.Exit(1)
			}
			return
		}
	}
	var b strings.Builder
	for _, h := range hunts {
		fmt.Fprintf(&b, "  %-12s %s\n", h.name, h.what)
	}
	fmt.Fprintf(os.Stderr, "usage: hunt NAME [flags]\n\n%s\nhunt NAME -h lists a hunt's flags\n", b.String())
	os.Exit(2)
}
