package vm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// An archive writes a cpio archive in the format "newc", the one that Linux
// takes as an initramfs (Documentation/driver-api/early-userspace/
// buffer-format.rst). Parents go before what is in them.
type archive struct {
	w   io.Writer
	off int64 // bytes written so far
	ino int   // of the last entry; files have one link each
	err error // the first of w
}

// Modes are those of stat(2).
const (
	modeDir    = 0o040000
	modeFile   = 0o100000
	modeDevice = 0o020000 // a character device
)

// trailer is the name of the entry that ends an archive.
const trailer = "TRAILER!!!"

func (a *archive) dir(name string) { a.entry(name, modeDir|0o755, 0, nil) }

func (a *archive) file(name string, perm int, data []byte) { a.entry(name, modeFile|perm, 0, data) }

// device writes a character device; its numbers are below 256.
func (a *archive) device(name string, perm, major, minor int) {
	a.entry(name, modeDevice|perm, major<<8|minor, nil)
}

// close writes the trailer and returns the first error.
func (a *archive) close() error {
	a.ino = -1 // the trailer has number 0
	a.entry(trailer, 0, 0, nil)
	return a.err
}

func (a *archive) entry(name string, mode, rdev int, data []byte) {
	name = strings.TrimPrefix(name, "/")
	if int64(len(data)) > 1<<32-1 {
		a.err = errors.Join(a.err, fmt.Errorf("cpio: %s has %d bytes: the format holds fewer than 4 GiB", name, len(data)))
		return
	}
	a.ino++
	// c_ino mode uid gid nlink mtime filesize maj min rmaj rmin namesize check
	fields := []int{a.ino, mode, 0, 0, 1, 0, len(data), 0, 0, rdev >> 8, rdev & 0xff, len(name) + 1, 0}
	var head bytes.Buffer
	head.WriteString("070701")
	for _, f := range fields {
		fmt.Fprintf(&head, "%08X", f)
	}
	head.WriteString(name)
	head.WriteByte(0)
	a.write(head.Bytes())
	a.pad()
	a.write(data)
	a.pad()
}

func (a *archive) write(p []byte) {
	if a.err != nil {
		return
	}
	n, err := a.w.Write(p)
	a.off += int64(n)
	a.err = err
}

// pad fills up to a multiple of 4 bytes.
func (a *archive) pad() {
	a.write(make([]byte, -a.off&3))
}
