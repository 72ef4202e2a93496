package tpm

import (
	"crypto"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// A Signer is a key in a TPM. It is a [crypto.Signer] for SHA-256 digests; its
// signatures are ECDSA in ASN.1, with the lower s.
type Signer struct {
	t   *TPM
	was loadable
	key *key // guarded by t.mu
}

// A loadable is what a key's file holds: the forms that the TPM2_Load takes.
type loadable struct {
	public, private []byte // TPM2B_PUBLIC and TPM2B_PRIVATE, with their sizes
}

// NewSigner is the key of a file, which is made with the key where there is none:
// mode 0600, durable before it is returned. A file that others can read is refused,
// as is the key of another TPM.
func (t *TPM) NewSigner(file string) (*Signer, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	was, err := readKey(file)
	if errors.Is(err, os.ErrNotExist) {
		if was, err = t.create(); err == nil {
			err = writeKey(file, was)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("key %s of the TPM %s: %w", file, t.path, err)
	}
	s := &Signer{t: t, was: was}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("key %s of the TPM %s: %w; a key can be used only with the TPM that made it", file, t.path, err)
	}
	return s, nil
}

// Public is the *ecdsa.PublicKey.
func (s *Signer) Public() crypto.PublicKey {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	return s.key.public
}

// Sign signs a SHA-256 digest. The first argument is not used: the TPM has its own
// generator.
func (s *Signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 || len(digest) != crypto.SHA256.Size() {
		return nil, errors.New("tpm: only digests of SHA-256 can be signed")
	}
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	sig, err := s.sign(digest)
	if errors.Is(err, errReload) {
		if err = s.load(); err == nil {
			sig, err = s.sign(digest)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("signing with the TPM %s: %w", s.t.path, err)
	}
	return sig, nil
}

func (s *Signer) sign(digest []byte) (sig []byte, err error) {
	err = s.t.with(s.key, func(h tpm2.AuthHandle) error {
		rsp, err := tpm2.Sign{
			KeyHandle: h,
			Digest:    tpm2.TPM2BDigest{Buffer: digest},
			InScheme: tpm2.TPMTSigScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256}),
			},
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
		}.Execute(s.t)
		if err != nil {
			return err
		}
		sig, err = signature(rsp.Signature)
		return err
	})
	return sig, err
}

// create makes a key below the storage primary key. REQUIRES: t.mu.
func (t *TPM) create() (was loadable, err error) {
	err = t.primary(tpm2.TPMRHOwner, tpm2.ECCSRKTemplate, func(h tpm2.NamedHandle, _ *tpm2.TPMTPublic) error {
		rsp, err := tpm2.Create{
			ParentHandle: tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: tpm2.PasswordAuth(nil)},
			InPublic:     tpm2.New2B(signing(false, make([]byte, 32))),
		}.Execute(t)
		if err != nil {
			return fmt.Errorf("making it: %w", err)
		}
		was = loadable{public: tpm2.Marshal(rsp.OutPublic), private: tpm2.Marshal(rsp.OutPrivate)}
		return nil
	})
	return was, err
}

// load makes s.key. It refuses a key that could have been made outside, or could
// leave. REQUIRES: t.mu.
func (s *Signer) load() error {
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](s.was.public)
	if err != nil {
		return fmt.Errorf("reading its public part: %w", err)
	}
	private, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](s.was.private)
	if err != nil {
		return fmt.Errorf("reading its private part: %w", err)
	}
	area, err := public.Contents()
	if err != nil {
		return fmt.Errorf("reading its public part: %w", err)
	}
	if area.ObjectAttributes != signing(false, nil).ObjectAttributes {
		return errors.New("it is not a signing key that was made in a TPM and cannot leave it")
	}
	return s.t.primary(tpm2.TPMRHOwner, tpm2.ECCSRKTemplate, func(h tpm2.NamedHandle, _ *tpm2.TPMTPublic) error {
		rsp, err := tpm2.Load{
			ParentHandle: tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: tpm2.PasswordAuth(nil)},
			InPrivate:    *private, InPublic: *public,
		}.Execute(s.t)
		if err != nil {
			return fmt.Errorf("loading it: %w", err)
		}
		defer s.t.flush(rsp.ObjectHandle)
		s.key, err = s.t.save(rsp.ObjectHandle, area)
		return err
	})
}

// keyFile is TPMKey of draft-bottomley-tpm2-keys, which the TPM providers of
// OpenSSL read too.
type keyFile struct {
	Type      asn1.ObjectIdentifier
	EmptyAuth bool `asn1:"explicit,tag:0"`
	Parent    int64
	Public    []byte
	Private   []byte
}

const (
	keyType    = "TSS2 PRIVATE KEY"
	ownerRoot  = 0x40000001 // TPM_RH_OWNER: below its primary key of the TCG's P-256 template
	maxKeyFile = 8 << 10
)

var loadableKey = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 3} // id-loadablekey

func readKey(file string) (loadable, error) {
	f, err := os.Open(file)
	if err != nil {
		return loadable{}, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	st, err := f.Stat()
	if err != nil {
		return loadable{}, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return loadable{}, fmt.Errorf("others may use it (mode %04o): chmod 0600 it", st.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return loadable{}, err
	}
	return decodeKey(b)
}

func decodeKey(b []byte) (loadable, error) {
	if len(b) > maxKeyFile {
		return loadable{}, fmt.Errorf("it has more than %d bytes", maxKeyFile)
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != keyType || len(rest) != 0 {
		return loadable{}, errors.New("it is not one " + keyType + " in PEM")
	}
	var k keyFile
	rest, err := asn1.Unmarshal(block.Bytes, &k)
	switch {
	case err != nil:
		return loadable{}, err
	case len(rest) != 0:
		return loadable{}, errors.New("it has bytes behind its end")
	case !k.Type.Equal(loadableKey) || !k.EmptyAuth || k.Parent != ownerRoot:
		return loadable{}, errors.New("it is not a key below the owner's storage key, without a password")
	}
	return loadable{public: k.Public, private: k.Private}, nil
}

func encodeKey(k loadable) ([]byte, error) {
	der, err := asn1.Marshal(keyFile{Type: slices.Clone(loadableKey), EmptyAuth: true, Parent: ownerRoot, Public: k.public, Private: k.private})
	return pem.EncodeToMemory(&pem.Block{Type: keyType, Bytes: der}), err
}

// writeKey makes the file, whole and durable or not at all.
func writeKey(file string, was loadable) error {
	text, err := encodeKey(was)
	if err != nil {
		return err
	}
	dir := filepath.Dir(file)
	f, err := os.CreateTemp(dir, ".key-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // it is there only where something failed
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), file); err != nil { // never over a key that is there
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
