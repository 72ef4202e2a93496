package witness

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"vacate/internal/durable"
)

// Of C2SP tlog-cosignature, "Ed25519 signatures".
const (
	algCosignature = 0x04
	header         = "cosignature/v1\ntime "
)

// A key signs what a witness saw.
type key struct {
	name    string
	private ed25519.PrivateKey
}

const (
	keyFile = "key.pem"
	pemType = "VACATE WITNESS KEY" // header Name, and the 32 bytes of an Ed25519 seed
)

// openKey reads the key in dir. It is made where there is none and the witness
// is fresh: a witness that has a state and lost its key has lost its name too.
func openKey(dir, name string, fresh bool) (*key, error) {
	if !validName(name) {
		return nil, fmt.Errorf("a witness cannot be named %q: take a name without blanks and +, such as \"witness.example/1\"", name)
	}
	path := filepath.Join(dir, keyFile)
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && fresh:
		return makeKey(path, name)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("the witness's key %s is gone, its state is there: bring the key back, or start with an empty folder and another name", path)
	case err != nil:
		return nil, fmt.Errorf("reading the witness's key: %w", err)
	case !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("the witness's key %s has mode %v, others can reach it: run `chmod 0600 %s`", path, info.Mode(), path)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the witness's key: %w", err)
	}
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != pemType || len(block.Bytes) != ed25519.SeedSize {
		return nil, fmt.Errorf("reading the witness's key: %s holds none", path)
	}
	if was := block.Headers["Name"]; was != name {
		return nil, fmt.Errorf("the witness in %s is named %q, not %q: start it with its name, or another one in another folder", dir, was, name)
	}
	return &key{name, ed25519.NewKeyFromSeed(block.Bytes)}, nil
}

// makeKey makes a key and its file, durable.
func makeKey(path, name string) (*key, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: pemType, Headers: map[string]string{"Name": name}, Bytes: private.Seed()})
	if text == nil {
		return nil, fmt.Errorf("a witness cannot be named %q", name)
	}
	if err := durable.Write(path, text, 0o600); err != nil {
		return nil, fmt.Errorf("writing the witness's key: %w", err)
	}
	return &key{name, private}, nil
}

// validName is what C2SP signed-note says of a key's name, and a PEM header can hold.
func validName(s string) bool {
	return s != "" && len(s) <= 255 && utf8.ValidString(s) && !strings.Contains(s, "+") &&
		strings.IndexFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) < 0
}

// id is the key's id: of its name, its type and its public half (C2SP signed-note).
func (k *key) id() uint32 {
	h := sha256.New()
	h.Write([]byte(k.name + "\n"))
	h.Write(k.public())
	return binary.BigEndian.Uint32(h.Sum(nil))
}

func (k *key) public() []byte {
	return append([]byte{algCosignature}, k.private.Public().(ed25519.PublicKey)...)
}

func (k *key) verifier() string {
	return fmt.Sprintf("%s+%08x+%s", k.name, k.id(), base64.StdEncoding.EncodeToString(k.public()))
}

// cosign returns the line that is added to a checkpoint with this text.
func (k *key) cosign(text []byte, at time.Time) []byte {
	t := uint64(at.Unix())
	sig := binary.BigEndian.AppendUint32(nil, k.id())
	sig = binary.BigEndian.AppendUint64(sig, t)
	sig = append(sig, ed25519.Sign(k.private, fmt.Appendf(nil, "%s%d\n%s", header, t, text))...)
	return fmt.Appendf(nil, "— %s %s\n", k.name, base64.StdEncoding.EncodeToString(sig))
}
