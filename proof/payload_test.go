package proof

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// TestPayloadFields: a record of each type has the fields that it must have, and
// none that it may not. Each is taken away, and each is given, in turn.
func TestPayloadFields(t *testing.T) {
	index := uint64(3)
	full := Record{V: RecordVersion, NodeID: testNode, NodeSeq: 9, PrevHash: PayloadHash(nil), LeaseID: testLease, OpenSeq: 1, OpenLeafIndex: &index,
		TenantCommit: PayloadHash(nil), Bytes: 1 << 20, Space: []Space{{Drive: testDrive, Extents: []Range{{0, 1}}}}, Cipher: CipherXTS, KeyBits: XTSBits,
		KeyMode: ModeSplit, KeyCommit: PayloadHash(nil), NodeCommit: PayloadHash(nil), ShareCommit: PayloadHash(nil),
		Beacon: &Beacon{testOrigin, 4, strings.Repeat("A", 43) + "=", ZeroHash}, EraseBy: "2026-11-23T12:00:00Z",
		Events: []Event{{EventKeyGenerated, 5, testBoot}}, Drained: true, Claims: []string{ClaimAsserted}, NotClaimed: []string{"x"},
		AnnexDigest: PayloadHash(nil), Result: ResultOK, Level: LevelPurge,
		Keys:     []KeyChange{{Role: RoleNode, New: publicKey(t, testKey("node")).String()}},
		LostNode: &LostNode{testNode, 1, ZeroHash}}
	none := Record{V: RecordVersion, NodeID: testNode, NodeSeq: 9, PrevHash: full.PrevHash}
	for typ, rule := range fieldRules {
		must := strings.Fields(rule.must)
		of := func(names []string) Record {
			r := none
			r.Type = typ
			if typ == NodeLost {
				r.NodeID = OperatorID(publicKey(t, testKey("op")))
			}
			for _, n := range names {
				setField(&r, &full, n)
			}
			if slices.Contains(names, "result") && typ == NodeLost {
				r.Result = ResultLostNode
			}
			if typ == OPEN { // what its mode demands
				r.KeyCommit, r.NodeCommit, r.ShareCommit = full.KeyCommit, full.NodeCommit, full.ShareCommit
			}
			return r
		}
		if _, err := EncodePayload(of(slices.Concat(must, strings.Fields(rule.may)))); err != nil {
			t.Errorf("all fields that it may have: %v", err)
		}
		for name := range full.fields() {
			switch {
			case slices.Contains(must, name):
				rest := slices.DeleteFunc(slices.Clone(must), func(s string) bool { return s == name })
				if _, err := EncodePayload(of(rest)); err == nil {
					t.Errorf("%s without %s is taken", typ, name)
				}
			case !slices.Contains(strings.Fields(rule.may), name):
				if _, err := EncodePayload(of(append(slices.Clone(must), name))); err == nil {
					t.Errorf("%s with %s is taken", typ, name)
				}
			}
		}
	}
}

// setField copies one field by its JSON name.
func setField(to, from *Record, name string) {
	switch name {
	case "leaseId":
		to.LeaseID = from.LeaseID
	case "openSeq":
		to.OpenSeq = from.OpenSeq
	case "openLeafIndex":
		to.OpenLeafIndex = from.OpenLeafIndex
	case "tenantCommit":
		to.TenantCommit = from.TenantCommit
	case "bytes":
		to.Bytes = from.Bytes
	case "space":
		to.Space = from.Space
	case "cipher":
		to.Cipher = from.Cipher
	case "keyBits":
		to.KeyBits = from.KeyBits
	case "keyMode":
		to.KeyMode = from.KeyMode
	case "keyCommit":
		to.KeyCommit = from.KeyCommit
	case "nodeCommit":
		to.NodeCommit = from.NodeCommit
	case "shareCommit":
		to.ShareCommit = from.ShareCommit
	case "beacon":
		to.Beacon = from.Beacon
	case "eraseBy":
		to.EraseBy = from.EraseBy
	case "events":
		to.Events = from.Events
	case "drained":
		to.Drained = from.Drained
	case "claims":
		to.Claims = from.Claims
	case "notClaimed":
		to.NotClaimed = from.NotClaimed
	case "annexDigest":
		to.AnnexDigest = from.AnnexDigest
	case "result":
		to.Result = from.Result
	case "level":
		to.Level = from.Level
	case "keys":
		to.Keys = from.Keys
	case "lostNode":
		to.LostNode = from.LostNode
	default:
		panic("no such field: " + name)
	}
}

