package volatile

import (
	"bytes"
	"encoding/hex"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// vectors reads the hex dumps of docs/spec/volatile.md.
func vectors(t *testing.T) map[string][]byte {
	t.Helper()
	page, err := os.ReadFile("../../docs/spec/volatile.md")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]byte{}
	for _, m := range regexp.MustCompile("(?s)Vector `([a-z-]+)`:.*?```\n(.*?)```").FindAllSubmatch(page, -1) {
		b, err := hex.DecodeString(strings.Join(strings.Fields(string(m[2])), ""))
		if err != nil {
			t.Fatalf("vector %s: %v", m[1], err)
		}
		found[string(m[1])] = b
	}
	return found
}

// TestSpecVectors holds code and page together. The vectors were computed from
// the page's tables by a program that shares nothing with this package.
func TestSpecVectors(t *testing.T) {
	vec := vectors(t)
	check := func(name string, got []byte) {
		t.Helper()
		if want := vec[name]; !bytes.Equal(got, want) {
			t.Errorf("%s:\n got % x\nwant % x", name, got, want)
		}
		delete(vec, name)
	}

	var th [tableHeaderSize]byte
	h := TableHeader{Generation: 3}
	for i := range 16 {
		h.KeeperID[i], h.BootID[i] = byte(0x10+i), byte(0x20+i)
	}
	encodeTableHeader(&th, h)
	check("table-header", th[:])
	if got, err := decodeTableHeader(&th); err != nil || got != h {
		t.Errorf("table header read back: %+v, %v", got, err)
	}

	var rec [recordSize]byte
	r := Record{
		Lease: testLease, State: StateOpen, LogicalBlock: 512, SizeBytes: 1 << 40,
		MapBytes: 33562624, Generation: 3, KeyGeneratedNs: 1_000_000_001, UID: 1000,
	}
	encodeRecord(&rec, 7, &r)
	check("record", rec[:])
	if seq, got, err := decodeRecord(&rec); err != nil || seq != 7 || got != r {
		t.Errorf("record read back: %d, %+v, %v", seq, got, err)
	}
	encodeRecord(&rec, 8, &Record{})
	check("record-empty", rec[:])

	var mh [mapHeaderSize]byte
	encodeMapHeader(&mh, mapHeader{Blocks: 1 << 28, Lease: testLease})
	check("map-header", mh[:])
	if got, err := decodeMapHeader(&mh); err != nil || got.Blocks != 1<<28 || got.Lease != testLease {
		t.Errorf("map header read back: %+v, %v", got, err)
	}

	for name, m := range map[string]Message{
		"message-map":     {Kind: KindMap, Slot: 5, ID: 42, Blocks: 1 << 28, Lease: testLease},
		"message-wiped":   {Kind: KindWipe, Reply: true, Slot: 5, ID: 43, StartedNs: 1_000_000_000, DoneNs: 1_000_002_500, ReadBack: true},
		"message-refused": {Kind: KindUnmap, Reply: true, Slot: 1024, ID: 44, Errno: syscall.EINVAL},
		"message-control": {Kind: KindControl},
	} {
		var b [MessageSize]byte
		m.Encode(&b)
		check(name, b[:])
		var got Message
		if err := got.Decode(&b); err != nil || got != m {
			t.Errorf("%s read back: %+v, %v", name, got, err)
		}
	}
	for name := range vec {
		t.Errorf("vector %s is on the page, and no test checks it", name)
	}
}
