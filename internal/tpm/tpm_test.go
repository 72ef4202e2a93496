package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"vacate/internal/tpm/tpmtest"
)

func open(t *testing.T, m *tpmtest.Machine) *TPM {
	t.Helper()
	tp, err := Open(m.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tp.Close() })
	return tp
}

func sign(t *testing.T, s *Signer, message string) {
	t.Helper()
	digest := sha256.Sum256([]byte(message))
	sig, err := s.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if !ecdsa.VerifyASN1(s.Public().(*ecdsa.PublicKey), digest[:], sig) {
		t.Fatal("the signature does not verify")
	}
	digest[0] ^= 1
	if ecdsa.VerifyASN1(s.Public().(*ecdsa.PublicKey), digest[:], sig) {
		t.Fatal("the signature verifies over something else")
	}
}

// TestSigner: a key is made once, stays the same through a loss of power, and is
// noise to another TPM.
func TestSigner(t *testing.T) {
	m := tpmtest.Start(t)
	file := filepath.Join(t.TempDir(), "node.key")
	tp := open(t, m)
	s, err := tp.NewSigner(file)
	if err != nil {
		t.Fatal(err)
	}
	sign(t, s, "one")
	public := s.Public().(*ecdsa.PublicKey)
	st, err := os.Stat(file)
	if err != nil || st.Mode() != 0o600 {
		t.Fatalf("key's file: %v, %v", st, err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), ".key-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	tp.Close()
	if _, err := s.Sign(nil, make([]byte, 32), crypto.SHA256); err == nil {
		t.Error("signed after the TPM was closed")
	}

	m.Reboot()
	tp = open(t, m)
	if s, err = tp.NewSigner(file); err != nil {
		t.Fatal(err)
	}
	if !public.Equal(s.Public()) {
		t.Fatal("another key after a reboot")
	}
	sign(t, s, "two")

	other := open(t, tpmtest.Start(t))
	if _, err := other.NewSigner(file); err == nil || !strings.Contains(err.Error(), "only with the TPM that made it") {
		t.Errorf("another TPM took the key: %v", err)
	}
}

// TestKeyStays: the private half is not in the file, nor anywhere that a TPM
// would give it out.
func TestKeyStays(t *testing.T) {
	tp := open(t, tpmtest.Start(t))
	file := filepath.Join(t.TempDir(), "node.key")
	s, err := tp.NewSigner(file)
	if err != nil {
		t.Fatal(err)
	}
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](s.was.public)
	if err != nil {
		t.Fatal(err)
	}
	area, err := public.Contents()
	if err != nil {
		t.Fatal(err)
	}
	if a := area.ObjectAttributes; !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin || a.Decrypt || a.EncryptedDuplication {
		t.Errorf("attributes %+v: the key could leave, or came from outside", a)
	}
}

// TestReset: contexts die with a reset that the connection survives; keys are
// loaded anew, without anyone noticing.
func TestReset(t *testing.T) {
	m := tpmtest.Start(t)
	tp := open(t, m)
	s, err := tp.NewSigner(filepath.Join(t.TempDir(), "k"))
	if err != nil {
		t.Fatal(err)
	}
	ak, err := tp.AKPublic()
	if err != nil {
		t.Fatal(err)
	}
	sign(t, s, "before")
	reset(t, m, tp)
	sign(t, s, "after")
	reset(t, m, tp)
	again, err := tp.AKPublic()
	if err != nil || !ak.Equal(again) {
		t.Fatalf("attestation key after a reset: %v", err)
	}
}

// reset does what a machine's start does, firmware's part too, under the
// connection.
func reset(t *testing.T, m *tpmtest.Machine, tp *TPM) {
	t.Helper()
	m.Reset()
	tp.mu.Lock()
	defer tp.mu.Unlock()
	if _, err := (tpm2.Startup{StartupType: tpm2.TPMSUClear}).Execute(tp); err != nil {
		t.Fatal(err)
	}
}

