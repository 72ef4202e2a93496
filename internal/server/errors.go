package server

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/node"
)

// Denied is the kind of a call that the caller's role may not make.
const Denied node.Kind = "denied"

// codes are the codes that kinds of error have on the wire.
var codes = map[node.Kind]connect.Code{
	node.Invalid:     connect.CodeInvalidArgument,
	node.NotFound:    connect.CodeNotFound,
	node.Refused:     connect.CodeFailedPrecondition,
	node.Full:        connect.CodeResourceExhausted,
	node.Unavailable: connect.CodeUnavailable,
	node.Recovering:  connect.CodeUnavailable,
	node.Unsupported: connect.CodeUnimplemented,
	node.Internal:    connect.CodeInternal,
	Denied:           connect.CodePermissionDenied,
}

func denied(c caller, procedure string) error {
	article := "an"
	if c.role == Tenant {
		article = "a"
	}
	return &node.Error{Kind: Denied, Object: callName(procedure),
		Text: fmt.Sprintf("uid %d is %s %s here, and %s is not for this role", c.UID, article, c.role, callName(procedure)),
		Next: "ask an operator to do it, or to add the uid to operators in the daemon's configuration"}
}

// noLease is the answer for a lease that is not there, and for one that the
// caller may not see: the two must not differ.
func noLease(id string) error {
	return &node.Error{Kind: node.NotFound, Object: id, Text: fmt.Sprintf("there is no lease %q", id),
		Next: "see `vacate lease list --all` for the leases there are"}
}

// connectError is err with its code, and a Problem for people. An error that is
// a connect.Error already is left alone: it comes from the library.
func connectError(err error) error {
	var ce *connect.Error
	if errors.As(err, &ce) {
		return ce
	}
	e := toError(err)
	code, ok := codes[e.Kind]
	if !ok {
		code = connect.CodeInternal
	}
	out := connect.NewError(code, errors.New(textOf(err, e)))
	detail, derr := connect.NewErrorDetail(&vacatev1.Problem{
		Kind: string(e.Kind), Object: e.Object, Next: e.Next, Findings: findingMessages(e.Findings)})
	if derr != nil {
		panic("server: an error's detail does not marshal: " + derr.Error())
	}
	out.AddDetail(detail)
	return out
}

// textOf is the text of err without what to do next, which has a field of its own.
func textOf(err error, e *node.Error) string {
	if e.Next == "" {
		return err.Error()
	}
	return strings.TrimSuffix(err.Error(), ": "+e.Next)
}

// toError finds out what kind of error err is.
func toError(err error) *node.Error {
	var e *node.Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return &node.Error{Kind: node.Unavailable}
	}
	return &node.Error{Kind: node.Internal, Next: "the daemon's log may say more"}
}
