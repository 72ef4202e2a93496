package second

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"strings"
)

type factJSON struct{ Value, Source string }

// annexJSON is what is looked at of an annex. Its digest is signed; its other
// fields are words.
type annexJSON struct {
	NodeID, LeaseID, Tenant string
	Salts                   struct{ Key, Tenant, Node, Share string }
	Media                   []struct {
		Drive, Salt              string
		Model, Serial, MediaType factJSON
	}
	Sanitization struct{ Method, Technique, Validation, PerformedBy, VerifiedBy factJSON }
	Module       struct {
		Validated bool
		CertNo    string
	}
	Key    struct{ ReadBack, InFlight bool }
	Device []struct {
		Drive, Serial, Command, Action, Level, Sanicap, SStat, SProg, LogPage, BootID string
		PREQ                                                                          bool
		IssuedNs, CompletedNs, ReadNs                                                 int64
		VendorStatement                                                               factJSON
	}
	Scan []struct {
		Drive            string
		Blocks, Canaries uint64
	}
}

func (v *verifier) annex() error {
	end := v.end()
	if (end.AnnexDigest == "") != (v.bundle.Annex == nil) {
		return errors.New("the annex, or the record's word of it, is missing")
	}
	if v.bundle.Annex == nil {
		return nil
	}
	if sum(v.bundle.Annex) != end.AnnexDigest {
		return errors.New("another annex")
	}
	var a annexJSON
	if err := json.Unmarshal(v.bundle.Annex, &a); err != nil {
		return err
	}
	_, destroyed := end.event("key_destroyed")
	switch {
	case a.NodeID != end.NodeID || a.LeaseID != end.LeaseID:
		return errors.New("annex of another lease")
	case a.Sanitization.Validation.Value != "" || a.Sanitization.Validation.Source != "requires human entry":
		return errors.New("a node has validated")
	case a.Sanitization.PerformedBy.Source != "requires human entry" || a.Sanitization.VerifiedBy.Source != "requires human entry",
		bytes.Contains(v.bundle.Annex, []byte(`"source":"entered by `)):
		return errors.New("a node speaks for a person")
	case len(a.Module.CertNo) > 16 || strings.Trim(a.Module.CertNo, "0123456789") != "":
		return errors.New("a certificate's number that is none")
	case a.Module.Validated != (a.Module.CertNo != ""):
		return errors.New("validated without a certificate's number")
	case destroyed && !a.Key.ReadBack, end.Drained && a.Key.InFlight:
		return errors.New("annex and record contradict each other")
	case strings.Contains(strings.ToLower(a.Sanitization.Technique.Value), "discard") && strings.Contains(strings.ToLower(a.Sanitization.Method.Value), "purge"):
		return errors.New("a discard is no purge")
	}
	if err := v.opens(&a); err != nil {
		return err
	}
	return v.devices(&a)
}

// opens checks the commitments that the annex opens.
func (v *verifier) opens(a *annexJSON) error {
	open := &v.records[0]
	unhex := func(s string) string {
		b, err := hex.DecodeString(s)
		if err != nil {
			return "?"
		}
		return string(b)
	}
	if !v.ofDrive() && open.TenantCommit != sum([]byte("vacate/tenant/v1"+open.LeaseID+unhex(a.Salts.Tenant)+a.Tenant)) {
		return errors.New("another tenant")
	}
	if (a.Salts.Key == "") != (open.KeyCommit == "") || (a.Salts.Node == "") != (open.NodeCommit == "") || (a.Salts.Share == "") != (open.ShareCommit == "") {
		return errors.New("salts and commitments do not stand together")
	}
	drives := map[string]string{}
	for _, s := range v.end().Space {
		drives[s.Drive] = s.Commit
	}
	if len(drives) != len(a.Media) {
		return errors.New("other media than drives")
	}
	for _, m := range a.Media {
		commit, ok := drives[m.Drive]
		if !ok || commit != sum([]byte("vacate/drive/v1"+m.Drive+unhex(m.Salt)+m.MediaType.Value+"\x00"+m.Model.Value+"\x00"+m.Serial.Value)) {
			return errors.New("another drive, or another serial number")
		}
	}
	return nil
}

