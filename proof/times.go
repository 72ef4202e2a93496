package proof

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// times is step 8. A record is not older than the beacon that it names: it bears
// the hash of the beacon's cosignatures, which nobody could have made before the
// witnesses did ([Policy.QuorumSince]). It is not younger than the first checkpoint
// that has it and that a quorum cosigned ([Policy.QuorumTime]). The node's clock is
// never read.
func (v *verifier) times() (string, error) {
	if err := v.timeBeacons(); err != nil {
		return "", err
	}
	proven := 0
	var since time.Time // the latest time before which a record was not there that the log has until here
	for i := range v.records {
		l := &v.records[i]
		l.to = v.notAfter(i)
		if l.from.After(since) {
			since = l.from
		}
		switch {
		case l.to.IsZero() || !l.to.Before(since):
		case l.to.Before(l.from):
			return "", fmt.Errorf("%s: witnesses saw it at %s, before its beacon at %s", v.name(i), FormatTime(l.to), FormatTime(l.from))
		default:
			return "", fmt.Errorf("%s: witnesses saw it at %s, before the beacon of a record that stands before it in the log, at %s",
				v.name(i), FormatTime(l.to), FormatTime(since))
		}
		for _, k := range l.signers {
			if err := validAt(k, l.to); err != nil {
				return "", fmt.Errorf("%s: %w", v.name(i), err)
			}
		}
		m := Moment{Record: l.Type, NodeSeq: l.NodeSeq, LeafIndex: l.proof.Index}
		if !l.from.IsZero() {
			m.NotBefore = FormatTime(l.from)
		}
		if !l.to.IsZero() {
			m.NotAfter = FormatTime(l.to)
			proven++
		}
		v.result.Times = append(v.result.Times, m)
	}
	if err := v.timeEvents(); err != nil {
		return "", err
	}
	v.deadline()
	if proven == 0 {
		return "nothing contradicts itself; without witnesses no time is proven", nil
	}
	return fmt.Sprintf("the %s was made between %s and %s", v.last().Type, orUnknown(v.last().from), orUnknown(v.last().to)), nil
}

func orUnknown(t time.Time) string {
	if t.IsZero() {
		return "an unknown time"
	}
	return FormatTime(t)
}

// timeBeacons checks that each beacon is the beginning of the tree that its first
// record is in, and that no record is older than the beacon that it names.
func (v *verifier) timeBeacons() error {
	for i, b := range v.beacons {
		first := &v.records[b.first]
		if b.head.Size > first.proof.Index {
			return fmt.Errorf("%s: its beacon is of a tree of %d leaves, which has the record itself at %d", v.name(b.first), b.head.Size, first.proof.Index)
		}
		if err := VerifyConsistency(b.head, first.head, b.path); err != nil {
			return fmt.Errorf("beacon %d: %w", i+1, err)
		}
	}
	for i := range v.records {
		l := &v.records[i]
		if l.Beacon == nil {
			continue
		}
		if l.Beacon.Origin == v.result.Log && l.Beacon.Size > l.proof.Index {
			return fmt.Errorf("%s: its beacon is of a tree of %d leaves, newer than the record at %d", v.name(i), l.Beacon.Size, l.proof.Index)
		}
		for _, b := range v.beacons {
			if b.named == *l.Beacon {
				l.from, _ = v.policy.QuorumSince(b.head)
			}
		}
	}
	return nil
}

// notAfter is the earliest time by which a quorum had seen record i: that of its
// own checkpoint, or of a beacon whose tree has it already and is the beginning
// of that checkpoint's.
func (v *verifier) notAfter(i int) time.Time {
	l := &v.records[i]
	best, ok := v.policy.QuorumTime(l.head)
	if !ok {
		return time.Time{}
	}
	for _, b := range v.beacons {
		linked := v.records[b.first].head
		if b.head.Size <= l.proof.Index || linked.Size != l.head.Size || linked.Root != l.head.Root {
			continue
		}
		if t, ok := v.policy.QuorumTime(b.head); ok && t.Before(best) {
			best = t
		}
	}
	return best
}

