package demo

import (
	"bytes"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// The search must find every letter wherever it lies, across the borders of its
// windows too: a search that misses would make the demo's zero worthless.
func TestSearchFindsAll(t *testing.T) {
	const n = 300
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(1, 2))
	sum, err := writeLetters(dir, n, rng)
	if err != nil {
		t.Fatal(err)
	}
	var medium bytes.Buffer
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		medium.Write(make([]byte, rng.IntN(9000)))
		medium.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	total := int64(medium.Len())
	if total < sum || total < 4<<20 {
		t.Fatalf("the medium has %d bytes, the letters %d: several windows are needed", total, sum)
	}
	got, err := search(&medium, func(int64) {})
	if err != nil || len(got.letters) != n || got.read != total {
		t.Errorf("found %d letters in %d bytes (%v), want %d in %d", len(got.letters), got.read, err, n, total)
	}
	if got.nonzero < sum*9/10 || got.nonzero > sum {
		t.Errorf("nonzero = %d bytes, the letters have %d", got.nonzero, sum)
	}
}

func TestSearchRejectsDamage(t *testing.T) {
	dir := t.TempDir()
	if _, err := writeLetters(dir, 1, rand.New(rand.NewPCG(3, 4))); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "box-00", "letter-00000.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if f, _ := search(bytes.NewReader(b), func(int64) {}); len(f.letters) != 1 {
		t.Fatalf("the whole letter: found %d", len(f.letters))
	}
	b[len(b)-1] ^= 1
	for name, in := range map[string][]byte{"flipped": b, "cut": b[:len(b)-1], "head only": b[:40], "empty": nil} {
		if f, err := search(bytes.NewReader(in), func(int64) {}); err != nil || len(f.letters) != 0 {
			t.Errorf("%s: found %d (%v), want none", name, len(f.letters), err)
		}
	}
}

func FuzzSearch(f *testing.F) {
	f.Add([]byte(letterMark + "00001 3 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad-----\nabc"))
	f.Add([]byte(letterMark + letterMark + "-1 9999999999999999999 zz-----\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := search(bytes.NewReader(in), func(int64) {})
		if err != nil || got.read != int64(len(in)) {
			t.Errorf("read %d of %d bytes: %v", got.read, len(in), err)
		}
	})
}
