package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math"
)

// This file reads bbolt's file format a second time, trusting nothing: bbolt
// maps its file and follows the offsets in it, so that a damaged one makes it
// panic, or read outside the mapping. What passes here, bbolt can walk.
//
//	page    id u64, flags u16, count u16, overflow u32, then elements
//	meta    magic, version, pageSize, flags u32, root {page, sequence} u64,
//	        freelist, highWater, txid, checksum u64
//	branch  count × {pos u32, keyLen u32, page u64}
//	leaf    count × {flags u32, pos u32, keyLen u32, valueLen u32}
//
// Numbers are in the host's order; pos counts from its element. The layout is
// that of go.etcd.io/bbolt v1.5.0, internal/common/{page,meta,bucket}.go.

const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageBranch   = 0x01
	pageLeaf     = 0x02
	pageMeta     = 0x04
	pageFreelist = 0x10

	pageHeader   = 16
	elementSize  = 16
	bucketHeader = 16
	metaLen      = 64
	bucketFlag   = 0x01
	noFreelist   = math.MaxUint64
	maxDepth     = 32 // of the tree; bbolt's pages hold dozens of entries
)

var order = binary.NativeEndian

// checkPages walks every page that the newest valid meta page reaches, and its
// freelist, and returns what is wrong. expired is asked once a page; when it
// says so, the rest is taken on trust.
func checkPages(r io.ReaderAt, size int64, expired func() bool) error {
	m, err := newestMeta(r, size)
	if err != nil {
		return err
	}
	c := &checker{r: r, meta: m, expired: expired, seen: make([]uint64, m.highWater/64+1)}
	c.mark(0)
	c.mark(1)
	err = c.tree(m.root, nil, nil, 0)
	if err == nil {
		err = c.freelist()
	}
	if errors.Is(err, errExpired) {
		return nil
	}
	return err
}

var errExpired = errors.New("time is up")

type boltMeta struct {
	pageSize                    int64
	root, list, highWater, txid uint64
}

// newestMeta finds the valid meta page with the highest transaction, as bbolt
// does: a torn write of one leaves the other.
func newestMeta(r io.ReaderAt, size int64) (boltMeta, error) {
	var best boltMeta
	err := errors.New("file is empty")
	for pageSize := int64(1024); pageSize <= 1<<24; pageSize *= 2 {
		for n := int64(0); n < 2; n++ {
			m, merr := readMeta(r, n*pageSize)
			if merr == nil && m.pageSize != pageSize {
				continue // it is this page of another page size
			}
			if merr == nil && (m.txid >= best.txid || best.pageSize == 0) {
				best = m
			}
			if merr != nil && size > 0 && n == 0 {
				err = fmt.Errorf("meta page: %w", merr)
			}
		}
	}
	if best.pageSize == 0 {
		return best, err
	}
	pages := uint64(size / best.pageSize)
	switch {
	case best.highWater < 4 || best.highWater > pages:
		return best, fmt.Errorf("file has %d pages, %d are in use", pages, best.highWater)
	case best.root < 2 || best.root >= best.highWater:
		return best, fmt.Errorf("root page %d of %d", best.root, best.highWater)
	case best.list < 2 || best.list >= best.highWater && best.list != noFreelist:
		return best, fmt.Errorf("freelist page %d of %d", best.list, best.highWater)
	}
	return best, nil
}

func readMeta(r io.ReaderAt, off int64) (boltMeta, error) {
	var b [pageHeader + metaLen]byte
	if _, err := r.ReadAt(b[:], off); err != nil {
		return boltMeta{}, err
	}
	m := b[pageHeader:]
	sum := fnv.New64a()
	sum.Write(m[:56])
	switch {
	case order.Uint32(m) != boltMagic:
		return boltMeta{}, errors.New("is not that of a journal")
	case order.Uint32(m[4:]) != boltVersion:
		return boltMeta{}, fmt.Errorf("has version %d of bbolt's format", order.Uint32(m[4:]))
	case order.Uint64(m[56:]) != sum.Sum64():
		return boltMeta{}, errors.New("has a wrong checksum")
	case order.Uint16(b[8:]) != pageMeta:
		return boltMeta{}, errors.New("has wrong flags")
	}
	return boltMeta{pageSize: int64(order.Uint32(m[8:])), root: order.Uint64(m[16:]), list: order.Uint64(m[32:]),
		highWater: order.Uint64(m[40:]), txid: order.Uint64(m[48:])}, nil
}

type checker struct {
	r       io.ReaderAt
	meta    boltMeta
	expired func() bool
	seen    []uint64 // one bit a page
}

// mark notes that a page is in use and reports whether it was not before.
func (c *checker) mark(id uint64) bool {
	bit := uint64(1) << (id % 64)
	old := c.seen[id/64]
	c.seen[id/64] = old | bit
	return old&bit == 0
}

// page reads page id with its overflow and checks its header.
func (c *checker) page(id uint64) ([]byte, error) {
	if c.expired() {
		return nil, errExpired
	}
	if id < 2 || id >= c.meta.highWater {
		return nil, fmt.Errorf("page %d is referred to, %d exist", id, c.meta.highWater)
	}
	var head [pageHeader]byte
	if _, err := c.r.ReadAt(head[:], int64(id)*c.meta.pageSize); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	overflow := uint64(order.Uint32(head[12:]))
	if order.Uint64(head[:]) != id {
		return nil, fmt.Errorf("page %d says that it is page %d", id, order.Uint64(head[:]))
	}
	if id+overflow >= c.meta.highWater {
		return nil, fmt.Errorf("page %d is followed by %d more, beyond the last", id, overflow)
	}
	for i := id; i <= id+overflow; i++ {
		if !c.mark(i) {
			return nil, fmt.Errorf("page %d is used twice", i)
		}
	}
	b := make([]byte, (1+overflow)*uint64(c.meta.pageSize))
	if _, err := c.r.ReadAt(b, int64(id)*c.meta.pageSize); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	return b, nil
}

