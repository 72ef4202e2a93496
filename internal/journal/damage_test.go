package journal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
)

// TestTornMeta loses the newest meta page: the journal is as it was before the
// last transaction.
func TestTornMeta(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	b := open(t, dir)
	enrol(t, b, uuidA)
	before := load(t, b)
	_, err := b.OpenLease(fresh(0, piece(uuidA, 0, 1)), Testimony{})
	must(t, err)
	id := 0
	must(t, b.db.View(func(tx *bbolt.Tx) error { id = tx.ID(); return nil }))
	must(t, b.Close())
	f, err := os.OpenFile(filepath.Join(dir, fileName), os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt(make([]byte, 40), int64(id%2)*int64(os.Getpagesize())+30)
	must(t, err)
	must(t, f.Close())
	b = open(t, dir)
	if diff := cmp.Diff(before, load(t, b)); diff != "" {
		t.Errorf("after a torn meta page (-before +after):\n%s", diff)
	}
	_, err = b.OpenLease(fresh(0, piece(uuidA, 0, 1)), Testimony{})
	must(t, err)
	audit(t, b)
}

// specimen is a journal's file with something in every bucket.
func specimen(t testing.TB) []byte {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	b := open(t, dir)
	enrol(t, b, uuidA, uuidB)
	for n := range 6 {
		l := fresh(n, piece(uuidA, uint32(n), 1), piece(uuidB, uint32(2*n), 2))
		l.Key = fmt.Sprint("key ", n)
		l, err := b.OpenLease(l, Testimony{})
		must(t, err)
		if n > 1 {
			_, err = b.CloseLease(erased(l), n > 3, Testimony{})
			must(t, err)
		}
	}
	must(t, b.Close())
	data, err := os.ReadFile(filepath.Join(dir, fileName))
	must(t, err)
	return data
}

// use opens a journal file of these bytes and does everything with it. What
// matters is that it comes back.
func use(t testing.TB, data []byte) error {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	must(t, os.Mkdir(dir, 0o700))
	must(t, os.WriteFile(filepath.Join(dir, fileName), data, 0o600))
	b, err := Open(Options{Dir: dir, NoSync: true})
	if err != nil {
		return err
	}
	defer b.Close()
	s, err := b.Load()
	if err != nil {
		return err
	}
	if _, err := b.Records(0, 1000); err != nil {
		return err
	}
	for _, l := range s.Live {
		if _, err := b.CloseLease(erased(l), true, Testimony{}); err != nil {
			return err
		}
	}
	return nil
}

// TestDamage is rule J5: bytes that are flipped, pages that are swapped or
// zeroed and files that are cut off give errors.
func TestDamage(t *testing.T) {
	whole := specimen(t)
	must(t, use(t, whole))
	page := os.Getpagesize()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	typed := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for size := 0; size < len(whole); size += page / 2 {
		if err := use(t, whole[:size]); err != nil || size < 4*page {
			typed(fmt.Sprintf("cut off at %d", size), err)
		}
	}
	for p := 0; p < len(whole)/page; p++ {
		for what, fill := range map[string][]byte{"zeros": make([]byte, page), "ones": bytes.Repeat([]byte{0xff}, page),
			"another page": whole[(p+3)*page%len(whole):][:page]} {
			data := bytes.Clone(whole)
			copy(data[p*page:], fill)
			if err := use(t, data); err != nil {
				typed(fmt.Sprintf("page %d is %s", p, what), err)
			}
		}
	}
	found := 0
	for at := 0; ; at++ { // what leases and their records commit to
		n := bytes.Index(whole[at:], []byte(`"keyCommit":"`))
		if n < 0 {
			break
		}
		at += n
		data := bytes.Clone(whole)
		data[at+20] ^= 0x13 // "c" to "p", which is no digit, and "0" to "#"
		if err := use(t, data); err != nil {
			typed("another keyCommit", err)
			found++
		}
	}
	if found == 0 {
		t.Error("another keyCommit is not found anywhere")
	}
	flips := 400
	if testing.Short() {
		flips = 40
	}
	for range flips {
		data := bytes.Clone(whole)
		for range 1 + r.IntN(3) {
			at := r.IntN(len(data))
			if r.IntN(2) == 0 { // headers are where it hurts
				at = at/page*page + r.IntN(64)
			}
			data[at] ^= 1 << r.IntN(8)
		}
		if err := use(t, data); err != nil {
			typed("flipped", err)
		}
	}
	typed("both meta pages", use(t, append(make([]byte, 2*page), whole[2*page:]...)))
	typed("empty file", use(t, nil))
	typed("other file", use(t, []byte("#!/bin/sh\n")))
}

func TestVersion(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	b := open(t, dir)
	must(t, b.db.Update(func(tx *bbolt.Tx) error {
		m := tx.Bucket(metaBucket)
		return m.Put(metaKey, bytes.Replace(m.Get(metaKey), []byte(`"v":1`), []byte(`"v":2`), 1))
	}))
	must(t, b.Close())
	_, err := Open(Options{Dir: dir})
	if !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "newer vacate") {
		t.Errorf("opening a journal of version 2: %v", err)
	}
}
