package handoff

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"

	"vacate/internal/sys"
)

const (
	version = 1
	maxSize = 16 << 20 // bytes; with all slots, connections and places there are 6 MiB
)

// A Note is what the hand-off file says.
type Note struct {
	Version int    `json:"version"` // set by Write
	Place   string `json:"place"`   // must be the same for both programs
	Keys    File   `json:"keys"`
	Table   File   `json:"table"`
	API     File   `json:"api,omitzero"`
	Admin   File   `json:"admin,omitzero"`
	Alive   File   `json:"alive,omitzero"`
	Lock    File   `json:"lock,omitzero"`
	Program File   `json:"program,omitzero"` // the new one
	Old     File   `json:"old,omitzero"`
	// Settings are the old program's, which alone reads them: what its
	// configuration says by now may be for the new one.
	Settings json.RawMessage `json:"settings,omitempty"`
	Outcome  string          `json:"outcome,omitempty"` // for control: how the last upgrade ended
	Engine   Child           `json:"engine,omitzero"`
	Control  Child           `json:"control,omitzero"`
	Slots    []Slot          `json:"slots,omitempty"` // in their order
}

// A Child is a process that goes on.
type Child struct {
	PID   int  `json:"pid"`
	Link  File `json:"link"`
	Death File `json:"death"`
}

// A Slot is what is held for a lease.
type Slot struct {
	Slot     int    `json:"slot"`
	Map      File   `json:"map"`
	Listener File   `json:"listener,omitzero"`
	Conns    []Conn `json:"conns,omitempty"`
	// Places are what the lease's exports keep, by number.
	Places map[int]*File `json:"places,omitempty"`
}

// A Conn is a client's connection between two of its messages.
type Conn struct {
	File  File   `json:"fd"`
	Terms uint64 `json:"terms"`
}

// A File is written as its descriptor.
type File struct {
	*os.File
	fd int // if File is nil
}

// Of is f, which may be nil: none.
func Of(f *os.File) File { return File{File: f} }

// At is the file with descriptor fd.
func At(fd int) File { return File{fd: fd} }

func (f File) descriptor() (int, error) {
	if f.File == nil {
		return f.fd, nil
	}
	return sys.Descriptor(f.File)
}

// MarshalJSON writes the descriptor.
func (f File) MarshalJSON() ([]byte, error) {
	fd, err := f.descriptor()
	return strconv.AppendInt(nil, int64(fd), 10), err
}

// UnmarshalJSON reads the descriptor, and does nothing to it.
func (f *File) UnmarshalJSON(b []byte) error { return json.Unmarshal(b, &f.fd) }

// files are all that n names; of a check, those that are there.
func (n *Note) files(check bool) []*File {
	all := []*File{&n.Keys, &n.Table}
	if check {
		return all
	}
	all = append(all, &n.API, &n.Admin, &n.Alive, &n.Program, &n.Old, &n.Engine.Link, &n.Engine.Death, &n.Control.Link, &n.Control.Death)
	optional := []*File{&n.Lock}
	for i := range n.Slots {
		s := &n.Slots[i]
		all = append(all, &s.Map)
		optional = append(optional, &s.Listener)
		for j := range s.Conns {
			all = append(all, &s.Conns[j].File)
		}
		for _, f := range s.Places {
			all = append(all, f)
		}
	}
	for _, f := range optional {
		if *f != (File{}) {
			all = append(all, f)
		}
	}
	return all
}

func (n *Note) descriptors() ([]int, error) {
	var fds []int
	for _, f := range n.files(false) {
		fd, err := f.descriptor()
		if err != nil {
			return nil, err
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

func (n *Note) adopt(check bool) (err error) {
	for _, f := range n.files(check) {
		if f.File, err = sys.Adopt(f.fd, "handed over"); err != nil {
			return err
		}
	}
	return nil
}

// decode refuses what it does not know.
func (n *Note) decode(b []byte, check bool) error {
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	if v.Version != version {
		return fmt.Errorf("version %d, this program knows %d", v.Version, version)
	}
	if err := Strict(b, n); err != nil {
		return err
	}
	if !check && (n.Engine.PID <= 0 || n.Control.PID <= 0) {
		return errors.New("a child without a process")
	}
	seen := make(map[int]bool)
	for _, f := range n.files(check) {
		if f == nil { // null
			f = new(File)
		}
		if f.fd <= 2 || seen[f.fd] {
			return fmt.Errorf("descriptor %d is named twice, or cannot be one", f.fd)
		}
		seen[f.fd] = true
	}
	for i := range n.Slots {
		if s := n.Slots[i].Slot; s < 0 || i > 0 && s <= n.Slots[i-1].Slot {
			return fmt.Errorf("slot %d does not follow its predecessor", s)
		}
	}
	return nil
}
