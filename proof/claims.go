package proof

import (
	"encoding/hex"
	"fmt"
	"slices"
)

// The claims of a certificate, weakest first. Each is independent of the others.
const (
	ClaimAsserted     = "asserted"
	ClaimWitnessed    = "witnessed"
	ClaimKeyCommitted = "key_committed"
	ClaimMeasured     = "measured"
	ClaimTenantShare  = "tenant_share"
	ClaimAudited      = "ciphertext_audited"
	ClaimDevicePurged = "device_purged"
	ClaimScanned      = "scanned"
)

// ClaimNames are all claims, in the order in which they are printed.
var ClaimNames = []string{ClaimAsserted, ClaimWitnessed, ClaimKeyCommitted, ClaimMeasured, ClaimTenantShare,
	ClaimAudited, ClaimDevicePurged, ClaimScanned}

// nodeClaims can stand in a record. The others are about what happens to it
// afterwards.
var nodeClaims = map[string]bool{ClaimAsserted: true, ClaimKeyCommitted: true, ClaimMeasured: true,
	ClaimTenantShare: true, ClaimDevicePurged: true, ClaimScanned: true}

// worth says of each claim what it proves, what it does not, and what is missing
// where a certificate does not have it.
var worth = map[string]struct{ proves, not, missing string }{
	ClaimAsserted: {"the holder of the pinned key signed these records",
		"that what they say is true", ""},
	ClaimWitnessed: {"the records were not backdated or rewritten, and everybody was shown the same log, if a quorum of the witnesses is honest",
		"that what the records say is true",
		"not witnessed: whoever runs the log may have backdated or rewritten the records, or show others another log"},
	ClaimKeyCommitted: {"what the node says is the hash of the lease's key was logged when the lease was opened: if that key ever turns up, whoever holds the annex can convict the provider",
		"that the key will not turn up, or that the hash is of the key that was used: only a ciphertext audit shows that",
		"not key_committed: a key that turns up convicts nobody"},
	ClaimMeasured: {"the last record was signed in the boot that the pinned attestation key tells of",
		"that this key is in a TPM: who made the policy vouches for that, and no endorsement certificate is checked; that this program asked for the quote, and no other on the machine; that what was booted does what it says; that nobody dumped the memory or read it by DMA",
		"not measured: no TPM says which software made the record"},
	ClaimTenantShare: {"if the node mixed the tenant's share and erased the key, a later leak of the node's half alone is useless; without a ciphertext audit it is no more than asserted",
		"that the node mixed the share in, or that it copied nothing while the lease was open",
		"not tenant_share: the node alone made the key"},
	ClaimAudited: {"whoever gave the report sampled raw blocks and decrypted them: they were encrypted under the lease's key",
		"anything of blocks that were not sampled; the report is the word of whoever gave it",
		"not ciphertext_audited: that blocks were encrypted under this key is the node's word"},
	ClaimDevicePurged: {"the drive's firmware reported that it purged the media",
		"that the firmware is honest",
		"not device_purged: ciphertext of the lease may be on the media, in spare flash too: what is gone is its key"},
	ClaimScanned: {"no canary was found in the range that was read",
		"anything of flash that is hidden from reading",
		"not scanned: nobody looked for remains"},
}

// What no certificate can prove.
var neverProven = []string{
	"that no copy of the data or of the key exists anywhere: nobody can prove that of a classical copy",
	"anything against root on the host while the lease was open, a hypervisor that copied guest memory, firmware that lies, or a cold-boot attack on live memory",
}

// claims is step 11.
func (v *verifier) claims() (string, error) {
	supported := map[string]string{ClaimAsserted: ""} // the reason why not, "" where it is
	for _, name := range ClaimNames[1:] {
		supported[name] = v.supports(name)
	}
	end := v.last()
	for _, c := range end.Claims {
		if why := supported[c]; why != "" {
			return "", fmt.Errorf("the %s claims %s: %s", end.Type, c, why)
		}
	}
	for _, e := range []string{EventDiscarded, EventSanitized} {
		if _, ok := end.Event(e); ok && v.annex == nil {
			return "", fmt.Errorf("the %s has an event %s, and no annex with what the drive returned", end.Type, e)
		}
	}
	if _, ok := end.Event(EventSanitized); ok && !v.everyDrive(LevelClear, LevelPurge) {
		return "", fmt.Errorf("the %s has an event sanitized, and no drive was: a discard is none", end.Type)
	}
	if end.Type == SANITIZE && end.Result == ResultOK && !v.sanitized(end.Level) {
		return "", fmt.Errorf("the record says that the drive was sanitized to %s, and its evidence does not", end.Level)
	}
	if v.audit != nil && supported[ClaimAudited] != "" {
		return "", fmt.Errorf("ciphertext audit: %s", supported[ClaimAudited])
	}
	v.result.Claims, v.result.NotProven = []Claim{}, []string{}
	for _, name := range ClaimNames {
		w := worth[name]
		if supported[name] == "" && (!nodeClaims[name] || v.claimed(name)) {
			v.result.Claims = append(v.result.Claims, Claim{Name: name, Proves: w.proves, DoesNotProve: w.not})
		} else if v.result.Kind == "lease" || name == ClaimWitnessed || name == ClaimMeasured {
			v.result.NotProven = append(v.result.NotProven, w.missing)
		}
	}
	v.notProven()
	v.facts()
	v.reveal()
	return fmt.Sprintf("%s supported, %s not proven", count(len(v.result.Claims), "claim is", "claims are"),
		count(len(v.result.NotProven), "thing is", "things are")), nil
}

