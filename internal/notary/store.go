package notary

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"vacate/internal/durable"
	"vacate/proof"
)

// A store is the folder of the certificates:
//
//	ID.json           with the policy's quorum, or all that there will be
//	ID.partial.json   without; removed when the other is there
//	ID.met, ID.missed whether the lease was erased by its time
type store struct {
	dir string

	mu      sync.Mutex
	files   map[string]int64 // lease: size of ID.json
	partial map[string]int64
	met     map[string]bool // lease: whether in time
}

const (
	finalSuffix   = ".json"
	partialSuffix = ".partial.json"
	metSuffix     = ".met"
	missedSuffix  = ".missed"
)

// Prepare makes the folders of a notary, with mode 0700. Their parent has to be
// there. It comes before the process is confined, and before anybody is answered: where
// they are there already, it does not wait for the disk.
func Prepare(dir string) error {
	work := filepath.Join(dir, workDir)
	if _, err := os.Lstat(work); err == nil {
		return nil
	}
	for _, d := range []string{dir, work} {
		if err := os.Mkdir(d, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("making the folder of the certificates: %w", err)
		}
		if err := durable.SyncDir(filepath.Dir(d)); err != nil {
			return err
		}
	}
	return nil
}

func openStore(dir string) (*store, error) {
	s := &store{dir: dir, files: map[string]int64{}, partial: map[string]int64{}, met: map[string]bool{}}
	for _, d := range []string{dir, filepath.Join(dir, workDir)} {
		if err := durable.Sweep(d); err != nil {
			return nil, fmt.Errorf("tidying the folder of the certificates: %w", err)
		}
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range names {
		st, err := e.Info()
		if err != nil {
			return nil, err
		}
		if id, ok := strings.CutSuffix(e.Name(), partialSuffix); ok {
			s.partial[id] = st.Size()
		} else if id, ok := strings.CutSuffix(e.Name(), finalSuffix); ok {
			s.files[id] = st.Size()
		} else if id, ok := strings.CutSuffix(e.Name(), metSuffix); ok {
			s.met[id] = true
		} else if id, ok := strings.CutSuffix(e.Name(), missedSuffix); ok {
			s.met[id] = false
		}
	}
	for id := range s.files { // a crash left the one that was replaced
		if _, ok := s.partial[id]; ok {
			delete(s.partial, id)
			if err := durable.Remove(s.path(id, partialSuffix)); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

func (s *store) path(id, suffix string) string { return filepath.Join(s.dir, id+suffix) }

// put writes a certificate, durably. A final one is never replaced: what there is
// stays, as a copy of it may have been given away.
func (s *store) put(id string, b []byte, final bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.files[id]; ok {
		return nil
	}
	suffix, sizes := partialSuffix, s.partial
	if final {
		suffix, sizes = finalSuffix, s.files
	}
	if err := durable.Write(s.path(id, suffix), b, 0o600); err != nil {
		return err
	}
	sizes[id] = int64(len(b))
	if final {
		delete(s.partial, id)
		return durable.Remove(s.path(id, partialSuffix))
	}
	return nil
}

// get returns the certificate of a lease, nil if there is none.
func (s *store) get(id string) (b []byte, final bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	suffix := finalSuffix
	if _, final = s.files[id]; !final {
		if _, ok := s.partial[id]; !ok {
			return nil, false, nil
		}
		suffix = partialSuffix
	}
	b, _, err = durable.Read(s.path(id, suffix), proof.MaxBundle)
	return b, final, err
}

func (s *store) state(id string) (size int64, final bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if size, final = s.files[id]; final {
		return size, true
	}
	return s.partial[id], false
}

// judged notes whether a lease was erased by its time.
func (s *store) judged(id string, met bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.met[id]; ok {
		return nil
	}
	suffix := missedSuffix
	if met {
		suffix = metSuffix
	}
	if err := durable.Write(s.path(id, suffix), nil, 0o600); err != nil {
		return err
	}
	s.met[id] = met
	return nil
}

func (s *store) counts() (all, partial int, d Deadlines) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, met := range s.met {
		if met {
			d.Met++
		} else {
			d.Missed++
		}
	}
	return len(s.files) + len(s.partial), len(s.partial), d
}

// expire removes what was written before a time, unless it is still to be replaced.
func (s *store) expire(before time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.files {
		st, err := os.Stat(s.path(id, finalSuffix))
		if err != nil {
			return err
		}
		if !st.ModTime().Before(before) {
			continue
		}
		for _, suffix := range []string{finalSuffix, metSuffix, missedSuffix} {
			if err := durable.Remove(s.path(id, suffix)); err != nil {
				return err
			}
		}
		delete(s.files, id)
		delete(s.met, id)
	}
	return nil
}
