//go:build failpoints

package fail

import (
	"bytes"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// On tells whether this build has fail points.
const On = true

// FileSize is the size of that file, in bytes: a word that is 1 while a point is
// named, then the point's name, ended by a zero.
const FileSize = 4096

const nameAt = 8

var page = open(os.Getenv(Variable))

// open maps the file before any sandbox keeps it away.
func open(path string) []byte {
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		defer f.Close() //nolint:errcheck // the mapping stays
		var b []byte
		if b, err = syscall.Mmap(int(f.Fd()), 0, FileSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED); err == nil {
			return b
		}
	}
	panic(fmt.Sprintf("fail: mapping %s=%s: %v", Variable, path, err))
}

// At ends the process if the hunt has named p.
func At(p Point) {
	if page == nil {
		return
	}
	armed := (*atomic.Uint32)(unsafe.Pointer(&page[0]))
	if armed.Load() != 1 {
		return
	}
	name, _, _ := bytes.Cut(page[nameAt:], []byte{0})
	if string(name) == string(p) && armed.CompareAndSwap(1, 0) {
		syscall.Kill(os.Getpid(), syscall.SIGKILL) //nolint:errcheck // cannot fail for oneself
		select {}
	}
}
