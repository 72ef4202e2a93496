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
	return vectorsOf(t, "../../docs/spec/volatile.md")
}

func vectorsOf(t *testing.T, path string) map[string][]byte {
	t.Helper()
	page, err := os.ReadFile(path)
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
	encodeTableHeader(&th, specHeader)
	check("table-header", th[:])
	if got, err := decodeTableHeader(&th); err != nil || got != specHeader {
		t.Errorf("table header read back: %+v, %v", got, err)
	}

	size := uint64(MapBytes(1<<28, 3))
	checkCopy(t, check, "record", recordSize, 7, Record{
		Lease: testLease, State: StateOpen, LogicalBlock: 512, SizeBytes: 1 << 40,
		MapBytes: size, Generation: 3, KeyGeneratedNs: 1_000_000_001, UID: 1000,
	})
	checkCopy(t, check, "record-ended", recordSize, 9, Record{
		Lease: testLease, State: StateEnded, LogicalBlock: 4096, SizeBytes: 4096,
		MapBytes: 16384, Generation: 4, KeyGeneratedNs: 1_000_000_001, GateClosedNs: 2_000_000_002,
		CiphersDoneNs: 2_000_000_003, KeyDestroyedNs: 2_000_000_004, UID: 1000,
	})
	checkCopy(t, check, "record-limited", recordSize, 8, Record{
		Lease: testLease, State: StateOpen, LogicalBlock: 512, SizeBytes: 1 << 40,
		MapBytes: size, Generation: 3, KeyGeneratedNs: 1_000_000_001, UID: 1000,
		Limits: Limits{IOPS: 5000, IOPSBurst: 60000, Bytes: 200 << 20, BytesBurst: 1 << 30},
	})
	checkCopy(t, check, "record-exports", recordSize, 10, Record{
		Lease: testLease, State: StateOpen, LogicalBlock: 512, SizeBytes: 1 << 40,
		MapBytes: size, Generation: 3, KeyGeneratedNs: 1_000_000_001, UID: 1000,
		Exports: Exports{NoNBD: true, VhostUser: true, ReadOnly: true, Queues: 4},
	})
	checkCopy(t, check, "record-empty", recordSize, 8, Record{})
	checkCopy(t, check, "drive", driveSize, 5, specDrive)
	checkCopy(t, check, "drive-watched", driveSize, 9, DriveRecord{
		UUID: upwards(0x30), Node: upwards(0x40), Epoch: 18, Path: "/dev/nvme0n1", Watched: upwards(0x60),
	})
	checkCopy(t, check, "drive-empty", driveSize, 6, DriveRecord{})

	var mh [mapHeaderSize]byte
	head := mapHeader{Blocks: 1 << 28, Extents: 3, Lease: testLease}
	encodeMapHeader(&mh, head)
	check("map-header", mh[:])
	if got, err := decodeMapHeader(&mh); err != nil || got != head {
		t.Errorf("map header read back: %+v, %v", got, err)
	}
	var xb [extentSize]byte
	x := Extent{Drive: upwards(0x30), First: 4096, Count: 1024}
	encodeExtent(&xb, &x)
	check("extent", xb[:])
	var gotX Extent
	if err := decodeExtent(&xb, &gotX); err != nil || gotX != x {
		t.Errorf("extent read back: %+v, %v", gotX, err)
	}

	for name, m := range specMessages {
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

// upwards is 16 bytes, each one above the one before.
func upwards(from byte) (b [16]byte) {
	for i := range b {
		b[i] = from + byte(i)
	}
	return b
}

var (
	specHeader = TableHeader{KeeperID: upwards(0x10), BootID: upwards(0x20), Generation: 3}
	specDrive  = DriveRecord{
		UUID: upwards(0x30), Node: upwards(0x40), Epoch: 17, ForceForward: true, Path: "/dev/disk/by-id/nvme-1",
	}
	specMessages = map[string]Message{
		"message-map":          {Kind: KindMap, Slot: 5, ID: 42, Blocks: 1 << 28, Lease: testLease, Arg: 3},
		"message-wiped":        {Kind: KindWipe, Reply: true, Slot: 5, ID: 43, StartedNs: 1_000_000_000, DoneNs: 1_000_002_500, ReadBack: true},
		"message-refused":      {Kind: KindUnmap, Reply: true, Slot: 1024, ID: 44, Errno: syscall.EINVAL},
		"message-control":      {Kind: KindControl},
		"message-hold":         {Kind: KindHold, Slot: 5, ID: 45},
		"message-fetch":        {Kind: KindFetch, Slot: 5, ID: 46, Arg: FetchConn + 7},
		"message-fetched":      {Kind: KindFetch, Reply: true, Slot: 5, ID: 46, Arg: 0x1122334455667788},
		"message-pass":         {Kind: KindPass, Slot: 5, ID: 47, Arg: 0x1122334455667788},
		"message-up":           {Kind: KindUp, ID: 48},
		"message-leave":        {Kind: KindLeave},
		"message-ready":        {Kind: KindReady},
		"message-stop":         {Kind: KindStop},
		"message-upgrade":      {Kind: KindUpgrade, ID: 1},
		"message-keep":         {Kind: KindKeep, Slot: 5, ID: 49, Arg: 255},
		"message-yield":        {Kind: KindYield, Slot: 5, ID: 50, Arg: 255},
		"message-fetch-place":  {Kind: KindFetch, Slot: 5, ID: 51, Arg: FetchPlace + 255},
		"message-remap":        {Kind: KindRemap, Slot: 5, ID: 52},
		"message-not-upgraded": {Kind: KindUpgrade, Reply: true, ID: 1, Errno: syscall.ENOEXEC},
	}
)

// checkCopy checks one copy of a record against its vector, and reads it back.
func checkCopy[R comparable, P record[R]](t *testing.T, check func(string, []byte), name string, size int, sequence uint64, r R) {
	t.Helper()
	b := make([]byte, size)
	encodeCopy(b, sequence, P(&r))
	check(name, b)
	var got R
	if seq, err := decodeCopy(b, P(&got)); err != nil || seq != sequence || got != r {
		t.Errorf("%s read back: %d, %+v, %v", name, seq, got, err)
	}
}
