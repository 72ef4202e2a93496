package proof

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
)

// bound is step 7. A bundle is one record about a drive (ENROL, SANITIZE,
// RETIRE), or the records of a lease in the order of the log:
//
//	OPEN (RESIZE | KEY_RELEASED | KEYS)* (CLOSE | NODE_LOST)
func (v *verifier) bound() (string, error) {
	if len(v.records) == 1 && v.records[0].isDrive() {
		return v.boundDrive()
	}
	if err := v.boundShape(); err != nil {
		return "", err
	}
	if err := v.boundOrder(); err != nil {
		return "", err
	}
	open := &v.records[0]
	held := open.Record // what the lease has, as far as it is read
	for i := 1; i < len(v.records); i++ {
		l := &v.records[i]
		var err error
		switch l.Type {
		case NodeLost:
			err = v.boundLost(l)
		case KEYS:
		default:
			err = v.boundRecord(&held, l)
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w", v.name(i), err)
		}
	}
	if err := v.boundReceipt(); err != nil {
		return "", err
	}
	v.result.Kind, v.result.LeaseID, v.result.NodeID = "lease", open.LeaseID, open.NodeID
	v.result.Bytes, v.result.Space, v.result.KeyMode = held.Bytes, held.Space, open.KeyMode
	v.result.EraseBy = open.EraseBy
	v.result.Result = v.last().Result
	if v.last().Type == NodeLost {
		v.result.Result = ResultLostNode
	}
	v.result.NotClaimed = v.last().NotClaimed
	text := fmt.Sprintf("%s %d ends what OPEN %d of node %.8s opened: same lease, space, size and key", v.last().Type, v.last().NodeSeq,
		open.NodeSeq, open.NodeID)
	if v.result.Opened {
		text += "; it is the lease of the receipt"
	}
	return text, nil
}

func (r *Record) isDrive() bool { return r.Type == ENROL || r.Type == SANITIZE || r.Type == RETIRE }

func (v *verifier) boundDrive() (string, error) {
	r := &v.records[0]
	if v.options.Opened != nil {
		return "", errors.New("the receipt is of a lease, the certificate of a drive")
	}
	v.result.Kind, v.result.NodeID, v.result.Result = "drive", r.NodeID, r.Result
	v.result.Bytes, v.result.Space, v.result.NotClaimed = r.Bytes, r.Space, r.NotClaimed
	return fmt.Sprintf("%s %d of node %.8s is about one drive", r.Type, r.NodeSeq, r.NodeID), nil
}

// boundShape checks that there is one OPEN and one end, and which records stand
// between.
func (v *verifier) boundShape() error {
	open := &v.records[0]
	if open.Type != OPEN {
		return fmt.Errorf("the first record is of type %s: there is no OPEN", open.Type)
	}
	if len(v.records) == 1 {
		return errors.New("there is an OPEN and no end: the lease is open, or its end was left out")
	}
	for i := 1; i < len(v.records); i++ {
		l := &v.records[i]
		switch {
		case l.Type == CLOSE && i == len(v.records)-1, l.Type == NodeLost && i == len(v.records)-1:
		case l.Type == CLOSE || l.Type == NodeLost:
			return fmt.Errorf("%s: the lease had ended, and there are records after it", v.name(i))
		case i == len(v.records)-1:
			return fmt.Errorf("the last record is of type %s: there is no CLOSE", l.Type)
		case l.Type == RESIZE || l.Type == KeyReleased || l.Type == KEYS:
		default:
			return fmt.Errorf("%s: it does not belong between a lease's OPEN and its end", v.name(i))
		}
		if l.Type != NodeLost && l.Type != KEYS && (l.NodeID != open.NodeID || l.LeaseID != open.LeaseID) {
			return fmt.Errorf("%s: it is of lease %s of node %.8s, the OPEN of lease %s of node %.8s",
				v.name(i), l.LeaseID, l.NodeID, open.LeaseID, open.NodeID)
		}
		if l.Type == KEYS && l.NodeID != open.NodeID && v.last().NodeID != l.NodeID {
			return fmt.Errorf("%s: it rotates keys of %.40s, who signed none of these records", v.name(i), l.NodeID)
		}
	}
	return nil
}

