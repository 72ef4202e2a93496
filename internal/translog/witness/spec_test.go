package witness

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
)

// TestVectors: the cosignature that docs/spec/log/cosignature.json shows is the
// one that is made, and torchwood verifies it.
func TestVectors(t *testing.T) {
	raw, err := os.ReadFile("../../../docs/spec/log/cosignature.json")
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Name        string `json:"name"`
		Seed        string `json:"seed"` // base64
		VerifierKey string `json:"verifierKey"`
		Text        string `json:"text"`
		Time        int64  `json:"time"`
		Line        string `json:"line"`
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	seed, err := base64.StdEncoding.DecodeString(v.Seed)
	if err != nil || len(seed) != ed25519.SeedSize {
		t.Fatalf("seed %q: %v", v.Seed, err)
	}
	k := &key{v.Name, ed25519.NewKeyFromSeed(seed)}
	if got := k.verifier(); got != v.VerifierKey {
		t.Errorf("verifier key %s, want %s", got, v.VerifierKey)
	}
	line := string(k.cosign([]byte(v.Text), time.Unix(v.Time, 0)))
	if line != v.Line {
		t.Errorf("line %q, want %q", line, v.Line)
	}
	verifier, err := torchwood.NewCosignatureVerifier(v.VerifierKey)
	if err != nil {
		t.Fatal(err)
	}
	n, err := note.Open([]byte(v.Text+"\n"+v.Line), note.VerifierList(verifier))
	if err != nil || len(n.Sigs) != 1 {
		t.Fatalf("torchwood: %v", err)
	}
	if at, err := torchwood.CosignatureTimestamp(n.Sigs[0]); err != nil || at != v.Time {
		t.Errorf("torchwood reads the time %d, %v", at, err)
	}
	if _, err := note.Open([]byte(strings.Replace(v.Text, "12", "13", 1)+"\n"+v.Line), note.VerifierList(verifier)); err == nil {
		t.Error("torchwood verifies another text")
	}
}
