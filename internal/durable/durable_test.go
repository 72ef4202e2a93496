package durable

import (
	"os"
	"path/filepath"
	"testing"
)

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, text := range []string{"one", "", "three"} {
		if err := os.WriteFile(path+tempSuffix, []byte("left by a crash"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Write(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		b, mode, err := Read(path, 5)
		if err != nil || string(b) != text || mode.Perm() != 0o600 {
			t.Errorf("read %q, mode %v, %v; want %q", b, mode, err, text)
		}
	}
	if _, _, err := Read(path, 4); err == nil {
		t.Error("a file longer than allowed was read")
	}
	if err := os.Symlink(path, path+"link"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Read(path+"link", 5); err == nil {
		t.Error("a symbolic link was followed")
	}
	if _, _, err := Read(dir, 5); err == nil {
		t.Error("a folder was read")
	}
	if err := Write(filepath.Join(dir, "none", "f"), nil, 0o600); err == nil {
		t.Error("a file was written into a folder that does not exist")
	}
}

func TestRemoveAndSweep(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b" + tempSuffix, "c"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := Remove(filepath.Join(dir, "a")); err != nil {
			t.Fatal(err)
		}
		if err := Sweep(dir); err != nil {
			t.Fatal(err)
		}
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 || names[0].Name() != "c" {
		t.Errorf("left are %v, %v; want c", names, err)
	}
}
