package engine

import (
	"crypto/rand"
	"encoding/hex"
	"errors"

	"vacate/internal/ipc"
	"vacate/internal/keyshare"
	"vacate/internal/mem"
	"vacate/internal/plant"
	"vacate/internal/secret"
	"vacate/internal/sys"
	"vacate/internal/volatile"
	"vacate/internal/xts"
)

// A key lies in its slot (docs/spec/cipher.md, "Slot"), and nowhere else:
//
//	K1: what is made of it is made in the slot, or by functions of package keyshare,
//	    which leave nothing behind (package secret).
//	K2: what is told of it are commitments, and their salts, once. The engine keeps
//	    neither.
//	K3: a tenant's half of it exists from the opening of its seal to the mixing, in
//	    the prepared key's own memory (prepare.go).

// nodeHalfAt is where the node's half of a split key lies in the slot. It is kept as
// long as the key is: only with it can the tenant check how the key was mixed, when
// it is released.
const nodeHalfAt = volatile.KeySlotSize - keyshare.ShareSize

// newKey fills t's key slot: a fresh key, straight from the generator into volatile
// memory, or mixed with the tenant's share; and its schedule behind it. It returns
// what is told of it.
func (e *Engine) newKey(t *tenancy, share *ipc.Share) (*ipc.LeaseOpened, error) {
	slot := e.keys.Slot(t.slot)
	var err error
	opened := &ipc.LeaseOpened{KeyMode: ipc.KeyModeNode}
	if share == nil {
		err = e.untilStrong(t, func() error {
			_, err := rand.Read(slot[:keyshare.KeySize])
			return err
		})
	} else {
		opened.KeyMode = ipc.KeyModeSplit
		err = e.splitKey(t, share, opened)
	}
	if err != nil {
		return nil, err
	}
	t.rec.KeyGeneratedNs = sys.BoottimeNs()
	opened.KeyGeneratedNs = t.rec.KeyGeneratedNs
	var salt [keyshare.KeySaltSize]byte
	rand.Read(salt[:]) //nolint:errcheck // it never fails, since Go 1.24
	opened.KeySalt = hex.EncodeToString(salt[:])
	opened.KeyCommit = keyshare.CommitKey(t.id, &salt, (*[keyshare.KeySize]byte)(slot))
	return opened, nil
}

// splitKey makes a key of a fresh half and of the tenant's share.
func (e *Engine) splitKey(t *tenancy, share *ipc.Share, opened *ipc.LeaseOpened) error {
	node := nodeHalf(e.keys.Slot(t.slot))
	defer secret.Forget()
	return e.prepared.use(t.id, share, func(tenant *[keyshare.ShareSize]byte) error {
		err := e.untilStrong(t, func() error {
			if _, err := rand.Read(node[:]); err != nil {
				return err
			}
			return keyshare.Mix((*[keyshare.KeySize]byte)(e.keys.Slot(t.slot)), node, tenant, t.id)
		})
		if plant.Is(plant.ShareLeft) {
			leftShare = *tenant
		}
		opened.NodeCommit, opened.NodeSalt = commitShare(keyshare.Node, t.id, node)
		opened.ShareCommit, opened.ShareSalt = commitShare(keyshare.Tenant, t.id, tenant)
		return err
	})
}

// leftShare is where the planted bug leaves its copy.
var leftShare [keyshare.ShareSize]byte //nolint:unused // by builds with the tag planted

func commitShare(half keyshare.Half, lease string, share *[keyshare.ShareSize]byte) (commit, saltHex string) {
	var salt [keyshare.ShareSaltSize]byte
	rand.Read(salt[:]) //nolint:errcheck // it never fails, since Go 1.24
	return keyshare.CommitShare(half, lease, &salt, share), hex.EncodeToString(salt[:])
}

// untilStrong makes a key, and another while its halves are equal: once in 2^256.
func (e *Engine) untilStrong(t *tenancy, fill func() error) error {
	for {
		if err := fill(); err != nil {
			return err
		}
		_, err := e.expand(t)
		if !errors.Is(err, xts.ErrWeakKey) {
			return err
		}
	}
}

// expand writes the schedule of t's key behind it, and returns it.
func (e *Engine) expand(t *tenancy) (*xts.Schedule, error) {
	s := e.schedule(t)
	return s, s.Expand((*[xts.KeySize]byte)(e.keys.Slot(t.slot)))
}

// schedule is where it lies.
func (e *Engine) schedule(t *tenancy) *xts.Schedule {
	return (*xts.Schedule)(e.keys.Slot(t.slot)[xts.KeySize:])
}

func nodeHalf(slot []byte) *[keyshare.ShareSize]byte {
	return (*[keyshare.ShareSize]byte)(slot[nodeHalfAt:])
}

// isSplit reports whether the key in a slot was mixed of two halves. So an engine
// that took over knows it too.
func isSplit(slot []byte) bool { return !mem.IsZero(slot[nodeHalfAt:]) }
