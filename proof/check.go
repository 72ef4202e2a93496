package proof

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

func (r *Record) check() error {
	rule, known := fieldRules[r.Type]
	if r.V != RecordVersion || !known {
		return fmt.Errorf("version %d or type %.40q is unknown", r.V, r.Type)
	}
	have := r.fields()
	for _, f := range strings.Fields(rule.must) {
		if !have[f] {
			return fmt.Errorf("%s is missing", f)
		}
		delete(have, f)
	}
	for _, f := range strings.Fields(rule.may) {
		delete(have, f)
	}
	for _, f := range slices.Sorted(maps.Keys(have)) {
		if have[f] {
			return fmt.Errorf("%s does not belong to a record of this type", f)
		}
	}
	for _, check := range []func() error{r.checkIdentity, r.checkHashes, r.checkKeyFields, r.checkSpace, r.checkEvents,
		r.checkWords, r.checkResult, r.checkOthers} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (r *Record) checkIdentity() error {
	operator, isOperator := strings.CutPrefix(r.NodeID, OperatorPrefix)
	switch {
	case isOperator && r.Type != NodeLost && r.Type != KEYS:
		return errors.New("nodeId is an operator's, who makes no such records")
	case !isOperator && r.Type == NodeLost:
		return errors.New("nodeId is a node's; only the operator says that a node is lost")
	case r.NodeSeq == 0 || r.NodeSeq > maxSeq:
		return fmt.Errorf("nodeSeq %d is not between 1 and 2^53-1", r.NodeSeq)
	case r.NodeSeq == 1 && r.PrevHash != ZeroHash:
		return errors.New("prevHash of a first record is not zero")
	case r.OpenSeq >= r.NodeSeq:
		return fmt.Errorf("openSeq %d does not come before nodeSeq %d", r.OpenSeq, r.NodeSeq)
	case r.LeaseID != "" && !ValidLeaseID(r.LeaseID):
		return fmt.Errorf("leaseId %.80q has not the form of one", r.LeaseID)
	case r.OpenLeafIndex != nil && *r.OpenLeafIndex > maxSeq:
		return fmt.Errorf("openLeafIndex %d is too large", *r.OpenLeafIndex)
	}
	if isOperator {
		return checkHex("nodeId of an operator", operator, operatorLen)
	}
	return checkHex("nodeId", r.NodeID, nodeIDLen)
}

// ValidLeaseID reports whether s has the form of a lease's id: 16 characters,
// a–z and 2–7.
func ValidLeaseID(s string) bool {
	return len(s) == leaseIDLen && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz234567") == "" // Trim: none is outside
}

func (r *Record) checkHashes() error {
	if err := checkHex("prevHash", r.PrevHash, sha256.Size); err != nil {
		return err
	}
	for _, h := range []struct{ name, value string }{{"tenantCommit", r.TenantCommit}, {"keyCommit", r.KeyCommit},
		{"nodeCommit", r.NodeCommit}, {"shareCommit", r.ShareCommit}, {"annexDigest", r.AnnexDigest}} {
		if h.value == "" {
			continue
		}
		if err := checkHex(h.name, h.value, sha256.Size); err != nil {
			return err
		}
	}
	return nil
}

func (r *Record) checkKeyFields() error {
	switch r.KeyMode {
	case "", ModeNode, ModeSplit, ModeTenant:
	default:
		return fmt.Errorf("keyMode %.40q is unknown", r.KeyMode)
	}
	switch {
	case r.Cipher != "" && (r.Cipher != CipherXTS || r.KeyBits != XTSBits):
		return fmt.Errorf("cipher %.40q with %d bits is unknown", r.Cipher, r.KeyBits)
	case r.Cipher == "" && r.KeyBits != 0:
		return errors.New("keyBits without cipher")
	case r.Type == OPEN && r.KeyMode != ModeTenant && r.KeyCommit == "":
		return errors.New("keyCommit is missing, the node knows the key")
	case r.Type == OPEN && (r.KeyMode == ModeSplit) != (r.NodeCommit != "" && r.ShareCommit != ""),
		r.KeyMode != ModeSplit && (r.NodeCommit != "" || r.ShareCommit != ""):
		return errors.New("nodeCommit and shareCommit stand together, in keyMode split only")
	}
	return nil
}

func (r *Record) checkSpace() error {
	if r.Bytes < 0 || r.Bytes > maxBytes {
		return fmt.Errorf("bytes %d is not between 0 and 2^62", r.Bytes)
	}
	pieces := 0
	commits := map[string]string{}
	for i, s := range r.Space {
		if err := checkHex("drive", s.Drive, nodeIDLen); err != nil {
			return err
		}
		if s.Commit != "" {
			if err := checkHex("driveCommit", s.Commit, sha256.Size); err != nil {
				return err
			}
		}
		if c, ok := commits[s.Drive]; ok && c != s.Commit {
			return fmt.Errorf("drive %s has two commitments", s.Drive)
		}
		commits[s.Drive] = s.Commit
		if pieces += len(s.Extents); len(s.Extents) == 0 || pieces > MaxPieces {
			return fmt.Errorf("space has a drive without extents or more than %d pieces", MaxPieces)
		}
		for j, e := range s.Extents {
			if e.Count == 0 || e.End() > 1<<32 {
				return fmt.Errorf("extents [%d,%d] of drive %s are none", e.First, e.Count, s.Drive)
			}
			if Overlap([]Space{{Drive: s.Drive, Extents: []Range{e}}}, r.Space[:i]) ||
				slices.ContainsFunc(s.Extents[:j], e.Overlaps) {
				return fmt.Errorf("space has extent %d of drive %s twice", e.First, s.Drive)
			}
		}
	}
	if driveRecord := r.Type == ENROL || r.Type == SANITIZE || r.Type == RETIRE; driveRecord && len(r.Space) != 1 {
		return fmt.Errorf("space is of %d drives, the record is of one", len(r.Space))
	}
	return nil
}

// Overlap reports whether two volumes share an extent.
func Overlap(a, b []Space) bool {
	for _, x := range a {
		for _, y := range b {
			if x.Drive != y.Drive {
				continue
			}
			for _, r := range x.Extents {
				if slices.ContainsFunc(y.Extents, r.Overlaps) {
					return true
				}
			}
		}
	}
	return false
}

func (r *Record) checkEvents() error {
	if len(r.Events) > MaxEvents {
		return fmt.Errorf("%d events, at most %d are allowed", len(r.Events), MaxEvents)
	}
	for i, e := range r.Events {
		switch e.Type {
		case EventKeyGenerated, EventGateClosed, EventKeyDestroyed, EventDiscarded, EventSanitized, EventKeyReleased:
		default:
			return fmt.Errorf("event %.40q is unknown", e.Type)
		}
		if e.MonotonicNs <= 0 || !isWord(e.BootID, "-", 64) {
			return fmt.Errorf("event %s has no time, or no boot", e.Type)
		}
		if slices.ContainsFunc(r.Events[:i], func(o Event) bool { return o.Type == e.Type }) {
			return fmt.Errorf("event %s stands twice", e.Type)
		}
	}
	return nil
}

// isWord reports whether s has 1 to n letters and digits, or what is in more.
func isWord(s, more string, n int) bool {
	outside := func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune(more, c)
	}
	return s != "" && len(s) <= n && strings.IndexFunc(s, outside) < 0
}

