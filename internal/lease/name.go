package lease

import (
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"unicode"
	"unicode/utf8"
)

// IDLen is the length of a lease's id.
const IDLen = 16

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewID reads 10 random bytes and returns a new id: 16 characters, a–z and 2–7.
func NewID(random io.Reader) (string, error) {
	var b [10]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return "", fmt.Errorf("reading randomness for a lease id: %w", err)
	}
	return idEncoding.EncodeToString(b[:]), nil
}

// ValidID reports whether s has the form of a lease's id. An id names a folder,
// so whatever came from outside is checked before it does.
func ValidID(s string) bool {
	if len(s) != IDLen {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '2' || c > '7') {
			return false
		}
	}
	return true
}

// Bounds on names, in bytes.
const (
	MaxTenantLen = 128
	MaxKeyLen    = 128
)

// CheckTenant says in one sentence what is wrong with a tenant's name: it has
// 1 to 128 bytes of printable UTF-8 without slashes, and neither starts nor ends
// with a space, so that it can be shown, logged and typed again.
func CheckTenant(s string) error { return checkName("the tenant's name", s, MaxTenantLen, '/', '\\') }

// CheckKey says in one sentence what is wrong with an idempotency key: it has 1
// to 128 bytes of printable UTF-8.
func CheckKey(s string) error { return checkName("the idempotency key", s, MaxKeyLen) }

func checkName(what, s string, longest int, banned ...rune) error {
	switch {
	case s == "":
		return errors.New(what + " is empty")
	case len(s) > longest:
		return fmt.Errorf("%s has %d bytes, at most %d are allowed", what, len(s), longest)
	case !utf8.ValidString(s):
		return errors.New(what + " is not valid UTF-8")
	case s[0] == ' ' || s[len(s)-1] == ' ':
		return errors.New(what + " starts or ends with a space")
	}
	for _, r := range s {
		if !unicode.IsPrint(r) { // space is the only blank that it admits
			return fmt.Errorf("%s contains the unprintable character %U", what, r)
		}
		for _, b := range banned {
			if r == b {
				return fmt.Errorf("%s contains %q, which is not allowed", what, r)
			}
		}
	}
	return nil
}
