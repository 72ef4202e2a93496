package node

import (
	"fmt"

	"vacate/internal/ipc"
)

// A Kind is what callers branch on.
type Kind string

// The kinds of error.
const (
	Invalid     Kind = "invalid"     // the request makes no sense
	NotFound    Kind = "not-found"   // no such lease or drive
	Refused     Kind = "refused"     // unsafe, or not allowed as things stand
	Full        Kind = "full"        // no space, or a limit was reached
	Unavailable Kind = "unavailable" // try again later
	Recovering  Kind = "recovering"  // try again in a moment: it passes by itself
	Unsupported Kind = "unsupported" // this host cannot do it; the text says what is missing
	Internal    Kind = "internal"    // anything else
)

// An Error is what a person can act on.
type Error struct {
	Kind     Kind
	Object   string // what it is about: a lease's id, a drive's path
	Text     string // what happened
	Next     string // what to do next, or empty
	Findings []ipc.Finding
	Err      error // or nil; its text is not in Text
}

func (e *Error) Error() string {
	s := e.Text
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Next != "" {
		s += ": " + e.Next
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

func invalid(object, format string, args ...any) error {
	return &Error{Kind: Invalid, Object: object, Text: fmt.Sprintf(format, args...)}
}

func noLease(id string) error {
	return &Error{Kind: NotFound, Object: id, Text: fmt.Sprintf("there is no lease %q", id)}
}

// bytesText is a size for people: 7.5 GiB, rounded down, or 4096 bytes.
func bytesText(n int64) string {
	units := []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	if n < 1024 {
		return fmt.Sprintf("%d bytes", n)
	}
	tenths, unit := n*10/1024, 0
	if n > 1<<58 { // n*10 would not fit
		tenths, unit = n/1024/1024*10, 1
	}
	for tenths >= 10240 && unit < len(units)-1 {
		tenths /= 1024
		unit++
	}
	if tenths%10 == 0 {
		return fmt.Sprintf("%d %s", tenths/10, units[unit])
	}
	return fmt.Sprintf("%d.%d %s", tenths/10, tenths%10, units[unit])
}
