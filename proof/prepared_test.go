package proof

import (
	"crypto/ed25519"
	"errors"
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
