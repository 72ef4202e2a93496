package engine

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/ipc"
	"vacate/internal/keyshare"
	"vacate/internal/nbdclient"
	"vacate/internal/secret"
	"vacate/internal/xts"
)

// guardless has an engine take shares in any build: how they are cleared is
// TestL2SharesLeaveNothing's business.
func guardless(c *Config) { c.unguarded = true }

func (h *host) prepare(id string) (*ipc.LeasePrepared, error) {
	h.t.Helper()
	return do[ipc.LeasePrepared](h, ipc.MethodLeasePrepare, ipc.LeaseRef{Lease: id}, nil)
}

// sealed prepares a lease and seals a share for it, as its tenant does.
func (h *host) sealed(id string) (*ipc.Share, *[keyshare.ShareSize]byte) {
	h.t.Helper()
	p, err := h.prepare(id)
	check(h.t, err)
	share := new([keyshare.ShareSize]byte)
	keyshare.NewShare(share)
	b, err := keyshare.SealShare(p.Recipient, id, share)
	check(h.t, err)
	return &ipc.Share{Prepared: id, Sealed: b}, share
}

func commitments(o *ipc.LeaseOpened) keyshare.Commitments {
	return keyshare.Commitments{Key: o.KeyCommit, KeySalt: o.KeySalt, Node: o.NodeCommit, NodeSalt: o.NodeSalt, Share: o.ShareCommit, ShareSalt: o.ShareSalt}
}

// release has the key of a lease released to a key pair made for that.
func (h *host) release(id string) (*keyshare.Released, error) {
	h.t.Helper()
	var seed keyshare.Seed
	seed.Fill()
	public, err := seed.Public()
	check(h.t, err)
	r, err := do[ipc.LeaseReleased](h, ipc.MethodLeaseRelease, ipc.LeaseReleaseRequest{Lease: id, Recipient: public}, nil)
	if err != nil {
		return nil, err
	}
	return seed.OpenRelease(id, r.Sealed)
}

// TestShare: a lease that is opened with a tenant's share has the key that is mixed
// of both halves, commits to both, and releases what the tenant can check, also by an
// engine that took over.
func TestShare(t *testing.T) {
	h := newHost(t, guardless)
	_, uuid := h.drive(h.dir)
	req := request(4, uuid, 0)
	var mine *[keyshare.ShareSize]byte
	req.Share, mine = h.sealed(req.Lease)
	_, opened, err := h.openHeld(req)
	check(t, err)
	slot := h.keeper.keys.Slot(req.Slot)
	var want [keyshare.KeySize]byte
	check(t, keyshare.Mix(&want, nodeHalf(slot), mine, req.Lease))
	if opened.KeyMode != ipc.KeyModeSplit || !bytes.Equal(slot[:keyshare.KeySize], want[:]) {
		t.Errorf("the key is not mixed of both halves: %+v", opened)
	}
	_, err = h.release(req.Lease)
	wantCode(t, err, ipc.CodeBusy) // it is held
	check(t, h.serve(req.Lease))
	for _, when := range []string{"at first", "after a take-over"} {
		r, err := h.release(req.Lease)
		check(t, err)
		if err := r.Check(req.Lease, commitments(opened), mine); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		h.restart()
	}
	_, err = h.close(req.Lease)
	check(t, err)
	if !h.keeper.keys.Empty(req.Slot) {
		t.Error("L5: the node's half is there after the close")
	}
	_, err = h.release(req.Lease)
	wantCode(t, err, ipc.CodeNotFound)
}

// TestReleaseOfNode: a key that the node made alone is released without a half.
func TestReleaseOfNode(t *testing.T) {
	h := newHost(t, guardless)
	_, uuid := h.drive(h.dir)
	_, opened, err := h.openAnswer(request(1, uuid, 0), 1)
	check(t, err)
	r, err := h.release(leaseID(1))
	check(t, err)
	if err := r.Check(leaseID(1), commitments(opened), nil); err != nil || r.Split {
		t.Errorf("split: %v, %v", r.Split, err)
	}
	_, err = do[ipc.LeaseReleased](h, ipc.MethodLeaseRelease, ipc.LeaseReleaseRequest{Lease: leaseID(1), Recipient: []byte("none")}, nil)
	wantCode(t, err, ipc.CodeInvalid)
	_, err = do[ipc.LeaseReleased](h, ipc.MethodLeaseRelease, ipc.LeaseReleaseRequest{Lease: leaseID(1), Recipient: bytes.Repeat([]byte{255}, keyshare.RecipientSize)}, nil)
	wantCode(t, err, ipc.CodeInvalid)
	_, err = h.release(leaseID(2))
	wantCode(t, err, ipc.CodeNotFound)
}

