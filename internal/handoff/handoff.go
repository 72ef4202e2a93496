// Package handoff is how one program hands a running process over to the next,
// by exec: a file in memory says which descriptor and which child is what. Its
// form is docs/spec/handoff.md.
//
//	old program                                     new program
//	Note.Write, Check  ──run aside, on a copy──>    Inherited: Checking
//	Note.Exec          ──exec, same process───>     Inherited
//	Inherited: Failed  <──exec, same process───     Handoff.Return
package handoff

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"vacate/internal/sys"
)

// Variables that say how a process was started.
const (
	fileEnv   = "VACATE_HANDOFF"        // the hand-off's descriptor
	checkEnv  = "VACATE_HANDOFF_CHECK"  // only say whether this program could take over
	failedEnv = "VACATE_HANDOFF_FAILED" // why the next program gave everything back
)

// Check is the environment of a child that only says whether it could take over
// what the file with descriptor fd describes: this process's, but for what ties
// it to its service manager.
func Check(fd int) []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "NOTIFY_SOCKET=") || strings.HasPrefix(v, "WATCHDOG_")
	})
	return append(env, fileEnv+"="+strconv.Itoa(fd), checkEnv+"=1")
}

// Exec runs program in place of this one; it takes over what n describes. It
// returns only with an error; then nothing has changed.
func (n *Note) Exec(program *os.File, args, env []string) error {
	f, err := n.Write()
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // in memory
	return n.exec(f, program, args, env)
}

func (n *Note) exec(own, program *os.File, args, env []string) error {
	fd, err := sys.Descriptor(own)
	if err != nil {
		return err
	}
	keep, err := n.descriptors()
	if err != nil {
		return err
	}
	return sys.Exec(program, args, append(env, fileEnv+"="+strconv.Itoa(fd)), append(keep, fd))
}

// Write writes n to a new file in memory.
func (n *Note) Write() (*os.File, error) {
	n.Version = version
	b, err := json.Marshal(n)
	if err != nil {
		return nil, fmt.Errorf("writing the hand-off: %w", err)
	}
	f, err := sys.Memfd("vacate-handoff", int64(len(b)))
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// A Handoff is what an earlier program of this process left to this one.
type Handoff struct {
	Note
	Checking bool   // only Keys and Table are there, and are not to be changed
	Failed   string // why what this program had handed over came back; else empty

	own *os.File
}

// Inherited returns the hand-off that this process was started with, or nil. It
// is called once. All files of the Note are open, and closed on exec.
func Inherited() (*Handoff, error) {
	text, ok := os.LookupEnv(fileEnv)
	if !ok {
		return nil, nil //nolint:nilnil // there is none, and that is no error
	}
	h := &Handoff{Failed: os.Getenv(failedEnv), Checking: os.Getenv(checkEnv) != ""}
	for _, v := range []string{fileEnv, failedEnv, checkEnv} { // not for children
		os.Unsetenv(v) //nolint:errcheck // the names are valid
	}
	fd, err := strconv.Atoi(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", fileEnv, err)
	}
	if h.own, err = sys.Adopt(fd, "hand-off"); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.NewSectionReader(h.own, 0, maxSize))
	if err == nil {
		err = h.decode(b, h.Checking)
	}
	if err == nil {
		err = h.adopt(h.Checking)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the hand-off: %w", err)
	}
	return h, nil
}

// Return gives everything back to the program that handed it over, because this
// one, for the given reason, cannot go on. It returns only with an error; h may
// be nil.
func (h *Handoff) Return(reason error) error {
	if h == nil || h.Failed != "" || h.Checking {
		return reason // this is that program, or nothing was given
	}
	return errors.Join(reason, h.exec(h.own, h.Old.File, os.Args, append(os.Environ(), failedEnv+"="+reason.Error())))
}

// Done forgets the program that handed over: there is no way back.
func (h *Handoff) Done() error { return errors.Join(h.Old.Close(), h.own.Close()) }

// Strict decodes b, one JSON value without unknown fields, into v.
func Strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}