// tree walks the subtree at page id, whose keys k are low ≤ k < high; nil is no
// bound.
func (c *checker) tree(id uint64, low, high []byte, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("page %d: the tree is too deep", id)
	}
	b, err := c.page(id)
	if err != nil {
		return err
	}
	switch order.Uint16(b[8:]) {
	case pageBranch:
		return c.branch(id, b, low, high, depth)
	case pageLeaf:
		return c.leaf(id, b, low, high, depth)
	}
	return fmt.Errorf("page %d: flags %#x are not those of a tree", id, order.Uint16(b[8:]))
}

func (c *checker) branch(id uint64, b, low, high []byte, depth int) error {
	n := int(order.Uint16(b[10:]))
	if n == 0 {
		return fmt.Errorf("page %d: a branch without children", id)
	}
	keys := make([][]byte, n+1)
	children := make([]uint64, n)
	for i := range n {
		at := pageHeader + i*elementSize
		if at+elementSize > len(b) {
			return fmt.Errorf("page %d: %d elements do not fit", id, n)
		}
		key, err := within(b, at, order.Uint32(b[at:]), order.Uint32(b[at+4:]))
		if err != nil {
			return fmt.Errorf("page %d, element %d: %w", id, i, err)
		}
		keys[i], children[i] = key, order.Uint64(b[at+8:])
	}
	keys[n] = high
	if err := ascending(keys[:n], low, high); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	for i, child := range children {
		if err := c.tree(child, keys[i], keys[i+1], depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) leaf(id uint64, b, low, high []byte, depth int) error {
	n := int(order.Uint16(b[10:]))
	keys := make([][]byte, n)
	for i := range n {
		at := pageHeader + i*elementSize
		if at+elementSize > len(b) {
			return fmt.Errorf("page %d: %d elements do not fit", id, n)
		}
		flags, pos := order.Uint32(b[at:]), order.Uint32(b[at+4:])
		keyLen, valueLen := order.Uint32(b[at+8:]), order.Uint32(b[at+12:])
		pair, err := within(b, at, pos, keyLen)
		if err == nil && uint64(keyLen)+uint64(valueLen) > math.MaxUint32 {
			err = errors.New("lengths overflow")
		}
		if err == nil {
			pair, err = within(b, at, pos, keyLen+valueLen)
		}
		if err == nil && flags != 0 && flags != bucketFlag {
			err = fmt.Errorf("unknown flags %#x", flags)
		}
		if err == nil && flags == bucketFlag {
			err = c.bucket(id, pair[keyLen:], depth)
		}
		if err != nil {
			return fmt.Errorf("page %d, element %d: %w", id, i, err)
		}
		keys[i] = pair[:keyLen]
	}
	if err := ascending(keys, low, high); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// bucket checks the value of a bucket's entry: the root of its own tree, or,
// where that is 0, one leaf page inside the value. The journal's buckets hold no
// buckets, so only the root's leaves may have them.
func (c *checker) bucket(id uint64, v []byte, depth int) error {
	if len(v) < bucketHeader {
		return errors.New("a bucket's value is too short")
	}
	if depth > maxDepth {
		return errors.New("buckets lie too deep")
	}
	root := order.Uint64(v)
	if root != 0 {
		return c.tree(root, nil, nil, depth+1)
	}
	inline := v[bucketHeader:]
	if len(inline) < pageHeader || order.Uint64(inline) != 0 || order.Uint16(inline[8:]) != pageLeaf ||
		order.Uint32(inline[12:]) != 0 {
		return errors.New("a bucket's inline page has no proper header")
	}
	return c.leaf(id, inline, nil, nil, maxDepth+1) // no bucket may lie in it
}

func (c *checker) freelist() error {
	if c.meta.list == noFreelist {
		return nil
	}
	b, err := c.page(c.meta.list)
	if err != nil {
		return err
	}
	if order.Uint16(b[8:]) != pageFreelist {
		return fmt.Errorf("page %d: flags %#x are not those of a freelist", c.meta.list, order.Uint16(b[8:]))
	}
	ids := b[pageHeader:]
	n := uint64(order.Uint16(b[10:]))
	if n == 0xFFFF { // the first element is the count
		n, ids = order.Uint64(ids), ids[8:]
	}
	if n > uint64(len(ids)/8) {
		return fmt.Errorf("page %d: a freelist of %d pages does not fit", c.meta.list, n)
	}
	for i := range n {
		free := order.Uint64(ids[8*i:])
		if free < 2 || free >= c.meta.highWater {
			return fmt.Errorf("page %d is free, %d exist", free, c.meta.highWater)
		}
		if !c.mark(free) {
			return fmt.Errorf("page %d is free and in use", free)
		}
	}
	return nil
}

// within returns the n bytes at offset pos from at, where they lie in b.
func within(b []byte, at int, pos, n uint32) ([]byte, error) {
	start := uint64(at) + uint64(pos)
	end := start + uint64(n)
	if end > uint64(len(b)) {
		return nil, errors.New("lies outside the page")
	}
	return b[start:end], nil
}

// ascending checks low ≤ keys[0] < keys[1] < … < high.
func ascending(keys [][]byte, low, high []byte) error {
	for i, k := range keys {
		if i == 0 && low != nil && bytes.Compare(low, k) > 0 || i > 0 && bytes.Compare(keys[i-1], k) >= 0 ||
			high != nil && bytes.Compare(k, high) >= 0 {
			return fmt.Errorf("key %d is out of order", i)
		}
	}
	return nil
}