// preparedBytes are the memory of recipient keys.
func (h *host) preparedBytes() []byte {
	h.prepared.mu.Lock()
	defer h.prepared.mu.Unlock()
	if h.prepared.region == nil {
		return nil
	}
	return bytes.Clone(h.prepared.region.Bytes())
}

// TestSharesAreUsedOnce: a recipient key is destroyed with the first attempt to use
// it, when it is made anew, and when it is too old; what was sealed to it opens
// nothing any more. What fails leaves no key.
func TestSharesAreUsedOnce(t *testing.T) {
	h := newHost(t, guardless)
	_, uuid := h.drive(h.dir)
	open := func(req ipc.LeaseOpenRequest) error {
		_, _, err := h.openHeld(req)
		return err
	}
	gone := func(after string) {
		t.Helper()
		if b := h.preparedBytes(); !bytes.Equal(b, make([]byte, len(b))) || b == nil {
			t.Errorf("P2: after %s, there is a recipient key", after)
		}
	}
	req := request(0, uuid, 0)
	req.Share, _ = h.sealed(req.Lease)
	before := *req.Share
	if b := h.preparedBytes(); bytes.Equal(b, make([]byte, len(b))) {
		t.Fatal("control: no recipient key is found")
	}
	req.Share, _ = h.sealed(req.Lease) // prepared anew
	now := *req.Share
	req.Share = &before
	wantCode(t, open(req), ipc.CodeInvalid)
	gone("a share for the key before")
	req.Share = &now
	wantCode(t, open(req), ipc.CodeNotFound)

	req.Share, _ = h.sealed(req.Lease)
	other := request(1, uuid, 1)
	other.Share = req.Share
	wantCode(t, open(other), ipc.CodeNotFound) // prepared for another
	bad := *req.Share
	bad.Sealed = bytes.Clone(bad.Sealed)
	bad.Sealed[7] ^= 1
	good := req.Share
	req.Share = &bad
	wantCode(t, open(req), ipc.CodeInvalid)
	gone("a share that was changed")
	req.Share = good
	wantCode(t, open(req), ipc.CodeNotFound)
	if !h.keeper.keys.Empty(req.Slot) {
		t.Error("an opening that failed left a key")
	}

	req.Share, _ = h.sealed(req.Lease)
	check(t, open(req))
	gone("an opening")
	_, err := h.prepare(req.Lease)
	wantCode(t, err, ipc.CodeBusy)
	_, err = h.prepare("no lease")
	wantCode(t, err, ipc.CodeInvalid)

	old := request(2, uuid, 2)
	old.Share, _ = h.sealed(old.Lease)
	h.prepared.mu.Lock()
	l := h.prepared.byLease[old.Lease]
	l.expires = 1
	h.prepared.byLease[old.Lease] = l
	h.prepared.mu.Unlock()
	wantCode(t, open(old), ipc.CodeNotFound)
	gone("ten minutes")

	old.Share, _ = h.sealed(old.Lease)
	h.restart() // P3
	eventually(t, "the drive", func() bool { return len(h.openDrives()) == 1 })
	wantCode(t, open(old), ipc.CodeNotFound)
}

// TestPreparedAreBounded: more leases than that are not prepared at once.
func TestPreparedAreBounded(t *testing.T) {
	h := newHost(t, guardless)
	for i := range maxPrepared {
		_, err := h.prepare(leaseID(i))
		check(t, err)
	}
	_, err := h.prepare(leaseID(maxPrepared))
	wantCode(t, err, ipc.CodeBusy)
	_, err = h.prepare(leaseID(5)) // in place of its own
	check(t, err)
}

// TestSharesNeedSecret: an engine whose cryptography leaves keys on the heap handles
// none of a tenant's, and says why. One whose does not, does.
func TestSharesNeedSecret(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	h.open(request(0, uuid, 0))
	_, err := h.prepare(leaseID(1))
	_, err2 := h.release(leaseID(0))
	if secret.Enabled() {
		if err := errors.Join(err, err2); err != nil {
			t.Error(err)
		}
		return
	}
	for _, err := range []error{err, err2} {
		wantCode(t, err, ipc.CodeRefused)
		if !strings.Contains(err.Error(), secret.Why()) {
			t.Errorf("it does not say why: %v", err)
		}
	}
}

func (h *host) raw(id string, blocks ...uint64) ([][]byte, error) {
	h.t.Helper()
	r, err := do[ipc.LeaseRaw](h, ipc.MethodLeaseRaw, ipc.LeaseRawRequest{Lease: id, Blocks: blocks}, nil)
	if err != nil {
		return nil, err
	}
	return r.Blocks, nil
}

