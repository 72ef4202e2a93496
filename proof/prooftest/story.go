package prooftest

import (
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"vacate/proof"
)

// A Story is what happens to one lease. The zero Story is a good one: opened,
// closed, its key destroyed. Its hooks damage it before anything is signed.
type Story struct {
	Mode     proof.KeyMode // "" is node
	Result   string        // of the CLOSE; "" is ok
	Resized  bool
	Released bool // the key is released to the tenant
	Rotated  bool // the node's key is
	Lost     bool // it ends with a NODE_LOST
	Measured bool // there are TPM quotes of OPEN and CLOSE
	Complete bool // a person adds to the annex
	Few      bool // too few witnesses had cosigned the beacons when they were named
	Between  int  // somebody's leaves between the records

	Drive proof.Type // it is of a drive, not of a lease: ENROL, SANITIZE (to purge), RETIRE

	Record  func(w *World, r *proof.Record)                         // before a record is encoded
	Payload func(r proof.Record, b []byte) []byte                   // before a payload is signed
	Annex   func(a *proof.Annex)                                    // before the annex is hashed
	Signers func(r proof.Record, s []crypto.Signer) []crypto.Signer // who signs instead
	Attest  func(r proof.Record, attest []byte) []byte              // before a quote is signed
}

// A Certificate is how a story ended.
type Certificate struct {
	World   *World
	Records []Logged // those of the bundle
	Bundle  *proof.Bundle
	Policy  []byte
	Receipt *proof.Receipt
	Key     []byte // of the lease
}

// Bytes is the bundle's file. It panics where the bundle has no form.
func (c *Certificate) Bytes() []byte {
	b, err := c.Bundle.Marshal()
	if err != nil {
		panic(err)
	}
	return b
}

// Kinds are good stories of every kind, by name.
func Kinds() map[string]Story {
	return map[string]Story{
		"ok":          {},
		"failed":      {Result: proof.ResultFailed},
		"split":       {Mode: proof.ModeSplit},
		"tenant":      {Mode: proof.ModeTenant},
		"resized":     {Resized: true, Between: 3},
		"released":    {Released: true},
		"rotated":     {Rotated: true, Between: 1},
		"measured":    {Measured: true},
		"completed":   {Complete: true},
		"few":         {Few: true},
		"lost_keeper": {Result: proof.ResultLostKeeper},
		"lost_boot":   {Result: proof.ResultLostBoot},
		"lost_engine": {Result: proof.ResultLostEngine},
		"lost_drive":  {Result: proof.ResultLostDrive},
		"lost_node":   {Lost: true, Resized: true},
		"enrolled":    {Drive: proof.ENROL},
		"sanitized":   {Drive: proof.SANITIZE},
		"retired":     {Drive: proof.RETIRE},
	}
}

// Tell makes the story happen in a new world.
func Tell(s Story) *Certificate {
	w := &World{}
	w.Fill(5)
	return s.In(w)
}

// In makes the story happen in a world that has at least one leaf, on node 1.
func (s Story) In(w *World) *Certificate {
	t := &teller{Story: s, w: w, c: &Certificate{World: w, Policy: Policy(), Key: Bytes("K", proof.KeyLen)}, signer: Key("node1")}
	t.beacons = append(t.beacons, len(w.Leaves)-1)
	annex := t.tell()
	t.c.Bundle = w.Bundle(t.c.Records, annex, t.beacons...)
	for i, n := range t.beacons {
		t.c.Bundle.Beacons[i].Checkpoint = w.Checkpoint(n, t.seen()...)
	}
	if s.Measured {
		for _, l := range t.c.Records {
			if l.Record.Type == proof.OPEN || l.Record.Type == proof.CLOSE {
				t.c.Bundle.Quotes = append(t.c.Bundle.Quotes, t.quote(l))
			}
		}
	}
	if s.Complete {
		t.complete()
	}
	if s.Drive != "" {
		return t.c
	}
	t.c.Receipt = &proof.Receipt{V: proof.ReceiptVersion, Envelope: t.c.Records[0].Envelope, Salts: salts(t.mode()), Tenant: Tenant}
	return t.c
}

// tell makes the records and returns the annex.
func (t *teller) tell() []byte {
	if t.Drive != "" {
		return t.drive()
	}
	t.log(t.open())
	t.middle()
	return t.end()
}

