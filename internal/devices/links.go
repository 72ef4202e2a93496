package devices

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// links are the names under which devices are found: DIR/LEASE → ../ublkb0. They are
// made by nobody else, and udev has no part in them.
type links struct{ dir string }

// leaseID reports whether a name is a lease's, which may be part of a path.
func leaseID(s string) bool {
	if len(s) != 16 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '2' || c > '7') {
			return false
		}
	}
	return true
}

// path is the link of a lease. REQUIRES: leaseID(lease).
func (l links) path(lease string) string { return filepath.Join(l.dir, lease) }

// set makes the link of a lease lead to a node, at once: there is no moment at which
// a link that was there is not.
func (l links) set(lease, node string) error {
	if !leaseID(lease) {
		return fmt.Errorf("%q is no lease", lease)
	}
	target := node
	if filepath.Dir(node) == filepath.Dir(filepath.Clean(l.dir)) {
		target = filepath.Join("..", filepath.Base(node)) // holds also where /dev is mounted elsewhere
	}
	path := l.path(lease)
	if old, err := os.Readlink(path); err == nil && old == target {
		return nil
	}
	temp := filepath.Join(l.dir, "."+lease)
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, temp); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return nil
}

// remove removes the link of a lease, if there is one, and nothing but a link.
func (l links) remove(lease string) error {
	if !leaseID(lease) {
		return fmt.Errorf("%q is no lease", lease)
	}
	path := l.path(lease)
	switch st, err := os.Lstat(path); {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode().Type() != os.ModeSymlink:
		return fmt.Errorf("%s is not a link that Vacate has made: move it away", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// all is the name of the node that each lease's link leads to (ublkb0), whether it is
// there or not. What is no link of ours is left out.
func (l links) all() (map[string]string, error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	all := map[string]string{}
	for _, e := range entries {
		if name, ok := l.node(e.Name()); ok {
			all[e.Name()] = name
		}
	}
	return all, nil
}

// node is the name of the node that a lease's link leads to.
func (l links) node(lease string) (string, bool) {
	if !leaseID(lease) {
		return "", false
	}
	target, err := os.Readlink(l.path(lease))
	if err != nil {
		return "", false
	}
	return filepath.Base(target), true
}

// numbered takes the number off a ublk node's name: numbered("ublkb7") is 7.
func numbered(name string) (int, bool) {
	s, found := strings.CutPrefix(name, "ublkb")
	n, err := strconv.Atoi(s)
	if !found || err != nil || n < 0 || strconv.Itoa(n) != s {
		return 0, false
	}
	return n, true
}
