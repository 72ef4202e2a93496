package tpm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// A key is an object of the TPM that is not loaded: the context to load it from.
type key struct {
	public  *ecdsa.PublicKey
	context tpm2.TPMSContext
}

// signing is the template of an ECDSA P-256 key that never leaves its TPM.
func signing(restricted bool, unique []byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			UserWithAuth: true, NoDA: true, SignEncrypt: true, Restricted: restricted,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme: tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA,
					&tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: unique},
			Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
		}),
	}
}

// primary makes a primary key of a hierarchy, and unloads it when done returns.
// REQUIRES: t.mu.
func (t *TPM) primary(hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic, use func(tpm2.NamedHandle, *tpm2.TPMTPublic) error) error {
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(template)}.Execute(t)
	if err != nil {
		return fmt.Errorf("making a primary key in the TPM %s: %w", t.path, hint(err))
	}
	defer t.flush(rsp.ObjectHandle)
	public, err := rsp.OutPublic.Contents()
	if err != nil {
		return fmt.Errorf("reading a primary key of the TPM %s: %w", t.path, err)
	}
	return use(tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name}, public)
}

// hint says what to do where a hierarchy is not open to us.
func hint(err error) error {
	if errors.Is(err, tpm2.TPMRCBadAuth) || errors.Is(err, tpm2.TPMRCAuthFail) || errors.Is(err, tpm2.TPMRCHierarchy) {
		return fmt.Errorf("%w: the hierarchy is disabled or has a password; Vacate uses those without one", err)
	}
	return err
}

// flush unloads an object. Where that fails, the connection has ended, or the
// object is gone: the next command tells. REQUIRES: t.mu.
func (t *TPM) flush(h tpm2.TPMHandle) {
	if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(t); err != nil && t.broken == nil {
		t.broken = fmt.Errorf("unloading an object: %w", err)
	}
}

// save is the key that is loaded as h. REQUIRES: t.mu.
func (t *TPM) save(h tpm2.TPMHandle, public *tpm2.TPMTPublic) (*key, error) {
	pub, err := point(public)
	if err != nil {
		return nil, err
	}
	rsp, err := tpm2.ContextSave{SaveHandle: h}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("saving a key's context in the TPM %s: %w", t.path, err)
	}
	return &key{public: pub, context: rsp.Context}, nil
}

// with loads k for as long as use runs. It returns [errReload] where the context
// is that of a TPM before its reset. REQUIRES: t.mu.
func (t *TPM) with(k *key, use func(tpm2.AuthHandle) error) error {
	rsp, err := tpm2.ContextLoad{Context: k.context}.Execute(t)
	if err != nil {
		if t.broken != nil {
			return err
		}
		return fmt.Errorf("%w: %w", errReload, err)
	}
	defer t.flush(rsp.LoadedHandle)
	public, err := tpm2.ReadPublic{ObjectHandle: rsp.LoadedHandle}.Execute(t)
	if err != nil {
		return fmt.Errorf("reading a key of the TPM %s: %w", t.path, err)
	}
	return use(tpm2.AuthHandle{Handle: rsp.LoadedHandle, Name: public.Name, Auth: tpm2.PasswordAuth(nil)})
}

// point is the public key of a signing key.
func point(public *tpm2.TPMTPublic) (*ecdsa.PublicKey, error) {
	if public.Type != tpm2.TPMAlgECC {
		return nil, errors.New("the TPM's key is not of an elliptic curve")
	}
	params, err := public.Parameters.ECCDetail()
	if err != nil {
		return nil, err
	}
	p, err := public.Unique.ECC()
	if err != nil {
		return nil, err
	}
	if params.CurveID != tpm2.TPMECCNistP256 || len(p.X.Buffer) > 32 || len(p.Y.Buffer) > 32 {
		return nil, errors.New("the TPM's key is not of the curve P-256")
	}
	raw := make([]byte, 65)
	raw[0] = 4 // uncompressed, SEC 1 section 2.3.3
	copy(raw[33-len(p.X.Buffer):33], p.X.Buffer)
	copy(raw[65-len(p.Y.Buffer):], p.Y.Buffer)
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), raw)
}

// signature is the ASN.1 form of the TPM's, with the lower of the two values that
// s may have.
func signature(sig tpm2.TPMTSignature) ([]byte, error) {
	e, err := sig.Signature.ECDSA()
	if err != nil {
		return nil, err
	}
	if e.Hash != tpm2.TPMAlgSHA256 {
		return nil, errors.New("the TPM's signature is not over SHA-256")
	}
	r, s := new(big.Int).SetBytes(e.SignatureR.Buffer), new(big.Int).SetBytes(e.SignatureS.Buffer)
	if n := elliptic.P256().Params().N; s.Cmp(new(big.Int).Rsh(n, 1)) > 0 {
		s.Sub(n, s)
	}
	return asn1.Marshal(struct{ R, S *big.Int }{r, s})
}

// akUnique makes the attestation key ours: another program's template gives
// another key.
func akUnique() []byte {
	h := sha256.Sum256([]byte("vacate/ak/v1"))
	return h[:]
}
