package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"vacate/internal/lease"
	"vacate/internal/sys"
)

const (
	socketPathMax = 107 // bytes, without the final NUL; unix(7)
	socketBacklog = 128
	folderMode    = 0o711 // others can reach a socket whose name they know, and list nothing
)

// kinds are those that a lease can have a socket for.
var kinds = []string{lease.NBD, lease.VhostUser}

// socketName is the name of the socket for a kind of export in a lease's folder.
func socketName(kind string) string { return kind + ".sock" }

// Folders makes leases' sockets: ROOT/ID/nbd.sock and ROOT/ID/vhost-user.sock. It
// implements [Sockets].
//
// All names are resolved against the descriptor of ROOT, which os.Root holds, so
// that no symbolic link leads out of it; and nothing is ever removed but a
// lease's sockets and then its folder, which must be empty.
type Folders struct {
	path string
	root *os.Root
}

// NewFolders opens the folder in which leases' folders are made, or makes it.
// It refuses a path so long that a client could not connect to an NBD socket in
// it, and a folder that others may change.
func NewFolders(path string) (*Folders, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	longest := len(filepath.Join(path, "0123456789abcdef", socketName(lease.NBD)))
	if longest > socketPathMax {
		return nil, &Error{Kind: Invalid, Object: path,
			Text: fmt.Sprintf("the sockets of leases in %s would have paths of %d bytes, unix sockets have at most %d", path, longest, socketPathMax),
			Next: fmt.Sprintf("choose a folder whose path is %d bytes shorter", longest-socketPathMax)}
	}
	if err := os.Mkdir(path, folderMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("making the folder of leases' sockets: %w", err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("opening the folder of leases' sockets: %w", err)
	}
	if st := info.Sys().(*syscall.Stat_t); !info.IsDir() || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return nil, &Error{Kind: Refused, Object: path,
			Text: fmt.Sprintf("%s is %v of uid %d: others could put sockets of theirs in the place of leases'", path, info.Mode(), st.Uid),
			Next: fmt.Sprintf("remove it, the daemon makes it as uid %d with mode 0711", os.Geteuid())}
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("opening the folder of leases' sockets: %w", err)
	}
	if err := root.Chmod(".", folderMode); err != nil { // the umask may have taken bits
		return nil, errors.Join(fmt.Errorf("opening the folder of leases' sockets: %w", err), root.Close())
	}
	return &Folders{path: path, root: root}, nil
}

// Close gives up the folder. Sockets stay.
func (f *Folders) Close() error { return f.root.Close() }

// Path implements [Sockets].
func (f *Folders) Path(id, kind string) string { return filepath.Join(f.path, id, socketName(kind)) }

// reachable says which of the exports no client could connect to, because the
// path of its socket would be too long.
func (n *Node) reachable(x lease.Exports) error {
	for _, kind := range x.Kinds() {
		path := n.cfg.Sockets.Path("0123456789abcdef", kind)
		if over := len(path) - socketPathMax; over > 0 {
			return &Error{Kind: Refused, Object: path,
				Text: fmt.Sprintf("a lease's %s socket would have a path of %d bytes, unix sockets have at most %d", kind, len(path), socketPathMax),
				Next: fmt.Sprintf("choose a run_dir (or a folder for --dev) whose path is %d bytes shorter", over)}
		}
	}
	return nil
}

// Make implements [Sockets].
func (f *Folders) Make(id string, uid uint32, kinds ...string) ([]*os.File, error) {
	if !lease.ValidID(id) {
		return nil, fmt.Errorf("node: %q is no lease id", id)
	}
	all, err := f.make(id, uid, kinds)
	if err == nil {
		return all, nil
	}
	if errors.Is(err, fs.ErrPermission) && int(uid) != os.Geteuid() {
		err = &Error{Kind: Refused, Object: fmt.Sprint(uid), Err: err,
			Text: fmt.Sprintf("a daemon that runs as uid %d cannot hand a socket to uid %d", os.Geteuid(), uid),
			Next: fmt.Sprintf("open the lease for uid %d, or run the daemon as root", os.Geteuid())}
	}
	return nil, errors.Join(fmt.Errorf("making the sockets of lease %s: %w", id, err), closeAll(all), f.Remove(id))
}

// make returns the listeners that it made, also with an error.
func (f *Folders) make(id string, uid uint32, kinds []string) (all []*os.File, err error) {
	if err := f.Remove(id); err != nil { // ids are random: only what was cut off can be there
		return nil, err
	}
	if err := f.root.Mkdir(id, folderMode); err != nil {
		return nil, err
	}
	if err := f.root.Chmod(id, folderMode); err != nil {
		return nil, err
	}
	dir, err := f.root.Open(id)
	if err != nil {
		return nil, err
	}
	defer dir.Close() //nolint:errcheck // it was only read
	for _, kind := range kinds {
		l, err := sys.ListenAt(dir, socketName(kind), uid, socketBacklog)
		if err != nil {
			return all, err
		}
		all = append(all, l)
	}
	return all, nil
}

func closeAll(files []*os.File) (err error) {
	for _, f := range files {
		err = errors.Join(err, f.Close())
	}
	return err
}

// Remove implements [Sockets].
func (f *Folders) Remove(id string) error {
	if !lease.ValidID(id) {
		return fmt.Errorf("node: %q is no lease id", id)
	}
	var names []string
	for _, kind := range kinds {
		names = append(names, filepath.Join(id, socketName(kind)))
	}
	for _, name := range append(names, id) {
		if err := f.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing the sockets of lease %s: %w", id, err)
		}
	}
	return nil
}

// Clean implements [Sockets]. Names that are not leases' are left alone.
func (f *Folders) Clean(keep func(id string) bool) error {
	dir, err := f.root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // it was only read
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if lease.ValidID(name) && !keep(name) {
			err = errors.Join(err, f.Remove(name))
		}
	}
	return err
}
