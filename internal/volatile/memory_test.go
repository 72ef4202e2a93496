package volatile

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"unsafe"
)

// vmFlags returns the flags of the mapping that holds b, from /proc/self/smaps
// (proc_pid_smaps(5)).
func vmFlags(t *testing.T, b []byte) []string {
	t.Helper()
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	at := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
	here := false
	for line := range strings.Lines(string(smaps)) {
		var lo, hi uint64
		if n, _ := fmt.Sscanf(line, "%x-%x ", &lo, &hi); n == 2 {
			here = lo <= at && at+uint64(len(b)) <= hi
		}
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && here {
			return strings.Fields(flags)
		}
	}
	t.Fatalf("no mapping holds %d bytes at %#x", len(b), at)
	return nil
}

// Flags of a mapping: shared, left out of core dumps, not inherited by a fork,
// locked.
const (
	flagShared = "sh"
	flagNoDump = "dd"
	flagNoFork = "dc"
	flagLocked = "lo"
)

func checkFlags(t *testing.T, what string, b []byte, want ...string) {
	t.Helper()
	got := vmFlags(t, b)
	for _, f := range want {
		if !slices.Contains(got, f) {
			t.Errorf("%s: memory without the flag %q, it has %q", what, f, got)
		}
	}
}

// TestL2KeysMemory is law L2 for keys, in the maker's mapping and in that of
// whom they are handed to: never swapped, never dumped, not for a child.
func TestL2KeysMemory(t *testing.T) {
	stores(t, func(t *testing.T, k *Keys) {
		other, err := dupKeys(t, k)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		for what, b := range map[string][]byte{"made": k.region.Bytes(), "opened": other.region.Bytes()} {
			checkFlags(t, "keys, "+what, b, flagShared, flagNoDump, flagNoFork, flagLocked)
		}
		if k.Kind() == KindLocked {
			if got := allocated(t, k.File()); got != keysSize {
				t.Errorf("%d bytes of the keys file are there, want all %d from the start", got, keysSize)
			}
		}
	})
}

func TestTableAndMapMemory(t *testing.T) {
	tab := newTable(t)
	other, err := reopen(t, tab)
	if err != nil {
		t.Fatal(err)
	}
	m, opened := newMap(t, 1<<28, 3)
	for what, b := range map[string][]byte{
		"table, made": tab.region.Bytes(), "table, opened": other.region.Bytes(),
		"map": m.region.Bytes(), "map, opened again": opened.region.Bytes(),
	} {
		checkFlags(t, what, b, flagShared, flagNoDump, flagNoFork)
	}
	// The search finds what is missing: a table is not locked.
	if slices.Contains(vmFlags(t, tab.region.Bytes()), flagLocked) {
		t.Error("the table is locked, or the flags are those of another mapping")
	}
}
