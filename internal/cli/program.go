package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"vacate/internal/version"
)

// programAt asks the program at path, which a daemon named, for its version.
//
// Whoever answers on a socket could name anything, and an operator may be root. So
// only a program is run that root or this user owns and nobody else can change,
// and the one that was looked at is the one that is run.
func programAt(ctx context.Context, path string) programView {
	v := programView{Path: path}
	if path == "" {
		v.Error = "the daemon does not know where its program lies"
		return v
	}
	info, err := askProgram(ctx, path)
	if err != nil {
		v.Error = err.Error()
		return v
	}
	v.Version = info.Version
	if info.Commit != "" {
		v.Version += " " + info.Commit[:min(len(info.Commit), 12)]
	}
	return v
}

func askProgram(ctx context.Context, path string) (info version.Info, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return info, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	st, err := f.Stat()
	if err != nil {
		return info, err
	}
	owner := st.Sys().(*syscall.Stat_t).Uid
	if !st.Mode().IsRegular() || owner != 0 && int(owner) != os.Geteuid() || st.Mode().Perm()&0o022 != 0 {
		return info, fmt.Errorf("it is not run: others than root and you can change it (%v of uid %d)", st.Mode(), owner)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/fd/3", "version", "-o", "json")
	cmd.ExtraFiles = []*os.File{f}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &errs, time.Second
	if err := cmd.Run(); err != nil {
		return info, errors.New(strings.TrimSuffix(fmt.Sprintf("running it: %v: %s", err, firstLine(errs.String())), ": "))
	}
	if err := json.Unmarshal(out.Bytes(), &info); err != nil || info.Version == "" {
		return info, errors.New("what it prints as its version is none: " + firstLine(out.String()))
	}
	return info, nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line[:min(len(line), 200)]
}
