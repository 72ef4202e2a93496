package xts

import (
	"bytes"
	"crypto/md5"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"math/rand/v2"
	"os/exec"
	"testing"
)

// TestOpenSSL lets OpenSSL's command line decrypt what we encrypted.
//
// "openssl enc" refuses XTS. But a private key in a PEM file may be encrypted with
// any cipher that OpenSSL knows by name (RFC 1421 headers), and "openssl rsa"
// decrypts it in one call, so as one data unit. We choose the tweak, as it is the
// DEK-Info's initialization vector. The key is derived from the password and the
// vector's first eight bytes, as EVP_BytesToKey(3) says, with MD5 and one round.
// The plaintext must be a private key, but may be one of any length.
func TestOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("openssl is not installed: apt-get install openssl")
	}
	r := rand.New(newRand(t))
	for _, im := range impls {
		for _, size := range []int{512, 1024, 4096 - 16, 4096, 4096 + 16, 3 * 4096} {
			var iv [16]byte
			unit := r.Uint64()
			binary.LittleEndian.PutUint64(iv[:], unit)
			key := bytesToKey("forget", iv[:8])
			plain := privateKey(t, r, size)

			s := new(Schedule)
			im.expand(s, key)
			sealed := make([]byte, size)
			im.encrypt(s, sealed, plain, size, unit)

			file := pem.EncodeToMemory(&pem.Block{
				Type: "RSA PRIVATE KEY",
				Headers: map[string]string{
					"Proc-Type": "4,ENCRYPTED",
					"DEK-Info":  "AES-256-XTS," + hex.EncodeToString(iv[:]),
				},
				Bytes: sealed,
			})
			cmd := exec.Command(openssl, "rsa", "-passin", "pass:forget", "-traditional", "-outform", "DER")
			cmd.Stdin = bytes.NewReader(file)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			got, err := cmd.Output()
			if err != nil {
				t.Fatalf("%s, %d bytes: %v: %s", im.name, size, err, stderr.String())
			}
			if !bytes.Equal(got, plain) {
				t.Fatalf("%s, %d bytes: openssl decrypts to something else", im.name, size)
			}
		}
	}
}

// bytesToKey is EVP_BytesToKey with MD5 and one round.
func bytesToKey(password string, salt []byte) *[KeySize]byte {
	var key, last []byte
	for len(key) < KeySize {
		sum := md5.Sum(append(append(last, password...), salt...))
		last = sum[:]
		key = append(key, last...)
	}
	return (*[KeySize]byte)(key)
}

// privateKey returns what parses as an RSAPrivateKey (RFC 8017, A.1.2) of size
// bytes. Its numbers mean nothing.
func privateKey(t *testing.T, r *rand.Rand, size int) []byte {
	t.Helper()
	number := func(n int) *big.Int {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		b[0], b[n-1] = b[0]&0x7f|0x40, b[n-1]|1
		return new(big.Int).SetBytes(b)
	}
	for fill := size - 64; fill > 0; fill-- {
		der, err := asn1.Marshal(struct {
			Version                   int
			N, E, D, P, Q, DP, DQ, QI *big.Int
		}{0, number(128), number(3), number(fill), number(8), number(8), number(8), number(8), number(8)})
		if err != nil {
			t.Fatal(err)
		}
		if len(der) == size {
			return der
		}
	}
	t.Fatalf("no private key is %d bytes long", size)
	return nil
}
