package main

import (
	"errors"
	"slices"
	"strings"

	"vacate/test/search"
	"vacate/test/vm/wire"
)

// keys reads the keys' memory through the keeper's own descriptor.
func (d *daemon) keys() (k wire.Keys, err error) {
	s, err := search.Keys(d.cmd.Process.Pid)
	if err != nil {
		return k, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	k.Secret = strings.Contains(s.Name, "secretmem")
	zero := make([]byte, search.SlotSize)
	for slot := range slices.Chunk(s.Bytes(), search.SlotSize) {
		if !slices.Equal(slot, zero) {
			k.Slots = append(k.Slots, slices.Clone(slot))
		}
	}
	return k, nil
}