// drive is the record of a drive, with its annex.
func (t *teller) drive() []byte {
	a := NewAnnex(proof.ModeTenant, proof.ResultFailed)
	a.LeaseID, a.Tenant, a.Salts, a.OpenedAt = "", "", proof.Salts{}, ""
	s := Space()
	s[0].Extents = []proof.Range{{First: 0, Count: 100}}
	r := proof.Record{Type: t.Drive, NodeID: Node1, Bytes: 100 << 20, Space: s, Beacon: t.w.Beacon(t.beacons[0], t.seen()...), Claims: []string{proof.ClaimAsserted}}
	if t.Drive == proof.SANITIZE {
		a.Device = append(a.Device, Purged())
		r.Level, r.Result = proof.LevelPurge, proof.ResultOK
		r.Claims = append(r.Claims, proof.ClaimDevicePurged)
		r.Events = []proof.Event{{Type: proof.EventSanitized, MonotonicNs: 30, BootID: Boot1}}
	}
	annex := t.digest(&a, &r)
	t.log(r)
	return annex
}

// digest encodes an annex for a record.
func (t *teller) digest(a *proof.Annex, r *proof.Record) []byte {
	if t.Annex != nil {
		t.Annex(a)
	}
	annex, err := proof.Encode(*a)
	if err != nil {
		panic(err)
	}
	sum := sha256.Sum256(annex)
	r.AnnexDigest = hex.EncodeToString(sum[:])
	return annex
}

type teller struct {
	Story
	w       *World
	c       *Certificate
	signer  crypto.Signer
	beacons []int
	open1   proof.Record // the OPEN as it was logged
}

// seen are the witnesses that had cosigned when a record was made.
func (t *teller) seen() []string {
	if t.Few {
		return Witnesses[:1]
	}
	return Witnesses
}

func (t *teller) mode() proof.KeyMode {
	if t.Mode == "" {
		return proof.ModeNode
	}
	return t.Mode
}

// log numbers, signs and logs a record, and lets the hooks at it.
func (t *teller) log(r proof.Record, by ...crypto.Signer) {
	r.V = proof.RecordVersion
	r = t.w.Next(r)
	if t.Record != nil {
		t.Record(t.w, &r)
	}
	payload, err := proof.EncodePayload(r)
	if err != nil {
		panic(err)
	}
	if t.Payload != nil {
		payload = t.Payload(r, payload)
	}
	if len(by) == 0 {
		by = []crypto.Signer{t.signer}
	}
	if t.Signers != nil {
		by = t.Signers(r, by)
	}
	t.c.Records = append(t.c.Records, t.w.LogPayload(r, payload, by...))
	if r.Type == proof.OPEN {
		t.open1 = r
	}
	t.w.Fill(t.Between)
}

func salts(mode proof.KeyMode) proof.Salts {
	s := proof.Salts{Tenant: hex.EncodeToString(Bytes("tenant", proof.SaltLen))}
	if mode != proof.ModeTenant {
		s.Key = hex.EncodeToString(Bytes("key", proof.KeySaltLen))
	}
	if mode == proof.ModeSplit {
		s.Node, s.Share = hex.EncodeToString(Bytes("node", proof.SaltLen)), hex.EncodeToString(Bytes("share", proof.SaltLen))
	}
	return s
}

// Space is the space that a lease is opened with.
func Space() []proof.Space {
	return []proof.Space{{Drive: Drive1, Commit: proof.DriveCommit(Drive1, Bytes("drive", proof.SaltLen), "nvme", "M-1", "S-1"),
		Extents: []proof.Range{{First: 10, Count: 5}, {First: 0, Count: 1}}}}
}

// Larger is what it has when it was resized.
func Larger() []proof.Space {
	s := Space()
	s[0].Extents = []proof.Range{{First: 10, Count: 5}, {First: 0, Count: 3}}
	return s
}

// Opening is an OPEN as node 1 would make it, but for number and beacon.
func Opening(mode proof.KeyMode) proof.Record {
	r := proof.Record{Type: proof.OPEN, NodeID: Node1, LeaseID: Lease1, Bytes: 6 << 20, Space: Space(),
		Cipher: proof.CipherXTS, KeyBits: proof.XTSBits, KeyMode: mode,
		TenantCommit: proof.TenantCommit(Lease1, Bytes("tenant", proof.SaltLen), Tenant),
		EraseBy:      proof.FormatTime(Start.AddDate(0, 0, 1)),
		Events:       []proof.Event{{Type: proof.EventKeyGenerated, MonotonicNs: 5, BootID: Boot1}},
		Claims:       []string{proof.ClaimAsserted}, NotClaimed: []string{"device_purged", "guest_memory"}}
	if mode != proof.ModeTenant {
		r.KeyCommit = proof.KeyCommit(Lease1, Bytes("key", proof.KeySaltLen), Bytes("K", proof.KeyLen))
		r.Claims = append(r.Claims, proof.ClaimKeyCommitted)
	}
	if mode == proof.ModeSplit {
		r.NodeCommit = proof.ShareCommit(proof.HalfNode, Lease1, Bytes("node", proof.SaltLen), Bytes("half of the node", 64))
		r.ShareCommit = proof.ShareCommit(proof.HalfTenant, Lease1, Bytes("share", proof.SaltLen), Bytes("half of the tenant", 64))
		r.Claims = append(r.Claims, proof.ClaimTenantShare)
	}
	return r
}

