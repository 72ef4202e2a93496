package proof

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// maxDocument bounds any document that [Decode] takes, in bytes.
const maxDocument = 1 << 20

// ErrForm is wrapped by every error that says that bytes are not in their one
// form: a duplicate or case-folded key, an unknown field, a blank, bytes after
// the end, base64 or hexadecimal digits that could be written otherwise.
var ErrForm = errors.New("not in its one form")

// Encode returns the one form of a document of this package: JSON without
// blanks and without a line's end, fields in the order of their type, nothing
// escaped but ", \, control characters, U+2028 and U+2029
// (docs/spec/certificate.md). It fails where v has no JSON.
func Encode[T any](v T) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encoding %T: %w", v, err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'}), nil
}

// Decode takes exactly what [Encode] makes, at most 1 MiB of it: it decodes,
// encodes again and compares. Errors that are about the form wrap [ErrForm].
func Decode[T any](b []byte) (T, error) {
	var v, none T
	if len(b) > maxDocument {
		return none, fmt.Errorf("document has %d bytes, at most %d are allowed", len(b), maxDocument)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return none, fmt.Errorf("decoding JSON: %w", err)
	}
	again, err := Encode(v)
	if err != nil {
		return none, err
	}
	if !bytes.Equal(again, b) {
		return none, fmt.Errorf("%w: JSON differs from byte %d on (blanks, order, case, a duplicate or an unknown field)",
			ErrForm, firstDifference(again, b))
	}
	return v, nil
}

func firstDifference(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// decodeBase64 takes standard base64 with padding, in its one form.
func decodeBase64(what, s string) ([]byte, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || base64.StdEncoding.EncodeToString(b) != s { // the decoder skips line ends
		return nil, fmt.Errorf("%s: %w of base64", what, ErrForm)
	}
	return b, nil
}

// checkHex refuses all but n bytes in lower-case hexadecimal digits.
func checkHex(what, s string, n int) error {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != n || hex.EncodeToString(b) != s {
		return fmt.Errorf("%s is not %d lower-case hexadecimal digits: %.80q", what, 2*n, s)
	}
	return nil
}
