package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"vacate/internal/ipc"
	"vacate/internal/sandbox"
)

// confine takes from this process what an engine does not need. It comes before
// anything is read that others wrote.
func confine(s Settings, log *slog.Logger) (sandbox.Report, error) {
	report, err := sandbox.Engine(s.Sandbox)
	if err == nil {
		log.Info("confined", "sandbox", report.String())
	}
	return report, err
}

// barred explains an error about a drive that this process has no right to open.
// Other errors are returned as they are.
func barred(o sandbox.EngineOptions, path string, err error) error {
	if !errors.Is(err, fs.ErrPermission) || o.Off {
		return err
	}
	real, dirs := resolved(path), o.DriveDirs
	if beneath(real, append(dirs[:len(dirs):len(dirs)], o.DriveFiles...)) {
		return fmt.Errorf("%w: its owner must be uid %d, or its mode must let that user read and write it: the engine overrides no permissions", err, os.Geteuid())
	}
	return fmt.Errorf("%w: %s is not beneath a folder of drive_dirs (%s): add %s to drive_dirs in its configuration, then run `vacate upgrade`; leases stay open",
		err, real, strings.Join(dirs, ", "), filepath.Dir(real))
}

// refused is err for control where it came before anything was written: a drive
// that must not be opened is not the engine's failure.
func refused(err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return &ipc.RemoteError{Code: ipc.CodeRefused, Text: err.Error()}
}

// resolved is path without symbolic links, as far as that can be found out.
func resolved(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

// beneath reports whether path is one of these, or lies below it.
func beneath(path string, all []string) bool {
	for _, dir := range all {
		rel, err := filepath.Rel(resolved(dir), path)
		if err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
			return true
		}
	}
	return false
}
