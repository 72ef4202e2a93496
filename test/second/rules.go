package second

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// readBeacons verifies the checkpoints that records name, and that the tree of the
// first that does goes on from each. Their witnesses may be too few.
func (v *verifier) readBeacons() error {
	last := int64(0)
	for _, b := range v.bundle.Beacons {
		h, err := v.policy.checkpoint(b.Checkpoint, v.policy.logOnly)
		if err != nil {
			return err
		}
		if h.N <= last {
			return errors.New("beacons are out of order")
		}
		last = h.N
		i := slices.IndexFunc(v.records, func(r record) bool { return r.names(h) })
		if i < 0 || h.N > v.records[i].index {
			return errors.New("a beacon that no record names, or that is newer than the record")
		}
		var path tlog.TreeProof
		for _, text := range b.Consistency {
			raw, err := fromBase64(text)
			if err != nil || len(raw) != tlog.HashSize {
				return errors.New("a hash is none")
			}
			path = append(path, tlog.Hash(raw))
		}
		if err := tlog.CheckTree(path, v.records[i].head.N, v.records[i].head.Hash, h.N, h.Hash); err != nil {
			return err
		}
		v.heads = append(v.heads, h)
	}
	return nil
}

func (r *record) names(h head) bool {
	return r.Beacon != nil && *r.Beacon == beaconJSON{h.Origin, h.N, base64.StdEncoding.EncodeToString(h.Hash[:]), sum([]byte(h.note))}
}

// ofDrive says whether the certificate is of a drive.
func (v *verifier) ofDrive() bool {
	return len(v.records) == 1 && slices.Contains([]string{"ENROL", "SANITIZE", "RETIRE"}, v.records[0].Type)
}

// bound checks that the records are of one lease, or one is of a drive.
func (v *verifier) bound() error {
	open, end := &v.records[0], &v.records[len(v.records)-1]
	v.result, v.lost = end.Result, end.Type == "NODE_LOST"
	if v.ofDrive() {
		return nil
	}
	if open.Type != "OPEN" || len(v.records) < 2 || end.Type != "CLOSE" && !v.lost {
		return errors.New("an OPEN or its end is missing")
	}
	held := *open
	last := map[string]*record{}
	for i := range v.records {
		r := &v.records[i]
		if r.head.Origin != open.head.Origin || i > 0 && r.index <= v.records[i-1].index {
			return errors.New("records of two logs, or out of order")
		}
		if p := last[r.NodeID]; p != nil {
			follows := r.NodeSeq == p.NodeSeq+1
			if r.NodeSeq <= p.NodeSeq || follows != (r.PrevHash == sum(p.payload)) || r.index-p.index < int64(r.NodeSeq-p.NodeSeq) {
				return errors.New("a gap, fork or rollback")
			}
		}
		last[r.NodeID] = r
		if i == 0 {
			continue
		}
		if err := v.follows(r, &held, i == len(v.records)-1); err != nil {
			return fmt.Errorf("record %d: %w", i, err)
		}
	}
	return nil
}

func (v *verifier) follows(r, held *record, isEnd bool) error {
	open := &v.records[0]
	switch r.Type {
	case "NODE_LOST":
		l := r.LostNode
		if !isEnd || l == nil || l.NodeID != open.NodeID {
			return errors.New("another node was lost")
		}
		for i := range v.records {
			o := &v.records[i]
			if o.NodeID == l.NodeID && (o.NodeSeq > l.LastSeq || o.NodeSeq == l.LastSeq && sum(o.payload) != l.LastHash) {
				return errors.New("it does not know the node's last record")
			}
		}
		return nil
	case "KEYS":
		return nil
	case "RESIZE", "KEY_RELEASED":
		if isEnd {
			return errors.New("there is no end")
		}
	case "CLOSE":
		if !isEnd {
			return errors.New("it had ended")
		}
	default:
		return errors.New("it does not belong here")
	}
	if r.NodeID != open.NodeID || r.LeaseID != open.LeaseID || r.OpenSeq != open.NodeSeq ||
		r.OpenLeafIndex != nil && *r.OpenLeafIndex != open.index || r.EraseBy != "" && r.EraseBy != open.EraseBy {
		return errors.New("it is of another lease, or another OPEN")
	}
	for _, f := range [][2]string{{r.KeyCommit, open.KeyCommit}, {r.NodeCommit, open.NodeCommit}, {r.ShareCommit, open.ShareCommit},
		{r.TenantCommit, open.TenantCommit}, {r.KeyMode, open.KeyMode}, {r.Cipher, open.Cipher}} {
		if f[0] != f[1] && (f[0] != "" || r.Type == "CLOSE") {
			return errors.New("a commitment is not the OPEN's")
		}
	}
	now, was := extents(r.Space), extents(held.Space)
	switch {
	case r.Type == "RESIZE":
		for e := range was {
			if !now[e] {
				return errors.New("it takes space away")
			}
		}
		held.Space, held.Bytes = r.Space, r.Bytes
	case r.Type == "CLOSE" && (r.Bytes != held.Bytes || fmt.Sprint(r.Space) != fmt.Sprint(held.Space)):
		return errors.New("it closes another space")
	}
	return nil
}