// Closing is the CLOSE of an OPEN that was logged at an index.
func Closing(open proof.Record, index int, result string) proof.Record {
	at := uint64(index)
	r := open
	r.Type, r.OpenSeq, r.OpenLeafIndex, r.Result, r.Drained, r.Beacon = proof.CLOSE, open.NodeSeq, &at, result, true, nil
	gate := proof.Event{Type: proof.EventGateClosed, MonotonicNs: 10, BootID: Boot1}
	gone := proof.Event{Type: proof.EventKeyDestroyed, MonotonicNs: 12, BootID: Boot1}
	switch result {
	case proof.ResultOK, proof.ResultLostEngine, proof.ResultLostDrive:
		r.Events = append(append([]proof.Event{}, open.Events...), gate, gone)
	}
	return r
}

func (t *teller) open() proof.Record {
	r := Opening(t.mode())
	r.Beacon = t.w.Beacon(t.beacons[0], t.seen()...)
	if t.Measured {
		r.Claims = append(r.Claims, proof.ClaimMeasured)
	}
	return r
}

// middle is what happens between OPEN and CLOSE.
func (t *teller) middle() {
	open := t.open1
	if t.Resized {
		t.log(proof.Record{Type: proof.RESIZE, NodeID: Node1, LeaseID: Lease1, OpenSeq: open.NodeSeq, Bytes: 8 << 20, Space: Larger()})
	}
	if t.Released {
		t.log(proof.Record{Type: proof.KeyReleased, NodeID: Node1, LeaseID: Lease1, OpenSeq: open.NodeSeq,
			Events: []proof.Event{{Type: proof.EventKeyReleased, MonotonicNs: 8, BootID: Boot1}}})
	}
	if t.Rotated {
		next := Key("node1, rotated")
		t.log(proof.Record{Type: proof.KEYS, NodeID: Node1,
			Keys: []proof.KeyChange{{Role: proof.RoleNode, Old: Text(t.signer), New: Text(next)}}}, t.signer, next)
		t.signer = next
	}
}

// end closes the lease and returns the annex, nil where there is none.
func (t *teller) end() []byte {
	if t.Lost {
		last := t.c.Records[len(t.c.Records)-1]
		h := sha256.Sum256(last.Payload)
		op, err := proof.NewPublicKey(Key("operator").Public())
		if err != nil {
			panic(err)
		}
		t.log(proof.Record{Type: proof.NodeLost, NodeID: proof.OperatorID(op), Claims: []string{proof.ClaimAsserted},
			LostNode: &proof.LostNode{NodeID: Node1, LastSeq: last.Record.NodeSeq, LastHash: fmt.Sprintf("%x", h)}}, Key("operator"))
		return nil
	}
	result := t.Result
	if result == "" {
		result = proof.ResultOK
	}
	a := NewAnnex(t.mode(), result)
	r := Closing(t.open1, t.c.Records[0].Index, result)
	if t.Resized {
		r.Bytes, r.Space = 8<<20, Larger()
	}
	if t.Released {
		r.Claims = []string{proof.ClaimAsserted}
	}
	annex := t.digest(&a, &r)
	n := len(t.w.Leaves)
	r.Beacon = t.w.Beacon(n, t.seen()...)
	t.beacons = append(t.beacons, n)
	t.log(r)
	return annex
}

func (t *teller) complete() {
	last := t.c.Records[len(t.c.Records)-1]
	h := sha256.Sum256(last.Payload)
	c := proof.Completion{V: 1, LeaseID: Lease1, Closing: hex.EncodeToString(h[:]), Role: proof.RoleEntered,
		Person: proof.Person{Name: "Ann", Title: "auditor"}, Date: proof.FormatTime(Start.AddDate(0, 0, 2)),
		Fields: []proof.Entered{{Path: "media.0.propertyNumber", Value: "P-1"}}}
	env, err := proof.SignCompletion(c, Key("ann"))
	if err != nil {
		panic(err)
	}
	t.c.Bundle.Completions = append(t.c.Bundle.Completions, env)
}
