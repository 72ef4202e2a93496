package engine

import (
	"fmt"

	"vacate/internal/ipc"
)

func invalid(format string, args ...any) error {
	return &ipc.RemoteError{Code: ipc.CodeInvalid, Text: fmt.Sprintf(format, args...)}
}

func notFound(format string, args ...any) error {
	return &ipc.RemoteError{Code: ipc.CodeNotFound, Text: fmt.Sprintf(format, args...)}
}

func busy(format string, args ...any) error {
	return &ipc.RemoteError{Code: ipc.CodeBusy, Text: fmt.Sprintf(format, args...)}
}
