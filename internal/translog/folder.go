package translog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// treeDir is where tessera keeps the log below [Config.Dir].
const treeDir = "tree"

// A Folder reads the folder of a log, also while another process writes to it.
// Its methods may be called from any goroutine.
type Folder struct{ tiles }

// OpenFolder returns the log in dir ([Config.Dir]).
func OpenFolder(dir string) (*Folder, error) {
	f := &Folder{tiles{fetch: files(filepath.Join(dir, treeDir))}}
	if _, err := f.Checkpoint(context.Background()); err != nil {
		return nil, fmt.Errorf("opening the log in %s: %w", dir, err)
	}
	return f, nil
}

// files fetches from a folder.
func files(dir string) func(context.Context, string, int64) ([]byte, error) {
	return func(ctx context.Context, path string, limit int64) ([]byte, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		f, err := os.Open(filepath.Join(dir, path))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: %w", path, ErrNotFound)
		} else if err != nil {
			return nil, err
		}
		defer f.Close()
		return bounded(f, path, limit)
	}
}

// bounded reads all of r, or fails where it is longer than limit.
func bounded(r io.Reader, what string, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", what, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("reading %s: longer than %d bytes", what, limit)
	}
	return b, nil
}
