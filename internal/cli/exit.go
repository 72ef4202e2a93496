package cli

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"

	"connectrpc.com/connect"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/internal/config"
)

// The exit codes, which scripts branch on. They are part of the interface.
const (
	ExitOK       = 0 // done
	ExitFailed   = 1 // failed: no space, no daemon, an error of the system
	ExitUsage    = 2 // wrong usage, or a request or configuration that makes no sense
	ExitNotFound = 3 // no such lease or drive
	ExitRefused  = 4 // unsafe or not allowed
	ExitVerify   = 5 // a verification failed: what should hold does not
)

// An ExitError is an error with its exit code, and what to do next. Hooks may
// return one.
type ExitError struct {
	Code int    // one of the exit codes
	Next string // may be empty
	Err  error
}

func (e *ExitError) Error() string { return e.Err.Error() }
func (e *ExitError) Unwrap() error { return e.Err }

func usageErrorf(format string, args ...any) error {
	return &ExitError{Code: ExitUsage, Err: fmt.Errorf(format, args...)}
}

// exitCode is the exit code of an error.
func exitCode(err error) int {
	var ee *ExitError
	var coded interface{ CommandExit() int } // of hooks; not exec.ExitError, whose code is another program's
	var faults config.Faults
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &ee):
		return ee.Code
	case errors.As(err, &coded):
		return coded.CommandExit()
	case errors.As(err, &faults):
		return ExitUsage
	}
	var ce *connect.Error
	if errors.As(err, &ce) {
		switch ce.Code() {
		case connect.CodeInvalidArgument:
			return ExitUsage
		case connect.CodeNotFound:
			return ExitNotFound
		case connect.CodeFailedPrecondition, connect.CodePermissionDenied:
			return ExitRefused
		}
	}
	return ExitFailed
}

// A report is an error as it is printed.
type report struct {
	Kind     string        `json:"kind"`
	Object   string        `json:"object,omitempty"`
	Message  string        `json:"message"`
	Next     string        `json:"next,omitempty"`
	ExitCode int           `json:"exitCode"`
	Findings []findingView `json:"findings,omitempty"`
}

var kindOfCode = map[int]string{ExitFailed: "failed", ExitUsage: "usage", ExitNotFound: "not-found", ExitRefused: "refused", ExitVerify: "verification"}

// reportOf says what is known about an error.
func reportOf(err error) report {
	r := report{Message: err.Error(), ExitCode: exitCode(err)}
	r.Kind = kindOfCode[r.ExitCode]
	var ce *connect.Error
	if errors.As(err, &ce) {
		r.Message = strings.Replace(r.Message, ce.Error(), ce.Message(), 1) // without the code in front
	}
	var de *client.DialError
	if errors.As(err, &de) {
		r.Kind, r.Object, r.Message, r.Next = "no-daemon", de.Socket, de.Error(), dialHint(de)
	}
	if cutOff(err) {
		r.Kind, r.Message, r.Next = "unavailable", "the daemon ended before it had answered", "see whether it has stopped or is back: `vacate status`"
	}
	var ee *ExitError
	if errors.As(err, &ee) && ee.Next != "" {
		r.Next = ee.Next
	}
	if p := client.ProblemOf(err); p != nil {
		r.fill(p)
	}
	return r
}

// cutOff tells whether err is a connection that the daemon's end cut off.
func cutOff(err error) bool {
	var ce *connect.Error
	if !errors.As(err, &ce) || client.ProblemOf(err) != nil {
		return false // not a call, or answered
	}
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

func (r *report) fill(p *vacatev1.Problem) {
	r.Kind, r.Object = p.GetKind(), p.GetObject()
	if p.GetNext() != "" {
		r.Next = p.GetNext()
	}
	r.Findings = findingViews(p.GetFindings())
}

// rest is the message without the lines that repeat a finding.
func (r *report) rest() string {
	lines := strings.Split(r.Message, "\n")
	kept := slices.DeleteFunc(slices.Clone(lines), func(line string) bool {
		return slices.ContainsFunc(r.Findings, func(f findingView) bool { return strings.TrimSpace(line) == f.Text })
	})
	if len(kept) == 1 && len(lines) > 1 {
		return strings.TrimSuffix(kept[0], ":")
	}
	return strings.Join(kept, "\n")
}

// printError writes an error for people, or as JSON for programs that asked for it.
func (a *app) printError(w io.Writer, err error) {
	r := reportOf(err)
	if a.format == formatJSON || a.format == formatYAML {
		if encode(w, a.format, map[string]report{"error": r}) == nil {
			return
		}
	}
	p := a.paint(w)
	for _, f := range r.Findings {
		printFinding(w, p, f)
	}
	fmt.Fprintf(w, "%s %s\n", p.red("error:"), r.rest())
	if r.Next != "" {
		fmt.Fprintf(w, "%s %s\n", p.dim("next:"), r.Next)
	}
}
