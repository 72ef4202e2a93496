package proof

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write the vectors of docs/spec/proof anew")

// vectors are what docs/spec/proof/vectors.json has: inputs and what becomes of
// them. Keys and salts are made from names, as "how" says.
type vectors struct {
	How     string        `json:"how"`
	Commits []commitCase  `json:"commitments"`
	Keys    []keyCase     `json:"keys"`
	Records []recordCase  `json:"records"`
	Refused []refusedCase `json:"refusedPayloads"`

	Prepared        preparedCase  `json:"prepared"`
	RefusedPrepared []refusedCase `json:"refusedPrepared"` // by policy and time of prepared
}

type commitCase struct {
	Name  string   `json:"name"`
	Parts []string `json:"parts"` // hexadecimal, in order
	Hash  string   `json:"hash"`
}

type keyCase struct {
	Seed  string `json:"seed"` // of Ed25519, hexadecimal
	Text  string `json:"text"`
	KeyID string `json:"keyId"`
}

type recordCase struct {
	Name     string          `json:"name"`
	Payload  json.RawMessage `json:"payload"`
	Hash     string          `json:"payloadHash"`
	Envelope json.RawMessage `json:"envelope"`
	Leaf     string          `json:"leafHash"`
}

type refusedCase struct {
	Why     string `json:"why"`
	Payload string `json:"payload"` // base64
}

func buildVectors(t *testing.T) vectors {
	w, _ := goodBundle(t)
	v := vectors{How: "seed of a key: SHA-256(\"vacate test key \" + name); the keys here are node and op"}
	hexes := func(parts ...[]byte) (out []string) {
		for _, p := range parts {
			out = append(out, hex.EncodeToString(p))
		}
		return out
	}
	salt35, salt32, key := salted("key", KeySaltLen), salted("tenant", SaltLen), salted("secret", KeyLen)
	id := []byte(testLease)
	v.Commits = []commitCase{
		{"keyCommit", hexes([]byte("vacate/key/v1"), id, salt35, key), KeyCommit(testLease, salt35, key)},
		{"tenantCommit", hexes([]byte("vacate/tenant/v1"), id, salt32, []byte(testTenant)), TenantCommit(testLease, salt32, testTenant)},
		{"driveCommit", hexes([]byte("vacate/drive/v1"), []byte(testDrive), salt32, []byte("nvme\x00M\x00S-1")), DriveCommit(testDrive, salt32, "nvme", "M", "S-1")},
		{"nodeCommit", hexes([]byte("vacate/share/v1"), []byte("node"), id, salt32, key), ShareCommit(HalfNode, testLease, salt32, key)},
		{"shareCommit", hexes([]byte("vacate/share/v1"), []byte("tenant"), id, salt32, key), ShareCommit(HalfTenant, testLease, salt32, key)},
	}
	for _, name := range []string{"node", "op"} {
		k := publicKey(t, testKey(name))
		v.Keys = append(v.Keys, keyCase{hex.EncodeToString(testKey(name).Seed()), k.String(), k.KeyID()})
	}
	op := publicKey(t, testKey("op"))
	w.add(Record{Type: RESIZE, LeaseID: testLease, OpenSeq: 1, Bytes: 7 << 20, Space: []Space{{testDrive, testSpace[0].Commit, []Range{{10, 5}, {0, 2}}}}})
	w.add(Record{Type: KeyReleased, LeaseID: testLease, OpenSeq: 1, Events: []Event{{EventKeyReleased, 8, testBoot}}})
	w.add(Record{Type: ENROL, Bytes: 100 << 20, Space: []Space{{testDrive, testSpace[0].Commit, []Range{{0, 100}}}}, NotClaimed: []string{"purged_before"}})
	w.add(Record{Type: SANITIZE, Bytes: 100 << 20, Space: []Space{{testDrive, "", []Range{{0, 100}}}}, Level: LevelDestroy, Result: ResultOK})
	w.add(Record{Type: RETIRE, Bytes: 100 << 20, Space: []Space{{testDrive, "", []Range{{0, 100}}}}})
	w.add(Record{Type: KEYS, Keys: []KeyChange{{RoleNode, publicKey(t, testKey("node")).String(), op.String()}}}, testKey("node"), testKey("op"))
	w.addAs(Record{Type: NodeLost, NodeID: OperatorID(op), NodeSeq: 1, PrevHash: ZeroHash, LostNode: &LostNode{testNode, w.seq, w.prev}}, testKey("op"))
	for _, env := range w.envelope {
		e := mustParse(t, env)
		r, err := ParsePayload(e.Payload)
		if err != nil {
			t.Fatal(err)
		}
		leaf := LeafHash(env)
		v.Records = append(v.Records, recordCase{string(r.Type), e.Payload, PayloadHash(e.Payload), env, hex.EncodeToString(leaf[:])})
	}
	good := []byte(v.Records[0].Payload)
	edit := func(why, from, to string) {
		bad := bytes.Replace(good, []byte(from), []byte(to), 1)
		if bytes.Equal(bad, good) {
			t.Fatalf("%s: %q is not in the payload", why, from)
		}
		v.Refused = append(v.Refused, refusedCase{why, base64.StdEncoding.EncodeToString(bad)})
	}
	edit("a key twice", `"drained":false`, `"drained":true,"drained":false`)
	edit("a key in other case", `"drained":false`, `"Drained":false`)
	edit("an unknown field", `"drained":false`, `"drained":false,"extra":1`)
	edit("a blank", `"v":2,`, `"v":2, `)
	edit("fields in another order", `"v":2,"type":"OPEN"`, `"type":"OPEN","v":2`)
	edit("an escape that need not be", `"type":"OPEN"`, `"type":"\u004fPEN"`)
	edit("a number written otherwise", `"nodeSeq":1`, `"nodeSeq":1.0`)
	edit("null for an empty list", `"subject":[`, `"subject":null,"x":[`)
	edit("another version", `"v":2`, `"v":3`)
	edit("another predicate", `record:v2`, `record:v3`)
	edit("another subject", `"name":"lease/aaaa`, `"name":"lease/bbbb`)
	edit("a field of another type of record", `"drained":false`, `"drained":true`)
	edit("a range with three numbers", `[10,5]`, `[10,5,1]`)
	edit("an extent twice", `[0,1]`, `[14,1]`)
	edit("hexadecimal digits in capitals", `"driveCommit":"`+testSpace[0].Commit[:2], `"driveCommit":"`+string(bytes.ToUpper([]byte("ab"))))
	v.Refused = append(v.Refused, refusedCase{"a byte behind the end", base64.StdEncoding.EncodeToString(append(bytes.Clone(good), '\n'))})
	v.Prepared, v.RefusedPrepared = buildPrepared(t)
	return v
}

