package sys

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestMapStorage: a mapping and the file are the same bytes, and what has a page
// cache is not taken for memory.
func TestMapStorage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, make([]byte, 3*PageSize), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := OpenStorage(path, ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = CloseFD(fd) }()
	if DirectAccess(fd) {
		t.Error("a file in the temporary folder is said to be DAX")
	}
	if _, err := MapStorage(fd, 0, PageSize, true); !errors.Is(err, syscall.EOPNOTSUPP) {
		t.Errorf("mapping it as DAX: %v, want EOPNOTSUPP", err)
	}
	b, err := MapStorage(fd, int64(PageSize), 2*PageSize, false)
	if err != nil {
		t.Fatal(err)
	}
	b[1] = 7
	var got [2]byte
	if n, errno := Pread(fd, got[:], int64(PageSize)); n != 2 || errno != 0 || got != [2]byte{0, 7} {
		t.Errorf("the file holds %v, %v", got, errno)
	}
	if _, errno := Pwrite(fd, []byte{9}, int64(2*PageSize)); errno != 0 || b[PageSize] != 9 {
		t.Errorf("the mapping holds %d, %v", b[PageSize], errno)
	}
	if err := Unmap(b); err != nil {
		t.Error(err)
	}
	if _, err := MapStorage(-1, 0, PageSize, false); !errors.Is(err, syscall.EBADF) {
		t.Errorf("mapping nothing: %v", err)
	}
}
