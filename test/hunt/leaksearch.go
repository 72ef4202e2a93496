package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"vacate/test/search"
)

// A keyring collects keys while they live, to look for them when they must be
// gone.
type keyring struct {
	mu       sync.Mutex
	shared   *search.Shared
	slots    map[string]bool // contents of slots that held a key when they were seen
	total    int
	searched uint64
}

// mapped returns the keys file, mapped once: it lives as long as the keeper.
// REQUIRES: mu is held.
func (k *keyring) mapped(keeper int) ([]byte, error) {
	if k.shared == nil {
		s, err := search.Keys(keeper)
		if err != nil {
			return nil, err
		}
		k.shared, k.slots = s, map[string]bool{}
	}
	return k.shared.Bytes(), nil
}

// sample notes the keys that live now.
func (k *keyring) sample(keeper int, report func(error)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	b, err := k.mapped(keeper)
	if err != nil {
		report(fmt.Errorf("mapping the keys: %w", err))
		return
	}
	zero := make([]byte, search.SlotSize)
	for at := 0; at < len(b); at += search.SlotSize {
		// A key that is being made or wiped is taken as it is: half of one is none
		// that anything was encrypted with, and is looked for all the same.
		if slot := b[at : at+search.SlotSize]; !bytes.Equal(slot, zero) && !k.slots[string(slot)] {
			k.slots[string(slot)] = true
			k.total++
		}
	}
}

// settled waits until the daemon is ready with an engine and a control that stay: one
// that was just killed may have said so, and be gone a moment later.
func (h *leakHunt) settled() error {
	return h.retry("waiting for the daemon", func(context.Context) error {
		first, err := h.present()
		if err != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
		now, err := h.present()
		if err == nil && now != first {
			err = fmt.Errorf("its processes were %v, and are %v", first, now)
		}
		return err
	})
}

// present is the engine's and control's pid of a daemon that is ready.
func (h *leakHunt) present() (pids [2]int, err error) {
	if err := h.d.Ready(); err != nil {
		return pids, err
	}
	for i, name := range []string{"engine", "control"} {
		if pids[i], err = h.d.Child(name); err != nil {
			return pids, err
		}
	}
	return pids, nil
}

// search holds everything still and looks everywhere for canaries and keys.
func (h *leakHunt) search() error {
	h.still.Lock()
	defer h.still.Unlock()
	h.disarm()
	if err := h.settled(); err != nil {
		return err
	}
	h.keys.sample(h.d.PID(), h.report)
	h.keys.mu.Lock()
	defer h.keys.mu.Unlock()

	n := search.NewNeedles()
	n.Add("a canary", h.magic[:])
	live := map[string]bool{}
	keys, err := h.keys.mapped(h.d.PID())
	if err != nil {
		return err
	}
	for at := 0; at < len(keys); at += search.SlotSize {
		live[string(keys[at:at+search.SlotSize])] = true
	}
	dead, destroyed := search.NewNeedles(), 0
	for slot := range h.keys.slots {
		n.AddKey("a key", []byte(slot))
		if !live[slot] {
			dead.AddKey("a destroyed key", []byte(slot))
			delete(h.keys.slots, slot)
			destroyed++
		}
	}
	var found []error
	held := 0
	for slot := range live {
		if slot != string(make([]byte, search.SlotSize)) {
			held++
		}
	}
	if most := int(h.openLeases.Load()); held > most {
		found = append(found, fmt.Errorf("%d slots of the volatile memory hold a key, and at most %d leases are open", held, most))
	}
	if err := h.accidents(); err != nil {
		found = append(found, err)
	}
	note := func(hits []search.Hit, err error) {
		for _, hit := range hits[:min(len(hits), 10)] {
			found = append(found, errors.New(hit.String()))
		}
		if err != nil {
			found = append(found, err)
		}
	}
	note(dead.In(keys, "the volatile memory", 0), nil)
	note(h.processes(n))
	note(h.media(n))
	note(n.In([]byte(h.d.Log()), "the daemon's log", 0), nil)
	if len(found) > 0 {
		return fmt.Errorf("after %d lives, with no request in flight: %w", h.lives.Load(), errors.Join(found...))
	}
	fmt.Printf("  searched after %d lives: %d keys that live, %d that were destroyed, and every canary: none found\n", h.lives.Load(), held, destroyed)
	return nil
}

// processes searches keeper, engine and control: memory, the files in memory that
// they hold without mapping them, registers, and a core.
func (h *leakHunt) processes(n *search.Needles) (hits []search.Hit, err error) {
	pids := []int{h.d.PID()}
	for _, name := range []string{"engine", "control"} {
		pid, err := h.d.Child(name)
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	for _, pid := range pids {
		r, err := n.Process(pid, search.IsKeys)
		if err != nil {
			return nil, err
		}
		if len(r.Closed) > 0 {
			return nil, fmt.Errorf("memory that could not be searched: %q", r.Closed)
		}
		files, searched, err := n.Memfds(pid, search.IsKeysFile)
		if err != nil {
			return nil, err
		}
		h.keys.searched += r.Searched + searched
		regs, _, err := n.Registers(pid)
		if err != nil {
			return nil, err
		}
		core, err := h.core(n, pid)
		if err != nil {
			return nil, err
		}
		hits = slices.Concat(hits, r.Hits, files, regs, core)
	}
	return hits, nil
}

// core has a debugger write a core of a process, and searches it. What the
// process asks to be left out of dumps (MADV_DONTDUMP) the debugger leaves out.
func (h *leakHunt) core(n *search.Needles, pid int) ([]search.Hit, error) {
	path := filepath.Join(h.dir, fmt.Sprintf("core.%d", pid))
	cmd := exec.Command("gdb", "-nx", "-batch", "-p", fmt.Sprint(pid), "-ex", "generate-core-file "+path)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("forcing a core of process %d: %w\n%s", pid, err, out)
	}
	hits, searched, err := n.File(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("gdb wrote no core of process %d:\n%s", pid, out)
	}
	h.keys.searched += searched
	return hits, errors.Join(err, os.Remove(path))
}

// media searches the drive and everything under the daemon's folder.
func (h *leakHunt) media(n *search.Needles) (hits []search.Hit, err error) {
	files := []string{h.drive}
	err = filepath.WalkDir(h.d.Dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a lease's folder, gone meanwhile
		}
		if err == nil && e.Type().IsRegular() && !strings.HasSuffix(path, "drive.img") {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, path := range files {
		got, searched, err := n.File(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		h.keys.searched += searched
		hits = append(hits, got...)
	}
	return hits, nil
}
