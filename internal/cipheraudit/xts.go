package cipheraudit

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
)

// units is AES-256-XTS for units of BlockSize bytes, as docs/spec/cipher.md has it.
type units struct {
	data, tweak cipher.Block
}

func newUnits(key *[KeySize]byte) (*units, error) {
	if bytes.Equal(key[:KeySize/2], key[KeySize/2:]) {
		return nil, errors.New("the two halves of the key are equal: no lease has such a key")
	}
	data, err := aes.NewCipher(key[:KeySize/2])
	if err != nil {
		return nil, err
	}
	tweak, err := aes.NewCipher(key[KeySize/2:])
	return &units{data, tweak}, err
}

// decrypt decrypts block n of a volume, all of it.
func (x *units) decrypt(dst, src []byte, n uint64) {
	var t [aes.BlockSize]byte
	binary.LittleEndian.PutUint64(t[:], n)
	x.tweak.Encrypt(t[:], t[:])
	for at := 0; at < len(src); at += aes.BlockSize {
		var b [aes.BlockSize]byte
		for i := range b {
			b[i] = src[at+i] ^ t[i]
		}
		x.data.Decrypt(b[:], b[:])
		for i := range b {
			dst[at+i] = b[i] ^ t[i]
		}
		double(&t)
	}
}

// double multiplies by x in GF(2^128), lowest coefficient first.
func double(t *[aes.BlockSize]byte) {
	carry := byte(0)
	for i := range t {
		t[i], carry = t[i]<<1|carry, t[i]>>7
	}
	t[0] ^= carry * 0x87
}
