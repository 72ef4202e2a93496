// Package keyring keeps the keys that sign for a node: the node's own, which
// signs its records, the operator's, which vouches for what concerns the fleet, and
// that of the log which the daemon keeps itself.
//
// Keys are made at the first start. A key is a file of mode 0600 in a folder of
// mode 0700, or lies in a TPM and cannot leave it; then the file names what the
// TPM loads. Wider modes are refused. docs/spec/keyring.md has the bytes.
//
// # Rotation
//
// A record is signed by the key that was current when its number was given: so
// each key knows the first number that is its. Rotation is
//
//  1. [Keyring.Stage]: the new key is written beside the old one.
//  2. A KEYS record that names both is appended to the journal, by the caller.
//  3. [Keyring.Activate] with that record's number: it is signed by both, those
//     before it by the old key, those after it by the new one.
//  4. [Keyring.Settle], when that record is signed: the old key's secret is
//     overwritten and gone; the key stays in the history.
//
// The caller signs nothing between 2 and 3. So a crash there leaves an unsigned
// KEYS record, by which the next start finds out: [Keyring.Staged] says what was
// staged, and the caller activates it, or drops it with [Keyring.Drop] where there
// is no such record. A crash between 3 and 4 only leaves step 4 to be done again.
//
// What a rotation cannot do: files on flash may survive being overwritten. A key
// that must not is to lie in a TPM.
package keyring

import (
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/mod/sumdb/note"

	"vacate/internal/durable"
	"vacate/proof"
)

// A Role says what a key is for.
type Role string

// The roles.
const (
	Node     Role = proof.RoleNode
	Operator Role = proof.RoleOperator
	Log      Role = proof.RoleLog
)

// Where keys lie.
const (
	PlaceFile = "file"
	PlaceTPM  = "tpm"
)

// A TPM makes a key that cannot leave it, and writes what it needs to load it again
// to the file at path; or loads the key, where the file is there.
type TPM func(path string) (crypto.Signer, error)

// Options say which keys there are. Zero is node and operator in files, no log.
type Options struct {
	LogName    string // of the log's key, which is its checkpoints' origin; empty: no such key
	NodeIn     string // PlaceFile or PlaceTPM, for keys that are made from now on
	OperatorIn string
	TPM        TPM  // required where a key lies in the TPM
	LogOnly    bool // the key of a log that is kept by itself, and no other
	Clock      func() time.Time
}

// ErrRotating is returned where a key is being rotated already.
var ErrRotating = errors.New("key is being rotated")

// A Keyring is the keys of one node. Methods may be called from any goroutine.
type Keyring struct {
	dir string
	opt Options

	mu      sync.Mutex
	current map[Role]*key // has Node and Operator, and Log where there is one
	next    map[Role]*key // staged
	retired []retired
}

// Open opens the keys in dir, and makes what is missing. The folder is made with
// mode 0700; its parent has to be there.
func Open(dir string, opt Options) (*Keyring, error) {
	if opt.Clock == nil {
		opt.Clock = time.Now
	}
	k := &Keyring{dir: dir, opt: opt, current: map[Role]*key{}, next: map[Role]*key{}}
	if err := k.folder(); err != nil {
		return nil, err
	}
	if err := k.readHistory(); err != nil {
		return nil, err
	}
	for _, role := range k.roles() {
		if err := k.open(role); err != nil {
			return nil, err
		}
	}
	return k, nil
}

func (k *Keyring) roles() []Role {
	switch {
	case k.opt.LogOnly:
		return []Role{Log}
	case k.opt.LogName == "":
		return []Role{Node, Operator}
	}
	return []Role{Node, Operator, Log}
}

func (k *Keyring) place(role Role) string {
	if role == Node && k.opt.NodeIn == PlaceTPM || role == Operator && k.opt.OperatorIn == PlaceTPM {
		return PlaceTPM
	}
	return PlaceFile
}

