package keyring

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/mod/sumdb/note"

	"vacate/internal/durable"
	"vacate/proof"
)

// maxKeyFile bounds what is read of a key's file, in bytes.
const maxKeyFile = 4096

// A file is what is written of one key (docs/spec/keyring.md), in the canonical
// JSON of package proof.
type file struct {
	V       int    `json:"v"`
	Role    Role   `json:"role"`
	Place   string `json:"place"`            // PlaceFile or PlaceTPM
	Name    string `json:"name,omitempty"`   // of a log
	Public  string `json:"public"`           // as [Info.Public]
	Since   string `json:"since"`            // RFC 3339, UTC
	FromSeq uint64 `json:"fromSeq"`          // the first record that it signs; 0 where that is not settled
	Secret  string `json:"secret,omitempty"` // base64 of an Ed25519 seed
	Blob    string `json:"blob,omitempty"`   // name of the file that the TPM can load
}

// A key is one that can sign.
type key struct {
	file
	signer crypto.Signer
	since  time.Time
}

// newKey makes a key and writes it to path.
func (k *Keyring) newKey(role Role, name string) (*key, error) {
	f := file{V: 1, Role: role, Place: k.place(role), Name: name, Since: k.opt.Clock().UTC().Format(time.RFC3339)}
	var signer crypto.Signer
	switch f.Place {
	case PlaceTPM:
		var id [8]byte
		rand.Read(id[:]) //nolint:errcheck // never fails (crypto/rand)
		f.Blob = fmt.Sprintf("%s-%x.tpm", role, id)
		var err error
		if signer, err = k.opt.TPM(filepath.Join(k.dir, f.Blob)); err != nil {
			return nil, fmt.Errorf("making the %s key in the TPM: %w", role, err)
		}
	default:
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		signer, f.Secret = private, base64.StdEncoding.EncodeToString(private.Seed())
	}
	public, err := publicText(role, name, signer)
	if err != nil {
		return nil, err
	}
	f.Public = public
	return f.key(signer)
}

func (f file) key(signer crypto.Signer) (*key, error) {
	since, err := time.Parse(time.RFC3339, f.Since)
	if err != nil {
		return nil, err
	}
	return &key{file: f, signer: signer, since: since}, nil
}

// write puts the key into the folder under the name, durably.
func (k *Keyring) write(name string, f file) error {
	b, err := proof.Encode(f)
	if err != nil {
		return err
	}
	return durable.Write(filepath.Join(k.dir, name), append(b, '\n'), 0o600)
}

// ReadOperator reads an operator's key from its file, for what is signed on
// another machine than the node's. A key in a TPM cannot be carried away: load
// opens it, and may be nil.
func ReadOperator(path string, load TPM) (crypto.Signer, error) {
	k, err := readKey(path, load)
	if err != nil {
		return nil, err
	}
	if k.Role != Operator {
		return nil, fmt.Errorf("%s holds the key of a %s, not of an operator", path, k.Role)
	}
	return k.signer, nil
}

// readKey reads a key's file.
func readKey(path string, load TPM) (*key, error) {
	b, mode, err := durable.Read(path, maxKeyFile)
	if err != nil {
		return nil, err
	}
	if mode.Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %#o, others can read the key: run `chmod 0600 %s`, and rotate it", path, mode.Perm(), path)
	}
	f, err := parseFile(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: put a copy back, or move it away and give tenants a new policy", path, err)
	}
	var signer crypto.Signer
	if f.Place == PlaceTPM {
		if load == nil {
			return nil, fmt.Errorf("%s is the handle of a key in a TPM, and there is none here", path)
		}
		if signer, err = load(filepath.Join(filepath.Dir(path), f.Blob)); err != nil {
			return nil, fmt.Errorf("loading the %s key into the TPM: %w", f.Role, err)
		}
	} else {
		seed, err := base64.StdEncoding.Strict().DecodeString(f.Secret)
		if err != nil || len(seed) != ed25519.SeedSize {
			return nil, fmt.Errorf("%s: the secret is not %d bytes in base64", path, ed25519.SeedSize)
		}
		signer = ed25519.NewKeyFromSeed(seed)
		clear(seed)
	}
	public, err := publicText(f.Role, f.Name, signer)
	if err != nil {
		return nil, err
	}
	if public != f.Public {
		return nil, fmt.Errorf("%s: its public key belongs to another secret", path)
	}
	return f.key(signer)
}

// parseFile decodes a key's file, strictly. What it holds is checked by readKey.
func parseFile(b []byte) (file, error) {
	if len(b) == 0 || b[len(b)-1] != '\n' {
		return file{}, fmt.Errorf("key's file has no end")
	}
	f, err := proof.Decode[file](b[:len(b)-1])
	if err != nil {
		return file{}, err
	}
	_, timeErr := time.Parse(time.RFC3339, f.Since)
	switch {
	case f.V != 1:
		return file{}, fmt.Errorf("key's file has version %d, which is unknown", f.V)
	case f.Role != Node && f.Role != Operator && f.Role != Log:
		return file{}, fmt.Errorf("key's file has the unknown role %.20q", f.Role)
	case timeErr != nil:
		return file{}, fmt.Errorf("key's file: since: %w", timeErr)
	case f.Place == PlaceFile && (f.Blob != "" || f.Secret == ""),
		f.Place == PlaceTPM && (f.Secret != "" || f.Blob == "" || f.Blob != filepath.Base(f.Blob)),
		f.Place != PlaceFile && f.Place != PlaceTPM:
		return file{}, fmt.Errorf("key's file does not say where the key lies")
	case (f.Role == Log) != (f.Name != ""):
		return file{}, fmt.Errorf("key's file: a log's key has a name, and no other")
	}
	return f, nil
}

// publicText is the text form of a public key: of a log, that of signed notes.
func publicText(role Role, name string, s crypto.Signer) (string, error) {
	if role != Log {
		pub, err := proof.NewPublicKey(s.Public())
		return pub.String(), err
	}
	pub, ok := s.Public().(ed25519.PublicKey)
	if !ok {
		return "", fmt.Errorf("logs sign with Ed25519, not %T", s.Public())
	}
	return note.NewEd25519VerifierKey(name, pub)
}

// A noteSigner signs checkpoints (C2SP signed-note, type 0x01).
type noteSigner struct {
	name string
	hash uint32
	key  crypto.Signer
}

// noteSigner returns the signer of a log's key.
func (k *key) noteSigner() note.Signer {
	h := sha256.New()
	h.Write([]byte(k.Name + "\n\x01"))
	h.Write(k.signer.Public().(ed25519.PublicKey))
	return &noteSigner{k.Name, binary.BigEndian.Uint32(h.Sum(nil)), k.signer}
}

// Name implements [note.Signer].
func (s *noteSigner) Name() string { return s.name }

// KeyHash implements [note.Signer].
func (s *noteSigner) KeyHash() uint32 { return s.hash }

// Sign implements [note.Signer].
func (s *noteSigner) Sign(msg []byte) ([]byte, error) {
	return s.key.Sign(rand.Reader, msg, crypto.Hash(0))
}
