package proof

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func preparedWorld(t *testing.T) (key ed25519.PrivateKey, policy *Policy, now time.Time) {
	t.Helper()
	key = ed25519.NewKeyFromSeed(make([]byte, 32))
	pub, err := NewPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	policy, err = ParsePolicy([]byte("quorum none\nnode " + preparedNode + " " + pub.String() + " 2026-01-01T00:00:00Z 2027-01-01T00:00:00Z\n"))
	if err != nil {
		t.Fatal(err)
	}
	return key, policy, time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
}

const preparedNode = "00112233445566778899aabbccddeeff"

// TestPrepared: what the node signed comes back; every bit that is changed, and
// everything that is not its own, is refused.
func TestPrepared(t *testing.T) {
	key, policy, now := preparedWorld(t)
	recipient := []byte(strings.Repeat("k", 1216))
	payload, err := EncodePrepared(preparedNode, "aaaabbbbccccdddd", recipient, now.Add(10*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := Sign(payload, key)
	if err != nil {
		t.Fatal(err)
	}
	got, gotKey, err := policy.OpenPrepared(signed, now)
	if err != nil || got.LeaseID != "aaaabbbbccccdddd" || string(gotKey) != string(recipient) || got.ExpiresAt != "2026-06-01T12:10:00Z" {
		t.Fatalf("opened %+v, %v", got, err)
	}
	for i := range signed {
		bad := append([]byte{}, signed...)
		bad[i] ^= 1
		if _, _, err := policy.OpenPrepared(bad, now); err == nil {
			t.Fatalf("a changed bit in byte %d was taken", i)
		}
	}
	if _, _, err := policy.OpenPrepared(signed, now.Add(11*time.Minute)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("after its end: %v", err)
	}
	if _, _, err := policy.OpenPrepared(signed, now.AddDate(1, 0, 0)); err == nil || !strings.Contains(err.Error(), "not valid now") {
		t.Errorf("after the key's end: %v", err)
	}
	other, err := Sign(payload, ed25519.NewKeyFromSeed([]byte(strings.Repeat("x", 32))))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := policy.OpenPrepared(other, now); !errors.Is(err, ErrNotSigned) {
		t.Errorf("signed by another: %v", err)
	}
	// A record of the node's, signed by the same key, is no prepared lease.
	wrong, err := Sign([]byte(strings.Replace(string(payload), PreparedType, PredicateType, 1)), key)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := policy.OpenPrepared(wrong, now); err == nil {
		t.Error("another kind of statement was taken")
	}
}

func TestPreparedBounds(t *testing.T) {
	_, _, now := preparedWorld(t)
	for _, tt := range []struct {
		node, lease string
		recipient   []byte
	}{
		{"", "aaaabbbbccccdddd", []byte("k")},
		{preparedNode, "short", []byte("k")},
		{preparedNode, "aaaabbbbccccdddd", nil},
		{preparedNode, "aaaabbbbccccdddd", make([]byte, maxRecipient+1)},
	} {
		if _, err := EncodePrepared(tt.node, tt.lease, tt.recipient, now); err == nil {
			t.Errorf("%q, %q, %d bytes: taken", tt.node, tt.lease, len(tt.recipient))
		}
	}
}

// A preparedCase is a prepared lease, and what opens it.
type preparedCase struct {
	Policy    string          `json:"policy"`
	Now       string          `json:"now"`
	Recipient string          `json:"recipient"` // base64
	Payload   json.RawMessage `json:"payload"`
	Envelope  json.RawMessage `json:"envelope"`
}

func buildPrepared(t *testing.T) (good preparedCase, refused []refusedCase) {
	now := testTime
	recipient := salted("recipient", 48)
	payload, err := EncodePrepared(testNode, testLease, recipient, now.Add(10*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	sign := func(payload []byte, key string) []byte {
		env, err := Sign(payload, testKey(key))
		if err != nil {
			t.Fatal(err)
		}
		return env
	}
	good = preparedCase{Now: FormatTime(now), Recipient: base64.StdEncoding.EncodeToString(recipient), Payload: payload, Envelope: sign(payload, "node"),
		Policy: fmt.Sprintf("quorum none\nnode %s %s - -\noperator op %s - -\n", testNode, publicKey(t, testKey("node")), publicKey(t, testKey("op")))}
	refuse := func(why string, envelope []byte) {
		refused = append(refused, refusedCase{why, base64.StdEncoding.EncodeToString(envelope)})
	}
	// Each is signed by the node, whatever it says.
	edit := func(why, from, to string) {
		bad := strings.Replace(string(payload), from, to, 1)
		if bad == string(payload) {
			t.Fatalf("%s: %q is not in the payload", why, from)
		}
		refuse(why, sign([]byte(bad), "node"))
	}
	refuse("signed by the operator", sign(payload, "op"))
	refuse("signed by nobody whom the policy names", sign(payload, "mallory"))
	edit("another version", `"v":1`, `"v":2`)
	edit("a predicate of a record", PreparedType, PredicateType)
	edit("a node that the policy does not name", `"nodeId":"07`, `"nodeId":"08`)
	edit("another lease than the subject's", `"leaseId":"aaaa`, `"leaseId":"bbbb`)
	refuse("a lease's id that is none", sign([]byte(strings.ReplaceAll(string(payload), testLease, "1"+testLease[1:])), "node"))
	edit("another key than the subject's", `"recipient":"`+good.Recipient[:4], `"recipient":"AAAA`)
	edit("no key", `"recipient":"`+good.Recipient, `"recipient":"`)
	edit("a time in fractions", `:10:00Z`, `:10:00.5Z`)
	edit("expired", FormatTime(now.Add(10*time.Minute)), FormatTime(now.Add(-time.Second)))
	edit("an unknown field", `"v":1`, `"v":1,"x":1`)
	edit("a blank", `"v":1,`, `"v":1, `)
	refuse("a byte behind the end", append(sign(payload, "node"), '\n'))
	return good, refused
}

// checkPrepared opens the vectors as a tenant would.
func checkPrepared(t *testing.T, good preparedCase, refused []refusedCase) {
	t.Helper()
	policy, err := ParsePolicy([]byte(good.Policy))
	if err != nil {
		t.Fatal(err)
	}
	now, err := ParseTime(good.Now)
	if err != nil {
		t.Fatal(err)
	}
	d, key, err := policy.OpenPrepared(good.Envelope, now)
	if err != nil || base64.StdEncoding.EncodeToString(key) != good.Recipient || d.LeaseID != testLease {
		t.Errorf("opened %+v, %v", d, err)
	}
	for _, c := range refused {
		envelope, err := base64.StdEncoding.DecodeString(c.Payload)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := policy.OpenPrepared(envelope, now); err == nil {
			t.Errorf("%s: it is taken", c.Why)
		}
	}
	if len(refused) < 14 {
		t.Errorf("%d refused", len(refused))
	}
}

func FuzzOpenPrepared(f *testing.F) {
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	payload, err := EncodePrepared(preparedNode, "aaaabbbbccccdddd", []byte("recipient"), now)
	if err != nil {
		f.Fatal(err)
	}
	signed, err := Sign(payload, key)
	if err != nil {
		f.Fatal(err)
	}
	pub, err := NewPublicKey(key.Public())
	if err != nil {
		f.Fatal(err)
	}
	policy, err := ParsePolicy([]byte("quorum none\nnode " + preparedNode + " " + pub.String() + " - -\n"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, _, err := policy.OpenPrepared(b, now)
		if err == nil && d.LeaseID != "aaaabbbbccccdddd" {
			t.Errorf("opened what was never signed: %+v", d)
		}
	})
}