func extents(space []spaceJSON) map[string]bool {
	out := map[string]bool{}
	for _, s := range space {
		for _, e := range s.Extents {
			for x := e[0]; x < e[0]+e[1]; x++ {
				out[fmt.Sprint(s.Drive, s.Commit, x)] = true
			}
		}
	}
	return out
}

// times checks that nothing happens before what it comes after.
func (v *verifier) times() error {
	var since time.Time
	for i := range v.records {
		r := &v.records[i]
		if r.Beacon != nil && r.Beacon.Origin == r.head.Origin && r.Beacon.Size > r.index {
			return errors.New("a beacon is newer than its record")
		}
		r.to = r.head.quorumAt
		for _, h := range v.heads {
			if r.names(h) {
				r.from = h.since
			}
			if h.N > r.index && !h.quorumAt.IsZero() && h.quorumAt.Before(r.to) && v.leadsTo(h, r) {
				r.to = h.quorumAt
			}
		}
		if r.from.After(since) {
			since = r.from
		}
		if !r.to.IsZero() && r.to.Before(since) {
			return errors.New("witnesses saw a record before its beacon, or before that of one that is before it")
		}
		for _, k := range r.signers {
			if !k.to.IsZero() && (r.to.IsZero() || r.to.After(k.to)) || !k.from.IsZero() && !r.to.IsZero() && r.to.Before(k.from) {
				return errors.New("a key was not valid")
			}
		}
	}
	return v.events()
}

// leadsTo says whether the consistency proof of a beacon leads to a record's tree.
func (v *verifier) leadsTo(h head, r *record) bool {
	i := slices.IndexFunc(v.records, func(r record) bool { return r.names(h) })
	return v.records[i].head.Tree == r.head.Tree
}

func (v *verifier) events() error {
	if v.ofDrive() {
		return nil
	}
	at, boots := map[string]int64{}, map[string]bool{}
	for i := range v.records {
		for _, e := range v.records[i].Events {
			if was, ok := at[e.Type]; ok && was != e.MonotonicNs && e.Type == "key_generated" {
				return errors.New("the key was made twice")
			}
			if i < len(v.records)-1 && e.Type != "key_generated" && e.Type != "key_released" {
				return errors.New("an event of the end comes before it")
			}
			at[e.Type], boots[e.BootID] = e.MonotonicNs, true
		}
	}
	if len(boots) > 1 && v.result != "lost_boot" {
		return errors.New("another boot, and it was not lost")
	}
	last := int64(0)
	for _, typ := range []string{"key_generated", "gate_closed", "key_destroyed"} {
		if t, ok := at[typ]; ok {
			if t < last {
				return errors.New("events are out of order")
			}
			last = t
		}
	}
	_, destroyed := v.end().event("key_destroyed")
	if _, shut := v.end().event("gate_closed"); destroyed && !shut {
		return errors.New("a key destroyed with the gate open")
	}
	vanished := v.lost || slices.Contains([]string{"lost_keeper", "lost_boot", "lost_node"}, v.result)
	if v.result == "ok" && !v.lost && !destroyed || destroyed && vanished {
		return errors.New("the result is not what the events say")
	}
	return nil
}

func (v *verifier) end() *record { return &v.records[len(v.records)-1] }

func (r *record) event(typ string) (eventJSON, bool) {
	i := slices.IndexFunc(r.Events, func(e eventJSON) bool { return e.Type == typ })
	if i < 0 {
		return eventJSON{}, false
	}
	return r.Events[i], true
}

// completions are signed by persons that the policy pins, and of this end.
func (v *verifier) completions() error {
	for _, c := range v.bundle.Completions {
		payload, signers, err := v.policy.open(c)
		if err != nil {
			return err
		}
		if !strings.Contains(string(payload), `"closing":"`+sum(v.end().payload)+`"`) {
			return errors.New("a completion of another certificate")
		}
		for _, k := range signers {
			if k.role != "person" {
				return errors.New("a completion that no person signed")
			}
		}
	}
	return nil
}

// claims checks that the end claims nothing that is not shown.
func (v *verifier) claims() error {
	open, end := &v.records[0], v.end()
	released := slices.ContainsFunc(v.records, func(r record) bool {
		_, event := r.event("key_released")
		return event || r.Type == "KEY_RELEASED"
	})
	if _, ok := end.event("sanitized"); ok && !v.reached("clear", "purge") {
		return errors.New("sanitized, and no command did it")
	}
	if end.Type == "SANITIZE" && end.Result == "ok" && end.Level != "destroy" &&
		!v.reached("purge") && (end.Level != "clear" || !v.reached("clear", "purge")) {
		return errors.New("sanitized to a level that no command reached")
	}
	for _, c := range end.Claims {
		ok := true
		switch c {
		case "key_committed":
			ok = open.KeyCommit != "" && open.KeyMode != "tenant" && !released
		case "tenant_share":
			ok = open.KeyMode == "split"
		case "device_purged":
			ok = v.reached("purge")
		case "scanned":
			ok = v.scanned()
		}
		if !ok {
			return fmt.Errorf("it claims %s, and does not show it", c)
		}
	}
	return nil
}
