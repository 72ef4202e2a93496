package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"

	"vacate/test/vm/wire"
)

// treeDir is where a tree's folders are.
func treeDir(t wire.Tree) string { return filepath.Join(t.Dir, fmt.Sprint(t.Seed)) }

// filesPerDir is how many files of a tree share a folder.
const filesPerDir = 16

// treeFile is the nth file of a tree.
func treeFile(t wire.Tree, n int) (path string, content []byte) {
	r := rand.New(rand.NewPCG(t.Seed, uint64(n)))
	content = make([]byte, r.IntN(t.Max+1))
	var key [32]byte
	for i := range key {
		key[i] = byte(r.Uint32())
	}
	rand.NewChaCha8(key).Read(content) //nolint:errcheck // it never fails
	return filepath.Join(treeDir(t), fmt.Sprint(n/filesPerDir), fmt.Sprint(n)), content
}

// writeTree writes the files, and waits until all is on the disk.
func writeTree(t wire.Tree) (tally wire.Tally, err error) {
	for n := range t.Files {
		path, content := treeFile(t, n)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return tally, err
		}
		if err := writeFile(path, content, n%4 == 0); err != nil {
			return tally, err
		}
		tally.Files++
		tally.Bytes += int64(len(content))
	}
	syscall.Sync()
	return tally, nil
}

func writeFile(path string, content []byte, sync bool) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // where something is written, it was synced
	if _, err := f.Write(content); err != nil {
		return err
	}
	if sync {
		return f.Sync()
	}
	return f.Close()
}

// checkTree compares the files with what writeTree wrote. The kernel forgets
// before what it has of them in memory.
func checkTree(t wire.Tree) (tally wire.Tally, err error) {
	if err := forget(); err != nil {
		return tally, err
	}
	return compareTree(t)
}

// compareTree is checkTree with what the kernel has in memory.
func compareTree(t wire.Tree) (tally wire.Tally, err error) {
	for n := range t.Files {
		path, want := treeFile(t, n)
		got, err := os.ReadFile(path)
		if err != nil {
			return tally, err
		}
		if !bytes.Equal(got, want) {
			return tally, fmt.Errorf("%s has %d bytes that are not the %d that were written: they differ from byte %d on",
				path, len(got), len(want), differ(got, want))
		}
		tally.Files++
		tally.Bytes += int64(len(got))
	}
	return tally, nil
}

// differ returns where a and b differ first.
func differ(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}
