package translog

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/mod/sumdb/note"
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

// treeStateFile is tessera's: the size and root of the tree.
const treeStateFile = stateDir + "/treeState"

// setBack fails where a folder's tree has less than its checkpoint, or other records,
// which no crash causes: the tree's state is durable before a checkpoint is made
// of it. To go on would be to sign a second history. It also fails where the checkpoint
// is of another key than s.
func setBack(tree string, s note.Signer) error {
	cp, err := os.ReadFile(filepath.Join(tree, layout.CheckpointPath))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a new log
	} else if err != nil {
		return err
	}
	_, published, root, err := head(cp)
	if err != nil {
		return err
	}
	if !signedBy(cp, s) {
		return fmt.Errorf("the log's checkpoint is signed by another key than %s+%08x: bring its key back; a log keeps its key, and a new one begins a new log in another folder",
			s.Name(), s.KeyHash())
	}
	raw, err := os.ReadFile(filepath.Join(tree, treeStateFile))
	if err != nil {
		return fmt.Errorf("the log has published a checkpoint, and its tree's state cannot be read: bring the folder back as it was: %w", err)
	}
	var state struct {
		Size uint64 `json:"size"`
		Root []byte `json:"root"`
	}
	if err := json.Unmarshal(raw, &state); err != nil {
		return fmt.Errorf("reading the state of the log's tree: %w", err)
	}
	if state.Size < published || state.Size == published && base64.StdEncoding.EncodeToString(state.Root) != root {
		return fmt.Errorf("the log has published a checkpoint of %d records, and its tree is another, of %d: the folder was put together from copies; bring it back as it was, or begin a new log with another origin",
			published, state.Size)
	}
	return nil
}

// signedBy tells whether a signed note names a signer's key. It verifies nothing.
func signedBy(cp []byte, s note.Signer) bool {
	_, err := note.Open(cp, note.VerifierList())
	var unverified *note.UnverifiedNoteError
	return errors.As(err, &unverified) && slices.ContainsFunc(unverified.Note.UnverifiedSigs, func(sig note.Signature) bool {
		return sig.Name == s.Name() && sig.Hash == s.KeyHash()
	})
}
