package prooftest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"math/big"
	"reflect"
	"strconv"
	"strings"

	"vacate/proof"
)

// NewAnnex is an annex as node 1 would make it of a lease that ended so.
func NewAnnex(mode proof.KeyMode, result string) proof.Annex {
	a := proof.Annex{V: 1, NodeID: Node1, LeaseID: Lease1, Tenant: Tenant, Salts: salts(mode),
		OpenedAt: "2026-11-23T12:05:30Z", ClosedAt: "2026-11-23T12:06:30Z",
		Media:  []proof.Medium{{Drive: Drive1, Salt: hex.EncodeToString(Bytes("drive", proof.SaltLen))}},
		Module: proof.Module{Name: "Go Cryptographic Module", Version: "v1.26.0"},
		Key:    proof.KeyEvidence{ReadBack: result == proof.ResultOK || result == proof.ResultLostEngine || result == proof.ResultLostDrive, CipherWait: 1, Erase: 2},
		Device: []proof.DeviceRun{}, Scan: []proof.Scan{}, Limits: []string{"what root did while the lease was open"}}
	Each(&a, func(_ string, f *proof.Fact) { *f = proof.Fact{Value: "as observed", Source: proof.SourceObserved} })
	m := &a.Media[0]
	m.MediaType = proof.Fact{Value: "nvme", Source: proof.SourceObserved}
	m.Model, m.Serial = proof.Fact{Value: "M-1", Source: proof.SourceDrive}, proof.Fact{Value: "S-1", Source: proof.SourceDrive}
	m.Manufacturer, m.PropertyNumber, m.Categorization = proof.Human(), proof.Human(), proof.Human()
	s := &a.Sanitize
	s.Method = proof.Fact{Value: "Cryptographic Erase", Source: proof.SourceProgram}
	s.Technique = proof.Fact{Value: "key overwritten in volatile memory", Source: proof.SourceProgram}
	s.Validation, s.Performed, s.Verified, s.Destination = proof.Human(), proof.Human(), proof.Human(), proof.Human()
	return a
}

// Each visits every fact of an annex, with its path as in [proof.Field].
func Each(a *proof.Annex, visit func(path string, f *proof.Fact)) {
	each(reflect.ValueOf(a).Elem(), "", visit)
}

func each(v reflect.Value, path string, visit func(path string, f *proof.Fact)) {
	if f, ok := v.Addr().Interface().(*proof.Fact); ok {
		visit(strings.TrimPrefix(path, "."), f)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			each(v.Field(i), path+"."+name, visit)
		}
	case reflect.Slice:
		for i := range v.Len() {
			each(v.Index(i), path+"."+strconv.Itoa(i), visit)
		}
	default:
	}
}

// Purged is a sanitize run of the drive that supports a purge.
func Purged() proof.DeviceRun {
	return proof.DeviceRun{Drive: Drive1, Serial: "S-1", Command: proof.CommandSanitize, Action: "crypto erase", Purge: true, Level: proof.LevelPurge,
		SanitizeCapabilities: "00000003", Status: "0801", Progress: "ffff", LogPage: "ffff0108" + hex.EncodeToString(make([]byte, 16)),
		IssuedNs: 20, CompletedNs: 30, ReadNs: 31, BootID: Boot1,
		VendorStatement: proof.Fact{Source: proof.SourceNone}}
}

// Attestation is a TPMS_ATTEST of a quote over a payload (TPM 2.0 Library, part 2,
// 10.12.12).
func Attestation(payload []byte) []byte {
	nonce := sha256.Sum256(payload)
	var b []byte
	sized := func(p []byte) { b = append(binary.BigEndian.AppendUint16(b, uint16(len(p))), p...) }
	b = binary.BigEndian.AppendUint32(b, 0xff544347)
	b = binary.BigEndian.AppendUint16(b, 0x8018)
	sized([]byte{0, 0xb, 1, 2, 3})
	sized(nonce[:])
	b = binary.BigEndian.AppendUint64(b, 12345)
	b = binary.BigEndian.AppendUint32(b, 7)
	b = binary.BigEndian.AppendUint32(b, 2)
	b = append(b, 1)
	b = binary.BigEndian.AppendUint64(b, 0x0102)
	b = binary.BigEndian.AppendUint32(b, 1)
	b = binary.BigEndian.AppendUint16(b, 0xb)
	mask := make([]byte, 3)
	for _, i := range proof.QuotedPCRs() {
		mask[i/8] |= 1 << (i % 8)
	}
	b = append(append(b, byte(len(mask))), mask...)
	sized(Bytes("PCRs", 32))
	return b
}

// quote signs the attestation of a record with the AK.
func (t *teller) quote(l Logged) proof.Quote {
	attest := Attestation(l.Payload)
	if t.Attest != nil {
		attest = t.Attest(l.Record, attest)
	}
	return QuoteOf(l.Payload, attest)
}

// QuoteOf is what the node's TPM would sign, whatever that is, as the quote of a
// payload.
func QuoteOf(payload, attest []byte) proof.Quote {
	k := AK()
	digest := sha256.Sum256(attest)
	sig, err := k.Sign(nil, digest[:], crypto.SHA256) // RFC 6979: the same each time
	if err != nil {
		panic(err)
	}
	name := sha256.Sum256(payload)
	return proof.Quote{Payload: hex.EncodeToString(name[:]), Attest: base64.StdEncoding.EncodeToString(attest),
		Signature: base64.StdEncoding.EncodeToString(lowS(k, sig))}
}

// lowS is the signature with the smaller of the two possible s.
func lowS(k *ecdsa.PrivateKey, sig []byte) []byte {
	var s struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(sig, &s); err != nil {
		panic(err)
	}
	n := k.Params().N
	if s.S.Cmp(new(big.Int).Rsh(n, 1)) > 0 {
		s.S.Sub(n, s.S)
	}
	out, err := asn1.Marshal(s)
	if err != nil {
		panic(err)
	}
	return out
}
