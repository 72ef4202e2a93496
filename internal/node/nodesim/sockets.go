package nodesim

import (
	"cmp"
	"errors"
	"maps"
	"os"
	"slices"
	"sync"
)

// Sockets are names in a set. They survive a node, as folders do.
type Sockets struct {
	F   *Faults
	Dir string // of all leases' folders; "/leases" where it is empty

	mu  sync.Mutex
	ids map[string]bool
}

// Make implements node.Sockets. The listeners are /dev/null.
func (s *Sockets) Make(id string, uid uint32, kinds ...string) ([]*os.File, error) {
	return run(s.F, "Make", func() ([]*os.File, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.ids == nil {
			s.ids = map[string]bool{}
		}
		s.ids[id] = true
		var all []*os.File
		for range kinds {
			f, err := os.Open(os.DevNull)
			if err != nil {
				return nil, errors.Join(err, closeAll(all))
			}
			all = append(all, f)
		}
		return all, nil
	})
}

// Path implements node.Sockets.
func (s *Sockets) Path(id, kind string) string {
	return cmp.Or(s.Dir, "/leases") + "/" + id + "/" + kind + ".sock"
}

func closeAll(files []*os.File) (err error) {
	for _, f := range files {
		err = errors.Join(err, f.Close())
	}
	return err
}

// Remove implements node.Sockets.
func (s *Sockets) Remove(id string) error {
	return run0(s.F, "Remove", func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.ids, id)
		return nil
	})
}

// Clean implements node.Sockets.
func (s *Sockets) Clean(keep func(string) bool) error {
	return run0(s.F, "Clean", func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		maps.DeleteFunc(s.ids, func(id string, _ bool) bool { return !keep(id) })
		return nil
	})
}

// IDs are the leases that have sockets.
func (s *Sockets) IDs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.ids))
}