// TestPayloadValues: what no field may say.
func TestPayloadValues(t *testing.T) {
	w := newWorld(t)
	good := closeRecord(w, []byte("annex"))
	good.NodeID, good.NodeSeq, good.PrevHash = testNode, 2, PayloadHash(nil)
	if _, err := EncodePayload(good); err != nil {
		t.Fatal(err)
	}
	ranges := func(n int) (out []Range) {
		for i := range n {
			out = append(out, Range{uint32(2 * i), 1})
		}
		return out
	}
	for name, change := range map[string]func(*Record){
		"version 1":                  func(r *Record) { r.V = 1 },
		"an unknown type":            func(r *Record) { r.Type = "SHUT" },
		"a node's id in capitals":    func(r *Record) { r.NodeID = strings.ToUpper(testDrive) },
		"a short node's id":          func(r *Record) { r.NodeID = "07" },
		"an operator's CLOSE":        func(r *Record) { r.NodeID = OperatorPrefix + "0123456789abcdef" },
		"number 0":                   func(r *Record) { r.NodeSeq = 0 },
		"a number beyond JSON's":     func(r *Record) { r.NodeSeq = 1 << 53 },
		"an OPEN that comes later":   func(r *Record) { r.OpenSeq = 2 },
		"a first record with a hash": func(r *Record) { r.NodeSeq, r.OpenSeq = 1, 0 },
		"a lease's id with a slash":  func(r *Record) { r.LeaseID = "aaaaaaaa/aaaaaaa" },
		"a hash that is too short":   func(r *Record) { r.PrevHash = "00" },
		"a commitment in base64":     func(r *Record) { r.KeyCommit = strings.Repeat("z", 64) },
		"an unknown mode":            func(r *Record) { r.KeyMode = "escrow" },
		"an unknown cipher":          func(r *Record) { r.Cipher = "ROT13" },
		"half the key":               func(r *Record) { r.KeyBits = 256 },
		"halves in mode node":        func(r *Record) { r.NodeCommit = r.KeyCommit },
		"a negative size":            func(r *Record) { r.Bytes = -1 },
		"no extents":                 func(r *Record) { r.Space = []Space{{Drive: testDrive}} },
		"an empty range":             func(r *Record) { r.Space = []Space{{Drive: testDrive, Extents: []Range{{1, 0}}}} },
		"a range beyond the end":     func(r *Record) { r.Space = []Space{{Drive: testDrive, Extents: []Range{{1<<32 - 1, 2}}}} },
		"too many pieces":            func(r *Record) { r.Space = []Space{{Drive: testDrive, Extents: ranges(MaxPieces + 1)}} },
		"two commitments of a drive": func(r *Record) {
			r.Space = []Space{testSpace[0], {Drive: testDrive, Extents: []Range{{50, 1}}}}
		},
		"an extent in two pieces": func(r *Record) { r.Space = []Space{{Drive: testDrive, Extents: []Range{{0, 9}, {8, 1}}}} },
		"an unknown event":        func(r *Record) { r.Events[0].Type = "prayed" },
		"an event at no time":     func(r *Record) { r.Events[0].MonotonicNs = 0 },
		"an event on no boot":     func(r *Record) { r.Events[0].BootID = "" },
		"an event twice":          func(r *Record) { r.Events = append(r.Events, r.Events[0]) },
		"a claim that no record can make": func(r *Record) {
			r.Claims = []string{ClaimWitnessed}
		},
		"a claim twice":       func(r *Record) { r.Claims = []string{ClaimAsserted, ClaimAsserted} },
		"a word with a blank": func(r *Record) { r.NotClaimed = []string{"not a word"} },
		"an unknown result":   func(r *Record) { r.Result = "fine" },
		"a beacon of nothing": func(r *Record) { r.Beacon.Size = 0 },
		"a short root":        func(r *Record) { r.Beacon.Root = "AAAA" },
		"no cosignatures":     func(r *Record) { r.Beacon.Digest = "" },
		"an origin with a line end": func(r *Record) {
			r.Beacon.Origin = "a\nb"
		},
		"a deadline in another zone": func(r *Record) { r.EraseBy = "2026-11-23T12:00:00+01:00" },
		"a deadline in fractions":    func(r *Record) { r.EraseBy = "2026-11-23T12:00:00.5Z" },
	} {
		r := closeRecord(w, []byte("annex"))
		r.NodeID, r.NodeSeq, r.PrevHash = good.NodeID, good.NodeSeq, good.PrevHash
		change(&r)
		if _, err := EncodePayload(r); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

// TestPayloadBound: the largest lease there can be fits into a leaf of the log.
func TestPayloadBound(t *testing.T) {
	r := openRecord(newWorld(t))
	r.NodeID, r.NodeSeq, r.PrevHash, r.Space = testNode, maxSeq, PayloadHash(nil), nil
	other := strings.Repeat("b2", 16)
	for i := range MaxPieces { // by turns on two drives: as long as it gets
		s := Space{Drive: testDrive, Commit: PayloadHash(nil), Extents: []Range{{4294967000 - uint32(2*i), 1}}}
		if i%2 == 1 {
			s.Drive = other
		}
		r.Space = append(r.Space, s)
	}
	payload, err := EncodePayload(r)
	if err != nil {
		t.Fatal(err)
	}
	env, err := Sign(payload, testKey("node"), testKey("op"))
	if err != nil {
		t.Fatal(err)
	}
	if len(env) > 65535 {
		t.Errorf("an envelope of %d bytes does not fit into a leaf", len(env))
	}
}

func TestParseTime(t *testing.T) {
	want := time.Date(2026, 2, 28, 23, 59, 59, 0, time.UTC)
	if got, err := ParseTime("2026-02-28T23:59:59Z"); err != nil || !got.Equal(want) {
		t.Errorf("%v, %v", got, err)
	}
	if got := FormatTime(want.Add(999 * time.Millisecond).In(time.FixedZone("x", 3600))); got != "2026-02-28T23:59:59Z" {
		t.Error(got)
	}
	for _, s := range []string{"", "-", "2026-02-29T00:00:00Z", "2026-02-28t23:59:59Z", "2026-02-28T23:59:59z", "2026-02-28T23:59:59+00:00", "2026-02-28T23:59:60Z",
		"2026-02-28T23:59:59,5Z"} {
		if got, err := ParseTime(s); err == nil {
			t.Errorf("%q is taken as %v", s, got)
		}
	}
}
