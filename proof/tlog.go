package proof

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

// tlogProofHeader is the first line of a C2SP tlog-proof.
const tlogProofHeader = "c2sp.org/tlog-proof@v1"

// A TlogProof shows that a leaf is in a log (C2SP tlog-proof), and can be
// checked without the log. The format's line "extra" is refused: nobody signs it, so
// nothing may be read out of it.
type TlogProof struct {
	Index      uint64            // of the leaf, from 0
	Path       [][32]byte        // from the leaf's sibling up to the root's child
	Checkpoint *SignedCheckpoint // whose tree the path leads to
}

// ParseTlogProof decodes a proof from its one text form, and verifies nothing.
// Beyond what [ParseCheckpoint] refuses: an extra line, an index with a leading
// zero, more hashes than a tree can be deep.
func ParseTlogProof(text []byte) (*TlogProof, error) {
	if len(text) > maxNote+64*45 {
		return nil, fmt.Errorf("a proof of inclusion has %d bytes, which is more than any can have", len(text))
	}
	head, note, ok := bytes.Cut(text, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	if !ok || lines[0] != tlogProofHeader || len(lines) < 2 {
		return nil, fmt.Errorf("a proof of inclusion does not start with %q and an index", tlogProofHeader)
	}
	if strings.HasPrefix(lines[1], "extra") {
		return nil, errors.New("a proof of inclusion has an extra line, which nobody signed")
	}
	number, ok := strings.CutPrefix(lines[1], "index ")
	if !ok {
		return nil, fmt.Errorf("a proof of inclusion has %q where its index should be", shorten(lines[1]))
	}
	index, err := parseDecimal(number)
	if err != nil {
		return nil, fmt.Errorf("reading the index of a proof of inclusion: %w", err)
	}
	path, err := parseHashes(lines[2:], maxProofPath)
	if err != nil {
		return nil, fmt.Errorf("reading a proof of inclusion: %w", err)
	}
	c, err := ParseCheckpoint(note)
	if err != nil {
		return nil, err
	}
	p := &TlogProof{Index: index, Path: path, Checkpoint: c}
	if !bytes.Equal(p.Marshal(), text) {
		return nil, errors.New("a proof of inclusion is not in its one form")
	}
	return p, nil
}

// Marshal encodes the proof.
func (p *TlogProof) Marshal() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\nindex %d\n", tlogProofHeader, p.Index)
	for _, h := range p.Path {
		fmt.Fprintf(&b, "%s\n", base64.StdEncoding.EncodeToString(h[:]))
	}
	b.WriteByte('\n')
	b.Write(p.Checkpoint.Marshal())
	return b.Bytes()
}

// VerifyInclusion checks that a leaf with this hash is at index in the tree of c.
// A tree of no leaves has none.
func VerifyInclusion(c Checkpoint, index uint64, leaf [32]byte, path [][32]byte) error {
	err := proof.VerifyInclusion(rfc6962.DefaultHasher, index, c.Size, leaf[:], slices32(path), c.Root[:])
	return treeError(err, "the leaf is not at index %d in the tree of %d leaves of %s", index, c.Size, c.Origin)
}

// VerifyConsistency checks that the tree of older is the beginning of the tree
// of newer. Both have to be of one log. The empty tree is refused as older: it is the
// beginning of every tree, which says nothing.
func VerifyConsistency(older, newer Checkpoint, path [][32]byte) error {
	switch {
	case older.Origin != newer.Origin:
		return fmt.Errorf("checkpoints are of two logs, %s and %s", older.Origin, newer.Origin)
	case older.Size == 0:
		return errors.New("a tree of no leaves is the beginning of every tree, and says nothing")
	case older.Size > newer.Size:
		return fmt.Errorf("a tree of %d leaves cannot be the beginning of one of %d", older.Size, newer.Size)
	}
	err := proof.VerifyConsistency(rfc6962.DefaultHasher, older.Size, newer.Size, slices32(path), older.Root[:], newer.Root[:])
	return treeError(err, "the tree of %d leaves of %s is not the beginning of the one of %d", older.Size, older.Origin, newer.Size)
}

// ParseConsistency decodes the hashes of a consistency proof, each in
// canonical base64.
func ParseConsistency(hashes []string) ([][32]byte, error) {
	return parseHashes(hashes, maxConsist)
}

func parseHashes(lines []string, most int) ([][32]byte, error) {
	if len(lines) > most {
		return nil, fmt.Errorf("%d hashes are more than the %d that a proof can have", len(lines), most)
	}
	var hs [][32]byte
	for i, s := range lines {
		h, err := parseHash(s)
		if err != nil {
			return nil, fmt.Errorf("reading hash %d: %w", i+1, err)
		}
		hs = append(hs, h)
	}
	return hs, nil
}

// treeError says in our words what did not fit: the library prints hashes as
// lists of numbers.
func treeError(err error, format string, args ...any) error {
	var root proof.RootMismatchError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &root):
		return fmt.Errorf(format+": the hashes lead to another root", args...)
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}

func slices32(hs [][32]byte) [][]byte {
	out := make([][]byte, len(hs))
	for i := range hs {
		out[i] = hs[i][:]
	}
	return out
}
