package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"vacate/proof"
)

// These bound what is read from a file that somebody was sent.
const (
	maxDocument     = 64 * proof.MaxBundle
	maxCertificates = 1024 * proof.MaxBundle // of all leases that a node can hold at once, one after the other
)

// readFile reads a document; "-" is standard input.
func (a *app) readFile(path string, limit int64) ([]byte, error) {
	r := a.in
	if path != "-" {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, &ExitError{Code: ExitNotFound, Err: fmt.Errorf("there is no file %s", path), Next: "check its name and folder; - is standard input"}
		}
		if err != nil {
			return nil, err
		}
		defer f.Close() //nolint:errcheck // it was only read
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if errors.Is(err, syscall.EISDIR) {
		return nil, usageErrorf("%s is a folder: name a file in it", path)
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if int64(len(b)) > limit {
		return nil, usageErrorf("%s is larger than %s, and no such document is", path, formatSize(limit))
	}
	return b, nil
}

// An output is where a document goes: a file of this user's, or standard output.
type output struct {
	path    string // empty: the command's default; "-": standard output
	force   bool
	replace string // how to have a file replaced, for hints
}

func (o *output) add(c *cobra.Command, what string) {
	o.replace = ", or add --force to replace it"
	c.Flags().StringVar(&o.path, "out", "", what+"; - is standard output")
	c.Flags().BoolVar(&o.force, "force", false, "replace the file, if it is there and holds something else")
}

// free fails where write would refuse: it is asked before what cannot be undone, or
// not be done twice.
func (o *output) free() error {
	if o.path == "-" || o.path == "" {
		return nil
	}
	switch _, err := os.Lstat(o.path); {
	case err == nil && !o.force:
		return &ExitError{Code: ExitRefused, Err: fmt.Errorf("%s is there already; nothing was done", o.path), Next: "name another file" + o.replace}
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	dir := filepath.Dir(o.path)
	const writable = 2 // W_OK of access(2)
	if err := syscall.Access(dir, writable); err != nil {
		return noFolder(dir, err)
	}
	return nil
}

// noFolder is said where no file can be made.
func noFolder(dir string, err error) error {
	return &ExitError{Code: ExitFailed, Err: fmt.Errorf("no file can be made in %s: %w", dir, err), Next: "name a folder that is there and that you can write to"}
}

// write puts a document there, whole or not at all. A file is for its owner
// alone: certificates and receipts are confidential. One that holds something
// else is left alone.
func (a *app) write(o output, b []byte) error {
	if o.path == "-" {
		_, err := a.out.Write(b)
		return err
	}
	old, err := os.ReadFile(o.path)
	switch {
	case err == nil && bytes.Equal(old, b):
		return nil
	case err == nil && !o.force:
		return &ExitError{Code: ExitRefused, Err: fmt.Errorf("%s is there, and holds something else", o.path),
			Next: "name another file" + o.replace}
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(o.path), ".vacate-") // 0600
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		return noFolder(filepath.Dir(o.path), pe.Err) // the temporary name tells nobody anything
	}
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), o.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", o.path, err), os.Remove(f.Name()))
	}
	return nil
}

// A policyFlag is the file that a verifier trusts.
type policyFlag struct{ path string }

func (p *policyFlag) add(c *cobra.Command) {
	c.Flags().StringVar(&p.path, "policy", "", "file with the keys that you trust, as `vacate policy export` wrote it before the lease (default $VACATE_POLICY)")
}

// read is the policy's bytes and meaning.
func (p *policyFlag) read(a *app) ([]byte, *proof.Policy, error) {
	path := p.path
	if path == "" {
		path = a.getenv("VACATE_POLICY")
	}
	if path == "" {
		return nil, nil, &ExitError{Code: ExitUsage, Err: errors.New("whom to trust is missing: write --policy FILE"),
			Next: "the operator gives it to you before the lease: `vacate policy export`"}
	}
	b, err := a.readFile(path, maxDocument)
	if err != nil {
		return nil, nil, err
	}
	policy, err := proof.ParsePolicy(b)
	if err != nil {
		return nil, nil, &ExitError{Code: ExitUsage, Err: fmt.Errorf("%s: %w", path, err), Next: "get it from the operator anew; do not edit it"}
	}
	return b, policy, nil
}

// fileView tells of a document that was written.
type fileView struct {
	File      string `json:"file"`
	SizeBytes int    `json:"sizeBytes"`
}

// wrote tells where a document is, unless it went to standard output.
func (a *app) wrote(o output, what string, b []byte, v any) error {
	switch {
	case o.path == "-":
		return nil
	case a.format != formatTable:
		return encode(a.out, a.format, v)
	}
	_, err := fmt.Fprintf(a.out, "%s  %s, %s\n", printable(o.path), what, formatSize(int64(len(b))))
	return err
}

// fetch gets a document from the daemon and writes it.
func (a *app) fetch(ctx context.Context, o output, what string, get func(ctx context.Context) ([]byte, error)) error {
	b, err := get(ctx)
	if err != nil {
		return err
	}
	if err := a.write(o, b); err != nil {
		return err
	}
	return a.wrote(o, what, b, fileView{File: o.path, SizeBytes: len(b)})
}
