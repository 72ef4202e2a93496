//go:build planted

package plant

import "os"

// On tells whether this build can hold planted bugs.
const On = true

var alive = os.Getenv(Variable)

// Is reports whether the named bug is alive.
func Is(bug string) bool { return alive == bug }