// boundOrder checks indices, numbers and, where two records follow each other
// directly, the chain.
func (v *verifier) boundOrder() error {
	last := map[string]*logged{} // by node
	for i := range v.records {
		l := &v.records[i]
		if i > 0 && l.proof.Index <= v.records[i-1].proof.Index {
			return fmt.Errorf("%s: it is at index %d of the log, not after the one before", v.name(i), l.proof.Index)
		}
		p := last[l.NodeID]
		last[l.NodeID] = l
		if p == nil {
			continue
		}
		switch {
		case l.NodeSeq <= p.NodeSeq:
			return fmt.Errorf("%s: its number is not above %d, that of the one before: a fork or a rollback", v.name(i), p.NodeSeq)
		case l.NodeSeq == p.NodeSeq+1 && l.PrevHash != PayloadHash(p.payload):
			return fmt.Errorf("%s: its prevHash is not that of record %d", v.name(i), p.NodeSeq)
		case l.NodeSeq > p.NodeSeq+1 && l.PrevHash == PayloadHash(p.payload):
			return fmt.Errorf("%s: its prevHash is that of record %d, which is not the one before it", v.name(i), p.NodeSeq)
		case l.proof.Index-p.proof.Index < l.NodeSeq-p.NodeSeq:
			return fmt.Errorf("%s: the log has too few leaves between it and record %d for those that are numbered between: a gap",
				v.name(i), p.NodeSeq)
		}
	}
	return nil
}

// boundRecord checks a RESIZE, KEY_RELEASED or CLOSE against what the lease has.
func (v *verifier) boundRecord(held *Record, l *logged) error {
	open := &v.records[0]
	if l.OpenSeq != open.NodeSeq {
		return fmt.Errorf("it names record %d as the OPEN, which is %d", l.OpenSeq, open.NodeSeq)
	}
	if l.OpenLeafIndex != nil && *l.OpenLeafIndex != open.proof.Index {
		return fmt.Errorf("it names leaf %d as the OPEN, which is leaf %d", *l.OpenLeafIndex, open.proof.Index)
	}
	whole := l.Type == CLOSE // it repeats everything; others need not
	for _, f := range []struct{ name, want, got string }{{"keyCommit", open.KeyCommit, l.KeyCommit},
		{"nodeCommit", open.NodeCommit, l.NodeCommit}, {"shareCommit", open.ShareCommit, l.ShareCommit},
		{"tenantCommit", open.TenantCommit, l.TenantCommit}, {"keyMode", string(open.KeyMode), string(l.KeyMode)},
		{"cipher", open.Cipher, l.Cipher}} {
		if f.got != f.want && (whole || f.got != "") {
			return fmt.Errorf("its %s is not the OPEN's", f.name)
		}
	}
	if l.EraseBy != "" && l.EraseBy != open.EraseBy {
		return fmt.Errorf("its eraseBy is %s, the OPEN's %q", l.EraseBy, open.EraseBy)
	}
	switch {
	case l.Type == RESIZE:
		if l.Bytes < held.Bytes || !within(held.Space, l.Space) {
			return errors.New("it takes space away from an open lease")
		}
		held.Bytes, held.Space = l.Bytes, l.Space
	case l.Type == CLOSE || len(l.Space) > 0 || l.Bytes != 0:
		if l.Bytes != held.Bytes || !sameSpace(l.Space, held.Space) {
			return errors.New("its size or its space is not what the lease had")
		}
	}
	return nil
}

func sameSpace(a, b []Space) bool {
	return slices.EqualFunc(a, b, func(x, y Space) bool {
		return x.Drive == y.Drive && x.Commit == y.Commit && slices.Equal(x.Extents, y.Extents)
	})
}

// within reports whether every extent of a is one of b's. Ranges of b may join
// several of a's.
func within(a, b []Space) bool {
	for _, x := range a {
		for _, r := range x.Extents {
			left := uint64(r.Count)
			for _, y := range b {
				if y.Drive != x.Drive || y.Commit != x.Commit {
					continue
				}
				for _, s := range y.Extents { // b has no extent twice
					if r.Overlaps(s) {
						left -= min(r.End(), s.End()) - uint64(max(r.First, s.First))
					}
				}
			}
			if left != 0 {
				return false
			}
		}
	}
	return true
}

// boundLost checks that a NODE_LOST is of the lease's node, and knew its records.
func (v *verifier) boundLost(l *logged) error {
	open := &v.records[0]
	if l.LostNode.NodeID != open.NodeID {
		return fmt.Errorf("it is of node %.8s, the lease was on %.8s", l.LostNode.NodeID, open.NodeID)
	}
	for i := range v.records {
		r := &v.records[i]
		if r.NodeID != open.NodeID {
			continue
		}
		if r.NodeSeq > l.LostNode.LastSeq {
			return fmt.Errorf("it names %d as the node's last record, and %s is later", l.LostNode.LastSeq, v.name(i))
		}
		if r.NodeSeq == l.LostNode.LastSeq && PayloadHash(r.payload) != l.LostNode.LastHash {
			return fmt.Errorf("it names another last record %d of the node than this: a fork", r.NodeSeq)
		}
	}
	return nil
}

// boundReceipt demands the lease of the tenant's receipt.
func (v *verifier) boundReceipt() error {
	r := v.options.Opened
	if r == nil {
		return nil
	}
	if !bytes.Equal(r.Envelope, v.records[0].raw) {
		return errors.New("the OPEN is not the receipt's: this is another lease, or another record was logged than the tenant was shown")
	}
	v.result.Opened = true
	return nil
}