func (r *Record) checkWords() error {
	if len(r.Claims) > MaxWords || len(r.NotClaimed) > MaxWords {
		return fmt.Errorf("more than %d claims", MaxWords)
	}
	for _, c := range r.Claims {
		if !nodeClaims[c] {
			return fmt.Errorf("a record cannot claim %.40q", c)
		}
	}
	for _, w := range r.NotClaimed {
		if !isWord(w, "_", 40) {
			return fmt.Errorf("notClaimed has %.80q, which is no word", w)
		}
	}
	for _, words := range [][]string{r.Claims, r.NotClaimed} {
		for i := 1; i < len(words); i++ {
			if words[i-1] == words[i] {
				return fmt.Errorf("%q stands twice", words[i])
			}
		}
	}
	return nil
}

func (r *Record) checkResult() error {
	var allowed []string
	switch r.Type {
	case CLOSE:
		allowed = []string{ResultOK, ResultFailed, ResultLostKeeper, ResultLostBoot, ResultLostEngine, ResultLostDrive, ResultLostNode}
	case NodeLost:
		allowed = []string{ResultLostNode}
	default:
		allowed = []string{ResultOK, ResultFailed}
	}
	if r.Result != "" && !slices.Contains(allowed, r.Result) {
		return fmt.Errorf("result %.40q is unknown", r.Result)
	}
	if r.Level != "" && !slices.Contains([]string{LevelClear, LevelPurge, LevelDestroy}, r.Level) {
		return fmt.Errorf("level %.40q is unknown", r.Level)
	}
	return nil
}

func (r *Record) checkOthers() error {
	if r.Beacon != nil {
		if err := r.Beacon.check(); err != nil {
			return err
		}
	}
	if r.EraseBy != "" {
		if _, err := ParseTime(r.EraseBy); err != nil {
			return fmt.Errorf("eraseBy: %w", err)
		}
	}
	if len(r.Keys) > MaxKeys {
		return fmt.Errorf("%d keys, at most %d are allowed", len(r.Keys), MaxKeys)
	}
	for _, k := range r.Keys {
		if err := k.check(); err != nil {
			return fmt.Errorf("keys: %w", err)
		}
	}
	if l := r.LostNode; l != nil {
		if l.LastSeq == 0 || l.LastSeq > maxSeq {
			return fmt.Errorf("lastSeq %d of the lost node is not between 1 and 2^53-1", l.LastSeq)
		}
		return errors.Join(checkHex("nodeId of the lost node", l.NodeID, nodeIDLen), checkHex("lastHash", l.LastHash, sha256.Size))
	}
	return nil
}

func (b *Beacon) check() error {
	root, err := decodeBase64("beacon root", b.Root)
	if err != nil {
		return err
	}
	if len(root) != sha256.Size || b.Size == 0 || b.Size > maxSeq || !validKeyName(b.Origin) {
		return errors.New("beacon has not the form of a checkpoint")
	}
	return checkHex("beacon digest", b.Digest, sha256.Size)
}

func (k KeyChange) check() error {
	switch k.Role {
	case RoleNode, RoleOperator:
		if k.Old == k.New {
			return errors.New("a key is replaced by itself")
		}
		if _, err := ParsePublicKey(k.New); err != nil {
			return err
		}
		if k.Old == "" {
			return nil
		}
		_, err := ParsePublicKey(k.Old)
		return err
	case RoleLog, RoleTPM:
		if k.New == "" || len(k.New) > 1024 || len(k.Old) > 1024 {
			return fmt.Errorf("key of role %s is empty or longer than 1024 bytes", k.Role)
		}
		return nil
	}
	return fmt.Errorf("role %.40q is unknown", k.Role)
}