// claimed reports whether the node made the claim. asserted is in every record;
// where the operator ended the lease, the OPEN's word stands.
func (v *verifier) claimed(name string) bool {
	r := v.last()
	if r.Type == NodeLost {
		r = &v.records[0]
	}
	return name == ClaimAsserted || name == ClaimMeasured || slices.Contains(r.Claims, name)
}

// supports says in one sentence why the evidence does not support a claim, ""
// where it does.
func (v *verifier) supports(name string) string {
	open, end := &v.records[0], v.last()
	released := v.released()
	lease := v.result.Kind == "lease"
	switch name {
	case ClaimWitnessed:
		if !v.policy.NeedsWitnesses() {
			return "the policy asks for no witnesses"
		}
	case ClaimKeyCommitted:
		switch {
		case !lease || open.KeyCommit == "" || open.KeyMode == ModeTenant:
			return "the node committed to no key"
		case released:
			return "the key was released to the tenant"
		}
	case ClaimMeasured:
		if _, ok := v.quotes[len(v.records)-1]; !ok {
			return "there is no TPM quote over this record"
		}
	case ClaimTenantShare:
		if !lease || open.KeyMode != ModeSplit || open.ShareCommit == "" || open.NodeCommit == "" {
			return "the key was not made of two halves"
		}
	case ClaimAudited:
		return v.auditFits(open, released)
	case ClaimDevicePurged:
		if !v.everyDrive(LevelPurge) || end.Type == NodeLost {
			return "not every drive of the record reported a purge"
		}
	case ClaimScanned:
		if !v.scanned() {
			return "there is no scan of every drive that found nothing"
		}
	}
	return ""
}

// released reports whether there is a KEY_RELEASED record, or a CLOSE with its event.
func (v *verifier) released() bool {
	return slices.ContainsFunc(v.records, func(l logged) bool {
		_, event := l.Event(EventKeyReleased)
		return l.Type == KeyReleased || event
	})
}

func (v *verifier) auditFits(open *logged, released bool) string {
	a := v.audit
	switch {
	case a == nil:
		return "there is no report of one"
	case a.LeaseID != open.LeaseID || a.KeyCommit != open.KeyCommit:
		return "the report is of another lease or key"
	case !released:
		return "no record says that the key was released, so nobody can have decrypted blocks"
	case a.Matched != a.Sampled:
		return fmt.Sprintf("%d of %d sampled blocks did not decrypt to what the tenant wrote", a.Sampled-a.Matched, a.Sampled)
	}
	return ""
}

// everyDrive reports whether each drive has a command that is claimed, and was
// checked, to have reached one of the levels.
func (v *verifier) everyDrive(levels ...string) bool {
	if v.annex == nil {
		return false
	}
	for _, m := range v.annex.Media {
		if !slices.ContainsFunc(v.annex.Device, func(d DeviceRun) bool {
			return d.Drive == m.Drive && slices.Contains(levels, d.Level) && d.Command != CommandDiscard
		}) {
			return false
		}
	}
	return true
}

// sanitized reports whether the evidence of a SANITIZE supports its level. A
// destruction is done by people; the record is only asserted.
func (v *verifier) sanitized(level string) bool {
	switch level {
	case LevelPurge:
		return v.everyDrive(LevelPurge)
	case LevelClear:
		return v.everyDrive(LevelClear, LevelPurge)
	}
	return true
}

func (v *verifier) scanned() bool {
	if v.annex == nil {
		return false
	}
	for _, m := range v.annex.Media {
		if !slices.ContainsFunc(v.annex.Scan, func(s Scan) bool {
			return s.Drive == m.Drive && s.Canaries == 0 && s.Blocks > 0 && s.Blocks <= s.Of
		}) {
			return false
		}
	}
	return true
}

// reveal judges a key that turned up. Whoever made the bundle may have left a
// KEY_RELEASED out of it: so the node's own word counts, that it was still committed
// to the key when the lease ended.
func (v *verifier) reveal() {
	key := v.options.RevealedKey
	open := &v.records[0]
	if key == nil || v.result.Kind != "lease" || open.KeyCommit == "" {
		return
	}
	salts := Salts{}
	if v.annex != nil {
		salts = v.annex.Salts
	} else if v.options.Opened != nil {
		salts = v.options.Opened.Salts
	}
	salt, err := hex.DecodeString(salts.Key)
	released := v.released()
	switch {
	case err != nil || len(salt) != KeySaltLen:
		v.fact("revealed key", "it cannot be judged: neither annex nor receipt has the salt of keyCommit")
	case KeyCommit(open.LeaseID, salt, key) != open.KeyCommit:
		v.fact("revealed key", "it is not the key of this lease")
	case released:
		v.fact("revealed key", "it is the key of this lease, which was released to the tenant: it convicts nobody")
	case open.KeyMode == ModeTenant:
		v.fact("revealed key", "it is the key of this lease, which the tenant had made: it convicts nobody")
	case v.last().Type == NodeLost:
		v.fact("revealed key", "it is the key of this lease, whose node is lost: it convicts the provider unless the log has a KEY_RELEASED of the lease, which an audit of the log shows")
	case !slices.Contains(v.last().Claims, ClaimKeyCommitted):
		v.fact("revealed key", "it is the key of this lease, whose CLOSE does not claim key_committed, as where the key was released: it convicts nobody")
	default:
		v.result.Violated = fmt.Sprintf("provider provably violated: the key that was revealed is the one of lease %s, which %s %d says is gone (%s)",
			open.LeaseID, v.last().Type, v.last().NodeSeq, v.result.Result)
	}
}
