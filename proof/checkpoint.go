package proof

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Bounds of what is read of a log.
const (
	maxNote       = 16 << 10 // bytes of a signed checkpoint
	maxNoteLines  = 64       // signature lines of one; C2SP tlog-policy asks for 32 witnesses at least
	maxNoteName   = 255      // bytes of a key's name, which is also a log's origin
	maxProofPath  = 64       // hashes of an inclusion proof
	maxConsist    = 128      // hashes of a consistency proof
	maxTreeSize   = 1<<63 - 1
	maxCosignTime = 1<<63 - 1 // C2SP tlog-cosignature
)

// Signature types of C2SP signed-note, the first byte of a key.
const (
	algEd25519     = 0x01 // a log's
	algCosignature = 0x04 // a witness's: Ed25519 cosignature/v1
)

// A Checkpoint is the head of a log's tree as a log signed it (C2SP
// tlog-checkpoint). Extension lines are refused: no log of ours writes any, and
// nothing here could say what they mean.
type Checkpoint struct {
	Origin   string        // the log's name, first line of the checkpoint
	Size     uint64        // leaves in the tree
	Root     [32]byte      // RFC 6962 root hash of the tree
	Cosigned []Cosignature // of witnesses that a policy names, verified
}

// A Cosignature is what one witness says of a checkpoint: at Time, this was the
// largest tree of the log that it had seen, and all that it had seen before
// was part of it (C2SP tlog-cosignature, Ed25519 cosignature/v1).
type Cosignature struct {
	Witness string    // its name in the policy
	Time    time.Time // UTC, whole seconds, by the witness's clock
}

// A SignedCheckpoint is a checkpoint with its signature lines, decoded but not
// verified: nothing in it may be believed before [Policy.CheckLog] and
// [Policy.CheckWitnesses] have said so.
type SignedCheckpoint struct {
	Checkpoint
	text []byte // what is signed, with its last newline
	sigs []noteSignature
}

// Beacon is the checkpoint as a record names it: with all its signature lines, which
// have to be those that a certificate will carry ([Policy.CanonicalCheckpoint]).
func (c *SignedCheckpoint) Beacon() Beacon {
	return Beacon{Origin: c.Origin, Size: c.Size, Root: base64.StdEncoding.EncodeToString(c.Root[:]), Digest: PayloadHash(c.Marshal())}
}

// A noteSignature is a line "— name base64(id ‖ bytes)" of a signed note.
type noteSignature struct {
	name  string
	id    uint32
	bytes []byte
}

// ParseCheckpoint decodes a signed checkpoint. There is one form of each:
// carriage returns, leading zeros, base64 that is not canonical, extension lines
// and anything after the last signature are refused, by encoding what was
// read and comparing.
func ParseCheckpoint(note []byte) (*SignedCheckpoint, error) {
	if len(note) > maxNote {
		return nil, fmt.Errorf("a signed checkpoint has %d bytes, %d are allowed", len(note), maxNote)
	}
	text, lines, ok := bytes.Cut(note, []byte("\n\n"))
	if !ok || len(lines) == 0 {
		return nil, errors.New("a signed checkpoint has no empty line before its signatures")
	}
	c := &SignedCheckpoint{text: append(bytes.Clone(text), '\n')}
	if err := c.parseText(string(text)); err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(lines)) {
		if len(c.sigs) == maxNoteLines {
			return nil, fmt.Errorf("a checkpoint has more than %d signatures", maxNoteLines)
		}
		s, err := parseNoteSignature(line)
		if err != nil {
			return nil, fmt.Errorf("reading signature %d of a checkpoint: %w", len(c.sigs)+1, err)
		}
		c.sigs = append(c.sigs, s)
	}
	if !bytes.Equal(c.Marshal(), note) {
		return nil, errors.New("a signed checkpoint is not in its one form")
	}
	return c, nil
}

func (c *SignedCheckpoint) parseText(text string) error {
	origin, rest, _ := strings.Cut(text, "\n")
	size, root, _ := strings.Cut(rest, "\n")
	if !validKeyName(origin) {
		return fmt.Errorf("origin %q of a checkpoint is no name of a log", shorten(origin))
	}
	n, err := parseDecimal(size)
	if err != nil {
		return fmt.Errorf("reading the size of a checkpoint: %w", err)
	}
	h, err := parseHash(root)
	if err != nil {
		return fmt.Errorf("reading the root of a checkpoint: %w", err)
	}
	c.Origin, c.Size, c.Root = origin, n, h
	return nil
}

func parseNoteSignature(line string) (noteSignature, error) {
	name, b64, ok := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(line, "— "), "\n"), " ")
	if !ok || !validKeyName(name) {
		return noteSignature{}, fmt.Errorf("line %q has no name", shorten(line))
	}
	b, err := base64.StdEncoding.Strict().DecodeString(b64)
	if err != nil || len(b) < 5 {
		return noteSignature{}, fmt.Errorf("line of %q has no signature in base64", shorten(name))
	}
	return noteSignature{name: name, id: binary.BigEndian.Uint32(b), bytes: b[4:]}, nil
}