// TestL4RawBlocks: the raw blocks of a lease are its ciphertext, in the order that was
// asked for, and nothing where it has not written, whatever the drive holds there.
func TestL4RawBlocks(t *testing.T) {
	for name, folderOf := range map[string]func(*host) string{
		"memory": func(h *host) string { return h.dir },
		"disk":   func(h *host) string { return folder(t, "") },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			path, uuid := h.enrolled(folderOf(h))
			_, err := h.openDriveAt(path, uuid, 1, 1)
			check(t, err)
			// What an earlier tenant left is there, all over.
			before := request(0, uuid, 0)
			c, _ := dial(t, h.open(before), nbdclient.Options{NoBlockSize: true})
			check(t, c.WriteFlags(bytes.Repeat([]byte{9}, 1<<20), 0, 0))
			_, err = h.close(before.Lease)
			check(t, err)
			h.drained(before.Lease)

			req := request(1, uuid, 0)
			c, _ = dial(t, h.open(req), nbdclient.Options{NoBlockSize: true})
			plain := bytes.Repeat([]byte("tenant 1"), 3*blk.BlockSize/8)
			check(t, c.WriteFlags(plain, 7*blk.BlockSize, 0))
			raw, err := h.raw(req.Lease, 9, 0, 7, 10, 8)
			check(t, err)
			var sched xts.Schedule
			check(t, sched.Expand((*[xts.KeySize]byte)(h.keeper.keys.Slot(req.Slot))))
			for i, n := range []uint64{9, 0, 7, 10, 8} {
				if written := n >= 7 && n < 10; (len(raw[i]) == blk.BlockSize) != written || len(raw[i]) != 0 && !written {
					t.Fatalf("L4: block %d, written: %v, has %d raw bytes", n, written, len(raw[i]))
				} else if written {
					got := make([]byte, blk.BlockSize)
					sched.Decrypt(got, raw[i], blk.BlockSize, n)
					if !bytes.Equal(got, plain[(n-7)*blk.BlockSize:][:blk.BlockSize]) || bytes.Contains(raw[i], []byte("tenant 1")) {
						t.Errorf("block %d is not what was written, encrypted: %x…", n, raw[i][:16])
					}
				}
			}
			for _, blocks := range [][]uint64{nil, {uint64(req.SizeBytes / blk.BlockSize)}, make([]uint64, ipc.MaxRawBlocks+1)} {
				_, err := h.raw(req.Lease, blocks...)
				wantCode(t, err, ipc.CodeInvalid)
			}
			_, err = h.raw(req.Lease, make([]uint64, ipc.MaxRawBlocks)...)
			check(t, err)
			_, err = h.close(req.Lease)
			check(t, err)
			_, err = h.raw(req.Lease, 7)
			wantCode(t, err, ipc.CodeNotFound)
			_, err = h.raw(leaseID(9), 7)
			wantCode(t, err, ipc.CodeNotFound)
		})
	}
}

// TestRawHoldsTheSpace: a lease that is closed while it is read raw is erased at once,
// the reading ends early (law L1), and the space is given back when it has.
func TestRawHoldsTheSpace(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	req := request(1, uuid, 0)
	c, _ := dial(t, h.open(req), nbdclient.Options{NoBlockSize: true})
	check(t, c.WriteFlags(make([]byte, 1<<20), 0, 0))
	tenancy, _, err := h.lease(req.Lease)
	check(t, err)
	// As a reading that hangs has begun.
	if !tenancy.resizing.CompareAndSwap(false, true) {
		t.Fatal("it is being resized")
	}
	space, from, err := h.rawSource(tenancy, []uint64{0})
	check(t, err)
	if got, err := readRaw(tenancy, space, from, []uint64{0}); err != nil || len(got.Blocks[0]) != blk.BlockSize {
		t.Fatalf("it reads %v, %v", got, err)
	}
	_, err = h.raw(req.Lease, 0)
	wantCode(t, err, ipc.CodeBusy)
	er, err := h.close(req.Lease)
	if err != nil || !er.ReadBack {
		t.Fatalf("L5: a reading keeps the key: %+v, %v", er, err)
	}
	select {
	case <-tenancy.gone:
		t.Error("the space was given back while it was read")
	case <-time.After(30 * time.Millisecond):
	}
	_, err = readRaw(tenancy, space, from, []uint64{0})
	wantCode(t, err, ipc.CodeNotFound)
	tenancy.counting.Done()
	h.drained(req.Lease)
}