const vectorFile = "../docs/spec/proof/vectors.json"

// TestSpecVectors: docs/spec/proof has what this package makes, and this package
// takes it and nothing near it.
func TestSpecVectors(t *testing.T) {
	want := buildVectors(t)
	if *update {
		writeIndented(t, vectorFile, want)
	}
	raw, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	var got vectors
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	for i := range got.Records { // the file is indented, for people
		got.Records[i].Payload, got.Records[i].Envelope = compacted(t, got.Records[i].Payload), compacted(t, got.Records[i].Envelope)
	}
	got.Prepared.Payload, got.Prepared.Envelope = compacted(t, got.Prepared.Payload), compacted(t, got.Prepared.Envelope)
	if a, b := encoded(t, got), encoded(t, want); !bytes.Equal(a, b) {
		t.Fatalf("%s is not what this package makes, from byte %d on (go test ./proof -run TestSpecVectors -update)", vectorFile, firstDifference(a, b))
	}
	for _, c := range got.Refused {
		b, err := base64.StdEncoding.DecodeString(c.Payload)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParsePayload(b); err == nil {
			t.Errorf("%s is taken", c.Why)
		}
	}
	for _, k := range got.Keys {
		seed, err := hex.DecodeString(k.Seed)
		if err != nil {
			t.Fatal(err)
		}
		p, err := ParsePublicKey(k.Text)
		if err != nil || p != publicKey(t, ed25519.NewKeyFromSeed(seed)) || p.KeyID() != k.KeyID {
			t.Errorf("key %s: %v", k.Text, err)
		}
	}
	checkPrepared(t, got.Prepared, got.RefusedPrepared)
	if len(got.Records) != 9 || len(got.Refused) < 16 {
		t.Errorf("%d records and %d refused payloads", len(got.Records), len(got.Refused))
	}
}

// TestSpecBundle: the bundle, policy and receipt beside the vectors verify.
func TestSpecBundle(t *testing.T) {
	w, b := goodBundle(t)
	receipt, err := testReceipt(w).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]byte{"bundle.json": marshalled(t, b), "policy": w.policy(), "receipt.json": receipt} {
		path := filepath.Join(filepath.Dir(vectorFile), name)
		if *update {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what this package makes: %v", path, err)
		}
	}
	opened, err := ParseReceipt(receipt)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(marshalled(t, b), w.policy(), Options{Opened: opened}); err != nil {
		t.Error(err)
	}
}

func compacted(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func writeIndented(t *testing.T, path string, v any) {
	t.Helper()
	b := encoded(t, v)
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", " "); err != nil {
		t.Fatal(err)
	}
	out.WriteByte('\n')
	if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}
