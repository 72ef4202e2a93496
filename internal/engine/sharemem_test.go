package engine

import (
	"bytes"
	"crypto/sha3"
	"fmt"
	"os"
	"testing"

	"vacate/internal/ipc"
	"vacate/internal/keyshare"
	"vacate/internal/nbdclient"
	"vacate/internal/secret"
	"vacate/internal/volatile"
)

// The recipient key of the engine's process, for which the test has to know it: the
// exclusive or of these, which the process makes in the key's own place.
var seedParts = [2][keyshare.SeedSize]byte{seedPart(3), seedPart(101)}

func seedPart(k byte) (p [keyshare.SeedSize]byte) {
	for i := range p {
		p[i] = k*byte(i) ^ 7*k + byte(i*i)
	}
	return p
}

func knownSeed(s *keyshare.Seed) {
	for i := range s {
		s[i] = seedParts[0][i] ^ seedParts[1][i]
	}
}

// seedNeedles are a recipient key and what it is expanded to (X-Wing: SHAKE-256 of
// the seed is that of ML-KEM, and X25519's scalar).
func seedNeedles() map[string][]byte {
	var s keyshare.Seed
	knownSeed(&s)
	expanded := sha3.SumSHAKE256(s[:], 96)
	n := parts("seed", s[:])
	for name, part := range parts("expanded seed", expanded) {
		n[name] = part
	}
	return n
}

// parts are the pieces of a secret, as they lie there and as SHA-2 loads them: words of
// four or eight bytes, each turned round.
func parts(name string, b []byte) map[string][]byte {
	n := map[string][]byte{}
	for at := 0; at+16 <= len(b); at += 16 {
		part := b[at : at+16]
		n[fmt.Sprintf("%s[%d:]", name, at)] = part
		for _, word := range []int{4, 8} {
			turned := make([]byte, len(part))
			for i := range part {
				turned[i] = part[i-i%word+word-1-i%word]
			}
			n[fmt.Sprintf("%s[%d:] in words of %d", name, at, word)] = turned
		}
	}
	return n
}

// TestL2SharesLeaveNothing: while a lease is prepared, its recipient key lies in its
// place and nowhere else in the engine; after it was opened with a share, and its key
// was released, neither recipient key nor halves nor key lie anywhere but in the key's
// slot. The bug plant.ShareLeft makes this fail.
func TestL2SharesLeaveNothing(t *testing.T) {
	if !secret.Enabled() {
		if os.Getenv("CI") != "" {
			t.Fatal(secret.Why())
		}
		t.Skip(secret.Why())
	}
	p := startProcess(t)
	_, uuid := p.drive()
	req := request(7, uuid, 0)
	var prepared ipc.LeasePrepared
	p.call(ipc.MethodLeasePrepare, ipc.LeaseRef{Lease: req.Lease}, &prepared, nil)
	seed := seedNeedles()
	found := p.search(seed)
	if len(found) != 2 { // the two parts of it as it lies there
		t.Errorf("P1: a recipient key lies at %q, want its own place alone", found)
	}

	share := new([keyshare.ShareSize]byte)
	keyshare.NewShare(share)
	sealed, err := keyshare.SealShare(prepared.Recipient, req.Lease, share)
	check(t, err)
	req.Share, req.Hold = &ipc.Share{Prepared: req.Lease, Sealed: sealed}, true
	var opened ipc.LeaseOpened
	f, socket := p.host.listen()
	p.call(ipc.MethodLeaseOpen, req, &opened, f)
	slot := p.keys.Slot(req.Slot)
	needles := seed
	for _, secrets := range []map[string][]byte{
		parts("tenant's half", share[:]), parts("node's half", bytes.Clone(nodeHalf(slot)[:])),
		parts("key", bytes.Clone(slot[:keyshare.KeySize])), keyNeedles(slot),
	} {
		for name, needle := range secrets {
			needles[name] = needle
		}
	}
	clean := func(when string) {
		t.Helper()
		if found := p.search(needles); len(found) > 0 {
			t.Errorf("L2: %s the engine holds: %q", when, found)
		}
	}
	clean("when a lease was opened with a share")
	p.call(ipc.MethodLeaseServe, ipc.LeaseRef{Lease: req.Lease}, new(ipc.Empty), nil)
	c, _ := dial(t, socket, nbdclient.Options{NoBlockSize: true})
	check(t, c.WriteFlags(make([]byte, 100_000), 0, 0))
	clean("when it is served")

	var mine keyshare.Seed
	mine.Fill()
	public, err := mine.Public()
	check(t, err)
	var released ipc.LeaseReleased
	p.call(ipc.MethodLeaseRelease, ipc.LeaseReleaseRequest{Lease: req.Lease, Recipient: public}, &released, nil)
	clean("when its key was released")
	r, err := mine.OpenRelease(req.Lease, released.Sealed)
	check(t, err)
	check(t, r.Check(req.Lease, commitments(&opened), share))

	all := bytes.Join(func() (slots [][]byte) {
		for i := range volatile.Slots {
			slots = append(slots, p.keys.Slot(i))
		}
		return slots
	}(), nil)
	inKeys, err := searchIn(bytes.NewReader(all), "the keys", keyNeedles(slot))
	check(t, err)
	if len(inKeys) != len(keyNeedles(slot)) {
		t.Errorf("control: the search finds %d parts of the key in its slot", len(inKeys))
	}
	p.call(ipc.MethodLeaseClose, ipc.LeaseRef{Lease: req.Lease}, new(ipc.Erasure), nil)
	clean("after the close")
	if !p.keys.Empty(req.Slot) {
		t.Error("L5: the slot is not empty")
	}
}

// TestL2CommitmentLeavesNothing: also in a build that does not clear the heap, a key
// that is committed to lies nowhere but in its slot, as it is and as SHA-256 loads it.
func TestL2CommitmentLeavesNothing(t *testing.T) {
	p := startProcess(t)
	_, uuid := p.drive()
	for i := range 4 {
		req := request(i, uuid, uint32(i))
		p.open(req)
		if found := p.search(parts("key", bytes.Clone(p.keys.Slot(i)[:keyshare.KeySize]))); len(found) > 0 {
			t.Errorf("L2: when lease %d was opened the engine holds: %q", i, found)
		}
	}
}
