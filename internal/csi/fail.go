package csi

import (
	"context"
	"errors"
	"io"
	"syscall"

	"connectrpc.com/connect"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"vacate/client"
)

// codeOfKind is the code of a problem that the daemon names, where a call of the
// interface has no other for it.
var codeOfKind = map[string]codes.Code{
	"invalid":     codes.InvalidArgument,
	"not-found":   codes.NotFound,
	"refused":     codes.FailedPrecondition,
	"full":        codes.ResourceExhausted,
	"denied":      codes.PermissionDenied,
	"unavailable": codes.Unavailable,
	"recovering":  codes.Unavailable,
	"unsupported": codes.FailedPrecondition, // of this host: the call is implemented
}

// failure is an error of the daemon, or of a step on this host, as a status. What it
// is about comes first; what to do next comes last.
func failure(about string, err error) error {
	if err == nil {
		return nil
	}
	var known interface{ GRPCStatus() *status.Status }
	if errors.As(err, &known) {
		return err
	}
	text, code := err.Error(), codes.Internal
	var ce *connect.Error
	var gone *client.DialError
	switch {
	case errors.As(err, &gone):
		code, text = codes.Unavailable, gone.Error()
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		code, text = codes.Unavailable, "the daemon's process ended before it had answered"
	case errors.As(err, &ce):
		text = ce.Message()
		if code = codes.Code(ce.Code()); code == codes.Unimplemented && client.ProblemOf(err) == nil {
			code = codes.FailedPrecondition
			text = "the daemon does not know this call: it is older than the driver: " + text
		}
	}
	if p := client.ProblemOf(err); p != nil {
		if c, ok := codeOfKind[p.GetKind()]; ok {
			code = c
		}
		if p.GetNext() != "" {
			text += ": " + p.GetNext()
		}
	}
	return status.Errorf(code, "%s: %s", about, text)
}

// kindOf is what kind of problem the daemon named, or "".
func kindOf(err error) string { return client.ProblemOf(err).GetKind() }

// missing is the error for a field that was not set.
func missing(field string) error {
	return status.Errorf(codes.InvalidArgument, "%s is missing", field)
}

func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}
