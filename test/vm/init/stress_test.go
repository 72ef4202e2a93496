package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vacate/test/vm/canary"
	"vacate/test/vm/wire"
)

// TestStressFinds: what a stress has written in whole rounds passes its check, and
// a sector that is older, torn, foreign, elsewhere or gone does not.
func TestStressFinds(t *testing.T) {
	const sectors, rounds = 500, 3
	device := filepath.Join(t.TempDir(), "device")
	s := wire.Stress{Device: device, Hunt: 9, First: 8, Workers: 2, Sectors: sectors}
	if err := os.WriteFile(device, make([]byte, (8+2*sectors+8)*canary.SectorSize), 0o600); err != nil {
		t.Fatal(err)
	}
	var workers []*stresser
	for n := range s.Workers {
		w, err := newStresser(s, n)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.close() })
		workers = append(workers, w)
		for w.round = 1; w.round <= rounds; w.round++ {
			for _, p := range w.pieces() {
				if err := w.write(p); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	s.Rounds = []uint32{rounds, rounds}
	if err := checkStress(s); err != nil {
		t.Fatalf("what was written: %v", err)
	}
	b, err := os.ReadFile(device)
	if err != nil {
		t.Fatal(err)
	}
	for _, outside := range [][]byte{b[:8*canary.SectorSize], b[(8+2*sectors)*canary.SectorSize:]} {
		if i := differ(outside, make([]byte, len(outside))); i < len(outside) {
			t.Fatal("the stress has written outside its parts")
		}
	}
	const victim = 8 + sectors + 77 // of the second worker
	whole := b[victim*canary.SectorSize:][:canary.SectorSize]
	other := b[(victim+1)*canary.SectorSize:][:canary.SectorSize]
	old, fresh := make([]byte, canary.SectorSize), make([]byte, canary.SectorSize)
	canary.Fill(old, s.Hunt, 1, 77, rounds-2)
	canary.Fill(fresh, s.Hunt, 1, 77, rounds+1)
	foreign := make([]byte, canary.SectorSize)
	canary.Fill(foreign, s.Hunt, 0, 77, rounds)
	tests := []struct {
		name   string
		sector []byte
		passes bool
	}{
		{"as it was", whole, true},
		{"of the next round", fresh, true},
		{"of two rounds before", old, false},
		{"torn", append(append([]byte(nil), fresh[:256]...), whole[256:]...), false},
		{"of the other worker", foreign, false},
		{"of the next sector", other, false},
		{"zeros", make([]byte, canary.SectorSize), false},
	}
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	for _, tt := range tests {
		if _, err := f.WriteAt(tt.sector, victim*canary.SectorSize); err != nil {
			t.Fatal(err)
		}
		err := checkStress(s)
		if tt.passes != (err == nil) || err != nil && !strings.Contains(err.Error(), "sector 77 of worker 1") {
			t.Errorf("%s: the check says %v", tt.name, err)
		}
		err = workers[1].verify(70, 20) // which knows what it wrote last
		if (tt.name == "as it was") != (err == nil) {
			t.Errorf("%s: its worker says %v", tt.name, err)
		}
	}
}

// TestTreeFinds: a tree reads as it was written, and one wrong bit is found.
func TestTreeFinds(t *testing.T) {
	tree := wire.Tree{Dir: t.TempDir(), Seed: 4, Files: 40, Max: 5000}
	wrote, err := writeTree(tree)
	if err != nil {
		t.Fatal(err)
	}
	read, err := compareTree(tree)
	if err != nil || read != wrote || wrote.Files != 40 {
		t.Fatalf("wrote %+v, read %+v, %v", wrote, read, err)
	}
	path, content := treeFile(tree, 17)
	content[len(content)-1] ^= 1
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := compareTree(tree); err == nil || !strings.Contains(err.Error(), filepath.Base(path)) {
		t.Errorf("a wrong bit: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := compareTree(tree); err == nil {
		t.Error("a missing file is not missed")
	}
}