// folder makes the folder, or checks that nobody else can reach into it.
func (k *Keyring) folder() error {
	if err := os.Mkdir(k.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making the folder of the keys: %w", err)
	}
	st, err := os.Lstat(k.dir)
	if err != nil {
		return err
	}
	switch sys := st.Sys().(*syscall.Stat_t); {
	case !st.IsDir():
		return fmt.Errorf("%s is in the way of the folder of the keys: move it", k.dir)
	case int(sys.Uid) != os.Geteuid():
		return fmt.Errorf("the folder of the keys, %s, belongs to uid %d, the daemon runs as uid %d: run `chown -R %d %s`",
			k.dir, sys.Uid, os.Geteuid(), os.Geteuid(), k.dir)
	case st.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("the folder of the keys, %s, has mode %#o, others can reach into it: run `chmod 0700 %s`, and rotate the keys",
			k.dir, st.Mode().Perm(), k.dir)
	}
	if err := durable.Sweep(k.dir); err != nil {
		return fmt.Errorf("tidying the folder of the keys: %w", err)
	}
	return nil
}

func fileName(role Role) string { return string(role) + ".key" }
func nextName(role Role) string { return string(role) + ".next" }
func oldName(role Role) string  { return string(role) + ".old" }

// open reads the keys of a role, or makes the first one.
func (k *Keyring) open(role Role) error {
	if err := k.wipe(role); err != nil { // of a rotation that a crash cut off
		return err
	}
	cur, err := readKey(filepath.Join(k.dir, fileName(role)), k.opt.TPM)
	if errors.Is(err, fs.ErrNotExist) {
		cur, err = k.first(role)
	}
	if err != nil {
		return fmt.Errorf("opening the %s key: %w", role, err)
	}
	switch {
	case cur.Role != role:
		return fmt.Errorf("%s holds the key of a %s", filepath.Join(k.dir, fileName(role)), cur.Role)
	case role == Log && cur.Name != k.opt.LogName:
		return fmt.Errorf("the log's key is of %q, and the configuration calls the log %q: a log keeps its name; set proof.origin back, or move the log's folder and %s away to begin a new log",
			cur.Name, k.opt.LogName, filepath.Join(k.dir, fileName(role)))
	}
	k.current[role] = cur
	next, err := readKey(filepath.Join(k.dir, nextName(role)), k.opt.TPM)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening the staged %s key: %w", role, err)
	}
	if next.Public == cur.Public { // cannot be: rename is atomic
		return fmt.Errorf("%s key is staged in the place of itself", role)
	}
	k.next[role] = next
	return nil
}

func (k *Keyring) first(role Role) (*key, error) {
	name := ""
	if role == Log {
		name = k.opt.LogName
	}
	first, err := k.newKey(role, name)
	if err != nil {
		return nil, err
	}
	first.FromSeq = 1
	// The folder's own name: only now, so that no later start waits for the disk.
	if err := durable.SyncDir(filepath.Dir(k.dir)); err != nil {
		return nil, err
	}
	return first, k.write(fileName(role), first.file)
}

// Node is the key that signs records from now on. Node and Operator are not to be
// called where Options has LogOnly.
func (k *Keyring) Node() crypto.Signer { return k.newest(Node) }

// Operator is the operator's key.
func (k *Keyring) Operator() crypto.Signer { return k.newest(Operator) }

func (k *Keyring) newest(role Role) crypto.Signer {
	k.mu.Lock()
	defer k.mu.Unlock()
	if n := k.next[role]; n != nil && n.FromSeq != 0 {
		return n.signer
	}
	return k.current[role].signer
}

// Log is the signer of the log's checkpoints; nil where the keyring has no such key.
func (k *Keyring) Log() note.Signer {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l := k.current[Log]; l != nil {
		return l.noteSigner()
	}
	return nil
}

// Signers are the keys that sign record number seq, in their order: the node's,
// and of the KEYS record by which a key was rotated, both of that key.
func (k *Keyring) Signers(seq uint64) []crypto.Signer {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []crypto.Signer
	for _, role := range []Role{Node, Operator} {
		cur, next := k.current[role], k.next[role]
		staged := next != nil && next.FromSeq != 0
		switch {
		case staged && seq+1 == next.FromSeq:
			out = append(out, cur.signer, next.signer)
		case role == Operator:
		case staged && seq >= next.FromSeq:
			out = append(out, next.signer)
		default:
			out = append(out, cur.signer)
		}
	}
	return out
}
