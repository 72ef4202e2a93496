package annex

import (
	"fmt"
	"strings"
	"time"

	"vacate/proof"
)

// maxDrives is how many drives a statement lists: with more, it would not fit into
// an envelope ([proof.MaxPayload]).
const maxDrives = 24

// Statement is how a host erases, from what it is configured to and looks like
// now, to be signed by the node's key ([proof.SignStatement]). now is the node's
// wall clock; beacon may be nil. It lists the first 24 drives, and says how many there are.
func Statement(in Inputs, now time.Time, beacon *proof.Beacon) proof.HostStatement {
	s := proof.HostStatement{
		V: 1, NodeID: in.NodeID, At: proof.FormatTime(now), Beacon: beacon,
		Sanitize: method(in.Config), CryptoErase: hostItems(in.Config), Module: module(in.Config),
		Host: in.host(), Media: []proof.Medium{}, Config: configured(in), Limits: hostLimits(in),
	}
	for _, d := range in.Drives[:min(len(in.Drives), maxDrives)] {
		d.Salt = "" // it is the tenants'
		s.Media = append(s.Media, medium(d))
	}
	return s
}

func configured(in Inputs) []proof.NamedFact {
	c := in.Config
	var out []proof.NamedFact
	add := func(name, value, source string) {
		out = append(out, proof.NamedFact{Name: name, Fact: said(value, source)})
	}
	add("program", c.Version, proof.SourceObserved)
	add("drives", fmt.Sprintf("%d enrolled, %d listed", len(in.Drives), min(len(in.Drives), maxDrives)), proof.SourceObserved)
	add("sandbox", c.Sandbox, proof.SourceObserved)
	add("drain deadline", seconds(c.DrainDeadline), proof.SourceConfigured)
	add("node's key", c.NodeKey, proof.SourceConfigured)
	add("log", c.Log, proof.SourceConfigured)
	add("witnesses", fmt.Sprintf("%d, quorum %s", c.Witnesses, orNone(c.Quorum)), proof.SourceConfigured)
	add("danger zone", orNone(strings.Join(c.Danger, ", ")), proof.SourceConfigured)
	return out
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
