package volatile

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"vacate/internal/mem"
	"vacate/internal/plant"
	"vacate/internal/sys"
)

const keysSize = Slots * KeySlotSize

// Kinds of memory that keys lie in.
const (
	KindSecret = "memfd_secret"  // out of the kernel's own reach as well
	KindLocked = "memfd, locked" // never swapped or dumped; root may read the file
)

// Keys is a mapping of the keys file: [Slots] slots of [KeySlotSize] bytes,
// without a header. A slot without a key is all zeros.
//
// The file never grows or shrinks, and all of it is there from the start. Slots
// are allocated in groups of four, which share a page and are locked with it;
// what is wiped is one slot, all of it: the key and its expanded schedule.
//
// Slot is for any goroutine; who owns a slot is the engine's business. Wipe of
// different slots may run at once.
type Keys struct {
	file   *os.File
	region *mem.Region
	kind   string
	why    error // that it is not memfd_secret
}

// CreateKeys makes the keys file in memfd_secret where the kernel has it, else
// as [CreateLockedKeys] does; [Keys.Why] tells why. It fails when the memory
// cannot be locked, and says how to allow it.
func CreateKeys() (*Keys, error) {
	f, err := sys.MemfdSecret(keysSize)
	if err != nil {
		k, lockedErr := CreateLockedKeys()
		if lockedErr != nil {
			return nil, errors.Join(lockedErr, fmt.Errorf("making keys in memfd_secret: %w", err))
		}
		k.why = err
		return k, nil
	}
	return createKeys(f)
}

// CreateLockedKeys makes the keys file in an ordinary memfd, sealed and locked.
func CreateLockedKeys() (*Keys, error) {
	f, err := sys.Memfd("vacate-keys", keysSize)
	if err != nil {
		return nil, fmt.Errorf("making the keys file: %w", err)
	}
	return createKeys(f)
}

func createKeys(f *os.File) (*Keys, error) {
	k, err := mapKeys(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making the keys file: %w", err), f.Close())
	}
	// Every page is touched now: a page fault must neither delay a wipe nor find
	// the machine out of memory later.
	mem.Wipe(k.region.Bytes())
	return k, nil
}

// OpenKeys maps the keys file that a keeper made, and takes f over. What is not
// one (another size, a size that is not sealed) is refused.
func OpenKeys(f *os.File) (*Keys, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("opening the keys file: %w", err)
	}
	if st.Size() != keysSize {
		return nil, fmt.Errorf("opening the keys file: %d bytes, want %d: %w", st.Size(), keysSize, ErrFormat)
	}
	if !sys.IsSecretMem(f) {
		if err := checkSealed(f); err != nil {
			return nil, fmt.Errorf("opening the keys file: %w", err)
		}
	}
	k, err := mapKeys(f)
	if err != nil {
		return nil, fmt.Errorf("opening the keys file: %w", err)
	}
	return k, nil
}

func mapKeys(f *os.File) (*Keys, error) {
	r, err := mem.MapShared(f, keysSize)
	if err != nil {
		return nil, err
	}
	k := &Keys{file: f, region: r, kind: KindLocked}
	if sys.IsSecretMem(f) {
		k.kind = KindSecret
	}
	if err := r.Lock(mem.MustLock); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return k, nil
}

func checkSealed(f *os.File) error {
	ok, err := sys.SizeSealed(f)
	if err != nil || !ok {
		return errors.Join(fmt.Errorf("its size is not sealed: %w", ErrFormat), err)
	}
	return nil
}

// Kind says what the keys lie in: [KindSecret] or [KindLocked].
func (k *Keys) Kind() string { return k.kind }

// Why tells why CreateKeys did not take memfd_secret. It is nil if it did, and
// of keys that [OpenKeys] opened.
func (k *Keys) Why() error { return k.why }

// File is the keys file, to hand to an engine. It belongs to k.
func (k *Keys) File() *os.File { return k.file }

// Slot returns the memory of slot i: the one place where that key exists.
// It is never copied. A slot that does not exist panics.
func (k *Keys) Slot(i int) []byte {
	if err := checkSlot(i); err != nil {
		panic("volatile: " + err.Error())
	}
	at := i * KeySlotSize
	return k.region.Bytes()[at : at+KeySlotSize : at+KeySlotSize]
}

// Empty reports whether slot i holds no key.
func (k *Keys) Empty(i int) bool { return mem.IsZero(k.Slot(i)) }

// Wipe overwrites slot i and reads it back through the mapping. An error means
// that the key must be taken to exist still. Wiping an empty slot is fine.
func (k *Keys) Wipe(i int) error {
	if err := checkSlot(i); err != nil {
		return err
	}
	if plant.Is(plant.KeyNotWiped) {
		return nil
	}
	slot := k.Slot(i)
	mem.Wipe(slot)
	words := mem.Words(slot)
	for j := range words {
		if words[j].Load() != 0 {
			return fmt.Errorf("reading back slot %d: byte %d is not zero: %w", i, j*8, syscall.EIO)
		}
	}
	return nil
}

// WipeAll wipes every slot. It goes on after an error and returns all of them.
func (k *Keys) WipeAll() error {
	var errs []error
	for i := range Slots {
		errs = append(errs, k.Wipe(i))
	}
	return errors.Join(errs...)
}

// Close unmaps and closes the file. The keys stay as they are for others who
// map it: [Keys.Wipe] is what destroys them.
func (k *Keys) Close() error { return errors.Join(k.region.Close(), k.file.Close()) }
