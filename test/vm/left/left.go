// Package left counts what block devices of leases leave behind on a host.
package left

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vacate/test/vm/wire"
)

// Places are where it looks.
type Places struct {
	Proc, Sys, Dev string
	Leases         string // the folder of leases' sockets
	Program        string // whose processes' descriptors are counted
}

// Count looks at all places. That a folder is not there means that nothing is in it.
func (p Places) Count() (l wire.Left, err error) {
	for _, of := range []struct {
		to   *[]string
		list func() ([]string, error)
	}{
		{&l.Characters, p.characters}, {&l.Disks, p.disks}, {&l.Links, p.links}, {&l.Mounts, p.mounts}, {&l.Sockets, p.sockets},
	} {
		found, err := of.list()
		if err != nil {
			return l, err
		}
		slices.Sort(found)
		*of.to = found
	}
	l.Descriptors, err = p.descriptors()
	return l, err
}

// names are those of what is in a folder, with a prefix.
func names(dir, prefix string) (found []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			found = append(found, filepath.Join(dir, e.Name()))
		}
	}
	return found, nil
}

func (p Places) characters() ([]string, error) {
	nodes, err := names(p.Dev, "ublkc")
	if err != nil {
		return nil, err
	}
	known, err := names(filepath.Join(p.Sys, "class/ublk-char"), "")
	return append(nodes, known...), err
}

// disks are block devices of ublk, and those of nbd that have a server (of whom pid
// tells, drivers/block/nbd.c) or an owner's mark.
func (p Places) disks() ([]string, error) {
	nodes, err := names(p.Dev, "ublkb")
	if err != nil {
		return nil, err
	}
	known, err := names(filepath.Join(p.Sys, "block"), "ublkb")
	if err != nil {
		return nil, err
	}
	all, err := names(filepath.Join(p.Sys, "block"), "nbd")
	if err != nil {
		return nil, err
	}
	connected := func(dir string) bool {
		for _, file := range []string{"pid", "backend"} {
			if _, err := os.Stat(filepath.Join(dir, file)); err == nil {
				return true
			}
		}
		return false
	}
	for _, dir := range all {
		if connected(dir) {
			known = append(known, dir)
		}
	}
	return append(nodes, known...), nil
}

func (p Places) links() ([]string, error) { return names(filepath.Join(p.Dev, "vacate"), "") }

// mounts are those that this process sees: of file systems, and of devices' nodes that
// are bound to files (proc_pid_mountinfo(5)).
func (p Places) mounts() (found []string, err error) {
	b, err := os.ReadFile(filepath.Join(p.Proc, "self/mountinfo"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		place, what, ok := strings.Cut(line, " - ")
		f, of := strings.Fields(place), strings.Fields(what)
		if !ok || len(f) < 5 || len(of) < 2 {
			continue
		}
		source := of[1]
		if of[0] == "devtmpfs" {
			source = "/dev" + f[3] // the node
		}
		for _, ours := range []string{"/dev/ublk", "/dev/nbd", "/dev/vacate/"} {
			if strings.HasPrefix(source, ours) {
				found = append(found, source+" on "+f[4])
				break
			}
		}
	}
	return found, nil
}

// sockets are all files and folders beneath the folder of leases' sockets.
func (p Places) sockets() (found []string, err error) {
	err = filepath.WalkDir(p.Leases, func(path string, _ fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // gone meanwhile
			return nil
		case err == nil && path != p.Leases:
			found = append(found, path)
		}
		return err
	})
	return found, err
}

// descriptors lists what those of the program's processes lead to. Processes that end
// meanwhile count for nothing.
func (p Places) descriptors() (map[string][]string, error) {
	all, err := filepath.Glob(filepath.Join(p.Proc, "[0-9]*"))
	if err != nil {
		return nil, err
	}
	found := map[string][]string{}
	for _, dir := range all {
		args, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		command := p.command(args)
		if err != nil || command == "" {
			continue
		}
		open, err := os.ReadDir(filepath.Join(dir, "fd"))
		if errors.Is(err, fs.ErrNotExist) || err != nil && gone(dir) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, fd := range open {
			to, err := os.Readlink(filepath.Join(dir, "fd", fd.Name()))
			if err != nil { // closed meanwhile
				continue
			}
			if kind, _, ok := strings.Cut(to, ":["); ok && kind != "anon_inode" {
				to = kind
			}
			found[command] = append(found[command], to)
		}
		slices.Sort(found[command])
	}
	return found, nil
}

// command is the program's command that a process carries out, or "" if it is another
// program's.
func (p Places) command(args []byte) string {
	words := strings.Split(string(bytes.TrimRight(args, "\x00")), "\x00")
	if words[0] != p.Program && filepath.Base(words[0]) != filepath.Base(p.Program) {
		return ""
	}
	for _, w := range words[1:] {
		if !strings.HasPrefix(w, "-") {
			return w
		}
	}
	return filepath.Base(p.Program)
}

// gone reports whether a process has ended: its folder may still be there without
// descriptors.
func gone(dir string) bool {
	_, err := os.Readlink(filepath.Join(dir, "exe"))
	return err != nil
}