// validAt checks that a key was valid when witnesses saw what it signed. A
// signature that was made in time and seen too late cannot be told from one that
// was made too late.
func validAt(k PinnedKey, seen time.Time) error {
	switch {
	case !k.NotAfter.IsZero() && seen.IsZero():
		return fmt.Errorf("the key of %s is valid until %s, and no witness says when it signed", k.Name, FormatTime(k.NotAfter))
	case !k.NotAfter.IsZero() && seen.After(k.NotAfter):
		return fmt.Errorf("the key of %s was valid until %s, witnesses saw the record at %s", k.Name, FormatTime(k.NotAfter), FormatTime(seen))
	case !k.NotBefore.IsZero() && !seen.IsZero() && seen.Before(k.NotBefore):
		return fmt.Errorf("the key of %s is valid from %s on, witnesses saw the record at %s", k.Name, FormatTime(k.NotBefore), FormatTime(seen))
	}
	return nil
}

// eventOrder is in which order events of one boot happen.
var eventOrder = []string{EventKeyGenerated, EventGateClosed, EventKeyDestroyed}

// timeEvents checks the order of a lease's events, and that they are of one boot
// unless the end says that the boot was lost.
func (v *verifier) timeEvents() error {
	if v.result.Kind != "lease" {
		return nil
	}
	end := v.last()
	var boot string
	seen := map[string]int64{}
	for i := range v.records {
		for _, e := range v.records[i].Events {
			if boot == "" {
				boot = e.BootID
			}
			if e.BootID != boot && v.result.Result != ResultLostBoot {
				return fmt.Errorf("%s: %s was on boot %s, events before on %s, and the result is not lost_boot", v.name(i), e.Type, e.BootID, boot)
			}
			if at, ok := seen[e.Type]; ok && e.Type == EventKeyGenerated && at != e.MonotonicNs {
				return fmt.Errorf("%s: the key was generated at another time than the OPEN says", v.name(i))
			}
			if i < len(v.records)-1 && e.Type != EventKeyGenerated && e.Type != EventKeyReleased {
				return fmt.Errorf("%s: %s comes before the lease's end", v.name(i), e.Type)
			}
			seen[e.Type] = e.MonotonicNs
		}
	}
	last, name := int64(0), ""
	for _, typ := range eventOrder {
		at, ok := seen[typ]
		if ok && at < last {
			return fmt.Errorf("%s comes before %s: the key was destroyed before the last write, or the gate shut before there was a key", typ, name)
		}
		if ok {
			last, name = at, typ
		}
	}
	gate := seen[EventGateClosed]
	for _, typ := range []string{EventDiscarded, EventSanitized} {
		if at, ok := seen[typ]; ok && at < gate {
			return fmt.Errorf("%s comes before %s", typ, EventGateClosed)
		}
	}
	return end.eventsFitResult(v.result.Result)
}

// eventsFitResult checks that a CLOSE claims the end that it has the events of.
func (r *Record) eventsFitResult(result string) error {
	_, destroyed := r.Event(EventKeyDestroyed)
	_, shut := r.Event(EventGateClosed)
	switch {
	case destroyed && !shut:
		return errors.New("the key was destroyed, and nobody observed that the gate was shut before: there may have been writes after it")
	case r.Type == CLOSE && result == ResultOK && !destroyed:
		return errors.New("the result is ok, and nobody observed that the key was destroyed")
	case destroyed && slices.Contains([]string{ResultLostKeeper, ResultLostBoot, ResultLostNode}, result):
		return fmt.Errorf("the result is %s, and still somebody observed that the key was destroyed", result)
	}
	return nil
}

// deadline says whether the lease ended in time.
func (v *verifier) deadline() {
	if v.result.EraseBy == "" {
		return
	}
	by, err := ParseTime(v.result.EraseBy)
	if err != nil {
		panic("proof: eraseBy was not checked: " + err.Error())
	}
	end := v.last()
	switch {
	case !end.to.IsZero() && !end.to.After(by):
		v.result.Deadline = "met"
	case !end.from.IsZero() && end.from.After(by):
		v.result.Deadline = "missed"
	default:
		v.result.Deadline = "not proven"
	}
}
