//go:build !planted

package plant

// On tells whether this build can hold planted bugs.
const On = false

// Is reports whether the named bug is alive: never, in this build.
func Is(string) bool { return false }
