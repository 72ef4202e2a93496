//go:build planted

package plant

import (
	"os"
	"slices"
	"strings"
)

// On tells whether this build can hold planted bugs.
const On = true

var alive = strings.Split(os.Getenv(Variable), ",")

// Is reports whether the named bug is alive.
func Is(bug string) bool { return slices.Contains(alive, bug) }
