package volatile

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"vacate/internal/mem"
	"vacate/internal/sys"
)

// stores runs a test on each kind of memory that this kernel has.
func stores(t *testing.T, test func(t *testing.T, k *Keys)) {
	for _, s := range []struct {
		kind   string
		create func() (*Keys, error)
	}{{KindSecret, CreateKeys}, {KindLocked, CreateLockedKeys}} {
		t.Run(s.kind, func(t *testing.T) {
			k, err := s.create()
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := k.Close(); err != nil {
					t.Error(err)
				}
			}()
			if k.Kind() == KindLocked && s.kind == KindSecret {
				if !errors.Is(k.Why(), syscall.ENOSYS) && !errors.Is(k.Why(), syscall.EPERM) {
					t.Fatalf("no memfd_secret, and the kernel does not say why: %v", k.Why())
				}
				t.Skipf("this kernel has no memfd_secret: %v", k.Why())
			}
			if k.Kind() != s.kind {
				t.Fatalf("keys in %q, want %q", k.Kind(), s.kind)
			}
			test(t, k)
		})
	}
}

func fill(b []byte, with string) { copy(b, bytes.Repeat([]byte(with), len(b)/len(with)+1)) }

// TestL5Wipe is law L5 at its one line: after Wipe the slot is zeros in every
// mapping, and its neighbours on the page are as they were. The planted bug
// "key-not-wiped" makes it fail.
func TestL5Wipe(t *testing.T) {
	stores(t, func(t *testing.T, k *Keys) {
		var before [Slots][]byte
		for i := range Slots {
			fill(k.Slot(i), fmt.Sprintf("key %d, ", i))
			before[i] = bytes.Clone(k.Slot(i))
		}
		other, err := dupKeys(t, k)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		for _, i := range []int{0, 5, Slots - 1} {
			if err := k.Wipe(i); err != nil {
				t.Fatalf("Wipe(%d): %v", i, err)
			}
			before[i] = make([]byte, KeySlotSize)
		}
		for i := range Slots {
			if !bytes.Equal(other.Slot(i), before[i]) {
				t.Errorf("slot %d holds %q, want %q", i, other.Slot(i)[:16], before[i][:16])
			}
		}
		if err := k.WipeAll(); err != nil {
			t.Fatal(err)
		}
		if !mem.IsZero(other.region.Bytes()) {
			t.Error("WipeAll left something")
		}
	})
}

func dupKeys(t *testing.T, k *Keys) (*Keys, error) {
	t.Helper()
	fd, err := syscall.Dup(int(k.File().Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return OpenKeys(os.NewFile(uintptr(fd), "keys"))
}

func TestKeysSlots(t *testing.T) {
	stores(t, func(t *testing.T, k *Keys) {
		if !mem.IsZero(k.region.Bytes()) || len(k.region.Bytes()) != Slots*KeySlotSize {
			t.Error("new keys are not 1 MiB of zeros")
		}
		if s := k.Slot(3); len(s) != KeySlotSize || cap(s) != KeySlotSize {
			t.Errorf("a slot of %d bytes, capacity %d", len(s), cap(s))
		}
		for _, i := range []int{-1, Slots} {
			if err := k.Wipe(i); !errors.Is(err, ErrSlot) {
				t.Errorf("Wipe(%d): %v", i, err)
			}
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("Slot(%d) did not panic", i)
					}
				}()
				k.Slot(i)
			}()
		}
	})
}

// TestKeysAreShared lets another process write keys, which this one wipes.
func TestKeysAreShared(t *testing.T) {
	stores(t, func(t *testing.T, k *Keys) {
		if out, err := part(t, "keys writer", k.File()).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if k.Empty(77) || !strings.HasPrefix(string(k.Slot(77)), "written by another process") {
			t.Fatalf("slot 77 holds %q", k.Slot(77)[:32])
		}
		if err := k.Wipe(77); err != nil || !k.Empty(77) {
			t.Errorf("Wipe: %v, empty %v", err, k.Empty(77))
		}
	})
}

func partKeysWriter() error {
	k, err := OpenKeys(os.NewFile(4, "keys"))
	if err != nil {
		return err
	}
	fill(k.Slot(77), "written by another process")
	return nil
}

// TestKeysAsOrdinaryUser: 8 MiB of RLIMIT_MEMLOCK suffice, and too little says
// what to do.
func TestKeysAsOrdinaryUser(t *testing.T) {
	cmd := part(t, "ordinary user")
	asNobody(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func partOrdinaryUser() error {
	const rlimitMemlock = 8
	if os.Getuid() == 0 {
		return errors.New("this part wants an ordinary user")
	}
	for _, create := range []func() (*Keys, error){CreateKeys, CreateLockedKeys} {
		if err := syscall.Setrlimit(rlimitMemlock, &syscall.Rlimit{Cur: 8 << 20, Max: 8 << 20}); err != nil {
			return err
		}
		k, err := create()
		if err != nil {
			return fmt.Errorf("with 8 MiB: %w", err)
		}
		k.Slot(0)[0] = 1
		if err := errors.Join(k.Wipe(0), k.Close()); err != nil {
			return err
		}
		lim := syscall.Rlimit{Cur: 512 << 10, Max: 8 << 20}
		if err := syscall.Setrlimit(rlimitMemlock, &lim); err != nil {
			return err
		}
		_, err = create()
		var le *mem.LockError
		if !errors.As(err, &le) || !strings.Contains(err.Error(), "allow at least 1024 KiB") {
			return fmt.Errorf("with 512 KiB: %w", err)
		}
	}
	return nil
}

func TestOpenKeysRefuses(t *testing.T) {
	short, err := sys.Memfd("short", keysSize-1)
	if err != nil {
		t.Fatal(err)
	}
	defer short.Close()
	unsealed, err := os.CreateTemp("/dev/shm", "vacate-test-*") // a tmpfs file knows seals, and has F_SEAL_SEAL
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(unsealed.Name())
	defer unsealed.Close()
	if err := unsealed.Truncate(keysSize); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]*os.File{"short": short, "unsealed": unsealed} {
		if k, err := OpenKeys(f); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v, %v", name, k, err)
		}
	}
}

func BenchmarkWipe(b *testing.B) {
	k, err := CreateKeys()
	if err != nil {
		b.Fatal(err)
	}
	defer k.Close()
	for b.Loop() {
		if err := k.Wipe(7); err != nil {
			b.Fatal(err)
		}
	}
}