// TestManyKeys holds T1: more keys than a TPM has room for, from many goroutines.
func TestManyKeys(t *testing.T) {
	tp := open(t, tpmtest.Start(t))
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 6 {
		s, err := tp.NewSigner(filepath.Join(dir, string(rune('a'+i))))
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for range 3 {
				digest := sha256.Sum256([]byte{byte(i)})
				sig, err := s.Sign(nil, digest[:], crypto.SHA256)
				if err != nil || !ecdsa.VerifyASN1(s.Public().(*ecdsa.PublicKey), digest[:], sig) {
					t.Errorf("key %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	if _, err := tp.Quote([]byte("n"), []int{0}); err != nil {
		t.Error(err)
	}
}

// TestLeftovers: what a killed process left loaded is no hindrance.
func TestLeftovers(t *testing.T) {
	m := tpmtest.Start(t)
	tp := open(t, m)
	for range 3 {
		if _, err := (tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}).Execute(tp); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tp.AKPublic(); err == nil {
		t.Fatal("the TPM has room for a fourth object: this test shows nothing")
	}
	tp.Close()
	if _, err := open(t, m).AKPublic(); err != nil {
		t.Error(err)
	}
}

func TestQuote(t *testing.T) {
	m := tpmtest.Start(t)
	tp := open(t, m)
	ak, err := tp.AKPublic()
	if err != nil {
		t.Fatal(err)
	}
	pcrs := []int{0, 7, 14}
	q, err := tp.Quote([]byte("nonce"), pcrs)
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256(q.Attest)
	if !ecdsa.VerifyASN1(ak, hash[:], q.Signature) {
		t.Fatal("the quote is not signed by the attestation key")
	}
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](q.Attest)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.ExtraData.Buffer, []byte("nonce")) {
		t.Errorf("nonce %q", a.ExtraData.Buffer)
	}
	before := digest(t, q)
	extend(t, tp, 7)
	for _, other := range [][]int{pcrs, {0, 14}} {
		if q, err = tp.Quote([]byte("nonce"), other); err != nil || bytes.Equal(digest(t, q), before) {
			t.Errorf("digest of registers %v, after one was extended, is that of before: %v", other, err)
		}
	}
	for _, bad := range []struct {
		nonce []byte
		pcrs  []int
	}{{nil, pcrs}, {make([]byte, 33), pcrs}, {[]byte("n"), []int{24}}, {[]byte("n"), []int{-1}}} {
		if _, err := tp.Quote(bad.nonce, bad.pcrs); err == nil {
			t.Errorf("quoted %v", bad)
		}
	}
}

func digest(t *testing.T, q Quote) []byte {
	t.Helper()
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](q.Attest)
	if err != nil {
		t.Fatal(err)
	}
	info, err := a.Attested.Quote()
	if err != nil {
		t.Fatal(err)
	}
	return info.PCRDigest.Buffer
}

func extend(t *testing.T, tp *TPM, pcr uint32) {
	t.Helper()
	tp.mu.Lock()
	defer tp.mu.Unlock()
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{
			{HashAlg: tpm2.TPMAlgSHA256, Digest: bytes.Repeat([]byte{1}, 32)},
		}},
	}.Execute(tp)
	if err != nil {
		t.Fatal(err)
	}
}

// TestRefuses: what the key does not sign, and files that hold no key of ours.
func TestRefuses(t *testing.T) {
	m := tpmtest.Start(t)
	tp := open(t, m)
	dir := t.TempDir()
	file := filepath.Join(dir, "k")
	s, err := tp.NewSigner(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sign(nil, make([]byte, 48), crypto.SHA384); err == nil {
		t.Error("signed a digest of SHA-384")
	}
	if _, err := s.Sign(nil, make([]byte, 31), crypto.SHA256); err == nil {
		t.Error("signed 31 bytes")
	}
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"empty": {}, "cut": good[:len(good)/2], "twice": append(bytes.Clone(good), good...),
		"more": append(bytes.Clone(good), 'x'), "large": bytes.Repeat([]byte("x"), maxKeyFile+1),
		"another's": bytes.Replace(good, []byte(keyType), []byte("PRIVATE KEY"), -1),
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := tp.NewSigner(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := tp.NewSigner(file); err == nil || !strings.Contains(err.Error(), "chmod 0600") {
		t.Errorf("a key that others can use: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "none"), file, dir} {
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestHostileTPM holds T2: a peer that answers nonsense ends the connection.
func TestHostileTPM(t *testing.T) {
	for name, answer := range map[string][]byte{
		"nothing":      nil,
		"short":        {0x80, 1, 0, 0, 0, 5, 0, 0, 0, 0},
		"huge":         {0x80, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0},
		"not as many":  {0x80, 1, 0, 0, 0, 20, 0, 0, 0, 0},
		"empty answer": {0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Read(make([]byte, 4096)) //nolint:errcheck // whatever was asked
				c.Write(answer)            //nolint:errcheck // it may be gone
				c.Close()
			}()
			if tp, err := Open(path); err == nil {
				tp.Close()
				t.Error("opened")
			}
		})
	}
}

func FuzzKeyFile(f *testing.F) {
	f.Add([]byte("-----BEGIN TSS2 PRIVATE KEY-----\nMBcGBmeBBQoBA6ADAQH/AgRAAAABBAEBBAEC\n-----END TSS2 PRIVATE KEY-----\n"))
	f.Add([]byte("-----BEGIN TSS2 PRIVATE KEY-----\n-----END TSS2 PRIVATE KEY-----\n"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := decodeKey(b)
		if err != nil {
			return
		}
		text, err := encodeKey(k)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := decodeKey(text); err != nil || !bytes.Equal(again.public, k.public) || !bytes.Equal(again.private, k.private) {
			t.Fatalf("written and read: %v", err)
		}
	})
}
