package attach

import (
	"context"
	"errors"
	"fmt"

	"vacate/internal/ipc"
	"vacate/internal/lease"
	"vacate/internal/node"
)

// errAbsent is wrapped by what is returned while nobody answers at the devices
// process's socket.
var errAbsent = errors.New("the process `vacate devices` does not run")

// errAgain is wrapped by what passes by itself: an engine that changed between two
// steps, a lease that is being opened or closed.
var errAgain = errors.New("things are changing")

// An absent is why nobody answers. It wraps errAbsent.
type absent struct{ why error } // nil: nobody made the socket, or nobody is left behind it

func (e *absent) Error() string {
	if e.why == nil {
		return errAbsent.Error()
	}
	return errAbsent.Error() + " where it can be reached: " + e.why.Error()
}

func (e *absent) Unwrap() error { return errAbsent }

// instead is what a person does who gets no block device.
const instead = "use the lease's NBD or vhost-user socket instead: see `vacate lease show`"

// shown is err as callers get it: an [*node.Error]. id may be empty.
func shown(err error, id string) error {
	var known *node.Error
	var remote *ipc.RemoteError
	var away *absent
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return known
	case errors.As(err, &away):
		return &node.Error{Kind: node.Unsupported, Object: id, Text: "block devices are not made on this host: " + away.Error(),
			Next: "start the daemon as root, or vacate-devices.service beside it; or " + instead}
	case errors.As(err, &remote):
		return refused(remote, err, id)
	case passes(err):
		return &node.Error{Kind: node.Recovering, Object: id, Text: "the block device is not ready: the daemon is recovering from a restart", Err: err,
			Next: "try again in a moment"}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &node.Error{Kind: node.Unavailable, Object: id, Text: "the block device is not ready in time", Err: err,
			Next: "see `vacate status` and the daemon's log, and try again"}
	}
	return &node.Error{Kind: node.Internal, Object: id, Text: "the block device could not be attached", Err: err, Next: "the daemon's log may say more"}
}

// refused is what devices process or engine answered.
func refused(remote *ipc.RemoteError, err error, id string) error {
	e := &node.Error{Kind: node.Internal, Object: id, Text: err.Error()}
	switch remote.Code {
	case ipc.CodeUnsupported:
		e.Kind, e.Next = node.Unsupported, instead
	case ipc.CodeBusy, ipc.CodeRefused:
		e.Kind = node.Refused
	case ipc.CodeInvalid:
		e.Kind = node.Invalid
	case ipc.CodeNotFound:
		e.Kind, e.Next = node.Unavailable, "see `vacate lease show`, and try again"
	default:
		e.Next = "the log of the daemon may say more"
	}
	return e
}

// inUse is a device that is not taken away because somebody uses it.
func inUse(id string, err error) error {
	return &node.Error{Kind: node.Refused, Object: id, Text: err.Error(), Next: "detach it again when nothing uses it"}
}

// codeOf is the code of what the other side answered, "" where it did not.
func codeOf(err error) string {
	var remote *ipc.RemoteError
	if errors.As(err, &remote) {
		return remote.Code
	}
	return ""
}

func notOpen(l lease.Lease) error {
	return &node.Error{Kind: node.Refused, Object: l.ID, Text: fmt.Sprintf("lease %s is %s: only an open lease has a block device", l.ID, stateText(l)),
		Next: "open another: `vacate lease open --attach`"}
}

func stateText(l lease.Lease) string {
	if mayHave(l.State) {
		return "being closed"
	}
	return string(l.State)
}

// needsNBD refuses a lease that the kernel's NBD driver cannot reach. id may be empty.
func needsNBD(id, why string) error {
	e := &node.Error{Kind: node.Refused, Object: id, Text: "block devices are served over NBD on this host, and the lease has no NBD export",
		Next: "open a lease with --export nbd, too"}
	if why != "" {
		e.Text += " (" + why + ")"
	}
	return e
}

// mayHave reports whether a lease in this state may have a device. One that is being
// opened gets it before anybody is told that it is open.
func mayHave(s lease.State) bool { return s == lease.Opening || s == lease.Open }

// statusText is why no device can be had now, in a line.
func statusText(err error) string {
	if errors.Is(err, errAbsent) {
		return err.Error() + ": start the daemon as root, or vacate-devices.service beside it"
	}
	return err.Error()
}