// devices holds what drives were told to do to what they returned.
func (v *verifier) devices(a *annexJSON) error {
	for _, d := range a.Device {
		i := slices.IndexFunc(a.Media, func(m struct {
			Drive, Salt              string
			Model, Serial, MediaType factJSON
		}) bool {
			return m.Drive == d.Drive
		})
		if i < 0 || a.Media[i].Serial.Value != d.Serial {
			return errors.New("a command of another drive")
		}
		if d.Level == "none" {
			continue
		}
		if d.Serial == "" {
			return errors.New("a command of a drive without a serial")
		}
		if e := v.end().Events; len(e) > 0 && d.BootID != e[0].BootID || d.CompletedNs < d.IssuedNs {
			return errors.New("a command of another boot, or that ended before it began")
		}
		if gate, ok := v.end().event("gate_closed"); ok && d.IssuedNs < gate.MonotonicNs {
			return errors.New("a command from before the end of the lease")
		}
		if d.Level == "purge" && d.Command != "nvme sanitize" {
			return errors.New("a purge that was none")
		}
		if d.Command != "nvme sanitize" {
			continue
		}
		page, err1 := hex.DecodeString(d.LogPage)
		status, err2 := hex.DecodeString(d.SStat)
		progress, err3 := hex.DecodeString(d.SProg)
		able, err4 := hex.DecodeString(d.Sanicap)
		if errors.Join(err1, err2, err3, err4) != nil || len(page) < 4 || len(status) != 2 || len(progress) != 2 || len(able) != 4 {
			return errors.New("raw values are missing")
		}
		bit := map[string]byte{"crypto erase": 1, "block erase": 2, "overwrite": 4}[d.Action]
		state := status[1] & 7
		switch {
		case !bytes.Equal(page[:4], []byte{progress[1], progress[0], status[1], status[0]}):
			return errors.New("the log page says something else")
		case d.ReadNs < d.CompletedNs, progress[0] != 0xff || progress[1] != 0xff, state != 1 && state != 4, able[3]&bit == 0:
			return errors.New("it is not over, or the drive cannot do it")
		case d.Level == "purge" && (!d.PREQ || status[0]&8 == 0 && d.VendorStatement.Source != "configured"):
			return errors.New("the drive did not report a purge")
		}
	}
	return nil
}

// reached says whether a command took each drive to one of the levels.
func (v *verifier) reached(levels ...string) bool {
	var a annexJSON
	if json.Unmarshal(v.bundle.Annex, &a) != nil {
		return false
	}
	for _, m := range a.Media {
		ok := false
		for _, d := range a.Device {
			ok = ok || d.Drive == m.Drive && d.Command != "discard" && slices.Contains(levels, d.Level)
		}
		if !ok {
			return false
		}
	}
	return true
}

func (v *verifier) scanned() bool {
	var a annexJSON
	if json.Unmarshal(v.bundle.Annex, &a) != nil {
		return false
	}
	for _, m := range a.Media {
		ok := false
		for _, s := range a.Scan {
			ok = ok || s.Drive == m.Drive && s.Canaries == 0 && s.Blocks > 0
		}
		if !ok {
			return false
		}
	}
	return true
}

// quotes verifies what a TPM said of records (TPM 2.0 Library, part 2, 10.12.12).
func (v *verifier) quotes() error {
	next := 0
	quoted := map[int]uint32{} // resets, by record
	for _, q := range v.bundle.Quotes {
		for next < len(v.records) && sum(v.records[next].payload) != q.Payload {
			next++
		}
		if next == len(v.records) {
			return errors.New("a quote of no record, or out of order")
		}
		pin, ok := v.policy.tpms[v.records[next].NodeID]
		attest, err1 := fromBase64(q.Attest)
		sig, err2 := fromBase64(q.Signature)
		if !ok || errors.Join(err1, err2) != nil || !verify(pin[0], attest, sig) {
			return errors.New("a quote that the pinned TPM did not sign")
		}
		resets, digest, err := readQuote(attest, q.Payload)
		if err != nil {
			return err
		}
		if pin[1] != "-" && !slices.Contains(strings.Split(pin[1], ","), digest) {
			return errors.New("the machine booted something else")
		}
		quoted[next] = resets
		next++
	}
	for i, r := range v.records {
		if _, ok := quoted[i]; !ok && slices.Contains(r.Claims, "measured") {
			return errors.New("measured without a quote")
		}
	}
	first, ok1 := quoted[0]
	last, ok2 := quoted[len(v.records)-1]
	_, destroyed := v.end().event("key_destroyed")
	if ok1 && ok2 && (last < first || last != first && destroyed) {
		return errors.New("the machine was reset")
	}
	return nil
}

// readQuote takes a TPMS_ATTEST apart at fixed places, but for its sized fields.
func readQuote(b []byte, nonce string) (resets uint32, digest string, err error) {
	bad := errors.New("no quote of these registers")
	if len(b) < 8 || !bytes.HasPrefix(b, []byte{0xff, 'T', 'C', 'G', 0x80, 0x18}) {
		return 0, "", bad
	}
	rest := b[6:]
	sized := func() []byte {
		if len(rest) < 2 || len(rest) < 2+int(binary.BigEndian.Uint16(rest)) {
			return nil
		}
		n := int(binary.BigEndian.Uint16(rest))
		out := rest[2 : 2+n]
		rest = rest[2+n:]
		return out
	}
	sized() // the signer's name
	if hex.EncodeToString(sized()) != nonce || len(rest) < 25+10 {
		return 0, "", bad
	}
	resets = binary.BigEndian.Uint32(rest[8:])
	// One selection, of SHA-256's bank, of registers 0–9 and 11–14.
	if !bytes.Equal(rest[25:35], []byte{0, 0, 0, 1, 0, 0xb, 3, 0xff, 0x7b, 0}) {
		return 0, "", bad
	}
	rest = rest[35:]
	d := sized()
	if len(d) != 32 || len(rest) != 0 {
		return 0, "", bad
	}
	return resets, hex.EncodeToString(d), nil
}