// Marshal encodes the checkpoint as it was signed, with its signature lines.
func (c *SignedCheckpoint) Marshal() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n%d\n%s\n\n", c.Origin, c.Size, base64.StdEncoding.EncodeToString(c.Root[:]))
	for _, s := range c.sigs {
		raw := binary.BigEndian.AppendUint32(nil, s.id)
		fmt.Fprintf(&b, "— %s %s\n", s.name, base64.StdEncoding.EncodeToString(append(raw, s.bytes...)))
	}
	return b.Bytes()
}

// A noteKey is a key of a log or a witness, in C2SP signed-note's text form:
// name+id+base64(type ‖ key). Of a witness, the id is that of type 0x04, and a key of
// type 0x01 is refused rather than taken for one: it is another key's id, and
// its holder never said that it watches a log.
type noteKey struct {
	name string
	id   uint32
	alg  byte
	key  ed25519.PublicKey
}

// parseNoteKey decodes a key of the given type from its one text form.
func parseNoteKey(vkey string, alg byte) (noteKey, error) {
	name, rest, _ := strings.Cut(vkey, "+")
	id, b64, _ := strings.Cut(rest, "+")
	raw, err := base64.StdEncoding.Strict().DecodeString(b64)
	if err != nil || !validKeyName(name) || len(raw) == 0 {
		return noteKey{}, fmt.Errorf("key %q has not the form name+id+base64", shorten(vkey))
	}
	if raw[0] != alg {
		return noteKey{}, fmt.Errorf("key of %q has type %#02x, not %#02x: a log signs with 0x01, a witness with 0x04", name, raw[0], alg)
	}
	if len(raw) != 1+ed25519.PublicKeySize {
		return noteKey{}, fmt.Errorf("key of %q has %d bytes, not %d", name, len(raw)-1, ed25519.PublicKeySize)
	}
	k := newNoteKey(name, alg, raw[1:])
	if fmt.Sprintf("%08x", k.id) != id {
		return noteKey{}, fmt.Errorf("key of %q has the id %08x, not %q", name, k.id, shorten(id))
	}
	return k, nil
}

func newNoteKey(name string, alg byte, key []byte) noteKey {
	h := sha256.New()
	h.Write([]byte(name + "\n"))
	h.Write([]byte{alg})
	h.Write(key)
	return noteKey{name: name, id: binary.BigEndian.Uint32(h.Sum(nil)), alg: alg, key: key}
}

func (k noteKey) String() string {
	return fmt.Sprintf("%s+%08x+%s", k.name, k.id, base64.StdEncoding.EncodeToString(append([]byte{k.alg}, k.key...)))
}

// made reports whether the line bears the name and id of the key.
func (k noteKey) made(s noteSignature) bool { return s.name == k.name && s.id == k.id }

// verify checks a log's signature over the text of a checkpoint.
func (k noteKey) verify(text []byte, s noteSignature) error {
	if len(s.bytes) != ed25519.SignatureSize || !ed25519.Verify(k.key, text, s.bytes) {
		return fmt.Errorf("the signature of %s is wrong", k.name)
	}
	return nil
}

// verifyCosignature checks a witness's line and returns its time.
func (k noteKey) verifyCosignature(text []byte, s noteSignature) (time.Time, error) {
	if len(s.bytes) != 8+ed25519.SignatureSize {
		return time.Time{}, fmt.Errorf("the cosignature of %s has %d bytes, not %d", k.name, len(s.bytes), 8+ed25519.SignatureSize)
	}
	t := binary.BigEndian.Uint64(s.bytes)
	if t > maxCosignTime || !ed25519.Verify(k.key, cosigned(t, text), s.bytes[8:]) {
		return time.Time{}, fmt.Errorf("the cosignature of %s is wrong", k.name)
	}
	return time.Unix(int64(t), 0).UTC(), nil
}

// cosigned is what a witness signs at t, in seconds of POSIX time. It does not
// name the witness, so one key must never stand for two of them.
func cosigned(t uint64, text []byte) []byte {
	return append(fmt.Appendf(nil, "cosignature/v1\ntime %d\n", t), text...)
}

// validKeyName is C2SP signed-note's rule for names, with a bound.
func validKeyName(s string) bool {
	return s != "" && len(s) <= maxNoteName && utf8.ValidString(s) && !strings.Contains(s, "+") &&
		strings.IndexFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) < 0
}

// parseDecimal reads a number that is written in the only way: no sign, no
// leading zero.
func parseDecimal(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%q is not a number in its shortest form below 2^63", shorten(s))
	}
	return n, nil
}

// parseHash reads a SHA-256 in canonical base64.
func parseHash(s string) (h [32]byte, err error) {
	// DecodeString skips line breaks wherever they are: the length refuses them.
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(h) || len(s) != 44 {
		return h, fmt.Errorf("%q is not a hash of 32 bytes in base64", shorten(s))
	}
	return [32]byte(b), nil
}

// shorten makes a text from outside fit for a message.
func shorten(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
