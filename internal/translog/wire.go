package translog

import (
	"errors"
	"fmt"

	"vacate/proof"
)

// What goes over the wire when records are added (docs/spec/log.md): a request
// is a sequence of entries, as in a bundle of C2SP tlog-tiles; an answer is a
// document in JSON.
const (
	addPath    = "/vacate/v1/add"
	addType    = "application/octet-stream"
	maxAddBody = 4 << 20
	maxAnswer  = 64 << 10
	wireV      = 1
)

// Codes of what is wrong.
const (
	codeFork      = "fork"
	codeGap       = "gap"
	codeRefused   = "refused"
	codeForbidden = "forbidden" // this client may not add records of this node
	codeMalformed = "malformed"
	codeBusy      = "busy"
	codeFailed    = "failed"
)

// answer is what an addition is answered with: Indices, or Code and what belongs to it.
type answer struct {
	V       int      `json:"v"`
	Indices []uint64 `json:"indices,omitempty"`
	Code    string   `json:"code,omitempty"`
	NodeID  string   `json:"nodeId,omitempty"`
	NodeSeq uint64   `json:"nodeSeq,omitempty"`
	Index   *uint64  `json:"index,omitempty"` // fork
	Want    uint64   `json:"want,omitempty"`  // gap
	Text    string   `json:"text,omitempty"`
}

// encodeLeaves makes the body of a request.
func encodeLeaves(leaves []Leaf) ([]byte, error) {
	var b []byte
	for _, l := range leaves {
		if len(l.Envelope) > proof.MaxEnvelope {
			return nil, &RefusedError{l.NodeID, l.NodeSeq, "its envelope is too long"}
		}
		b = appendLeaf(b, l.Envelope)
	}
	return b, nil
}

// decodeLeaves takes the body of a request.
func decodeLeaves(b []byte) ([]Leaf, error) {
	var leaves []Leaf
	for len(b) > 0 {
		if len(leaves) == MaxAdd {
			return nil, fmt.Errorf("more than %d records at once", MaxAdd)
		}
		envelope, rest, err := cutLeaf(b)
		if err != nil {
			return nil, fmt.Errorf("record %d of the request: %w", len(leaves), err)
		}
		node, seq, err := identity(envelope)
		if err != nil {
			return nil, fmt.Errorf("record %d of the request: %w", len(leaves), err)
		}
		leaves = append(leaves, Leaf{node, seq, envelope})
		b = rest
	}
	if len(leaves) == 0 {
		return nil, errors.New("the request has no records")
	}
	return leaves, nil
}

// answerOf says what is wrong.
func answerOf(err error) answer {
	a := answer{V: wireV, Code: codeFailed, Text: err.Error()}
	var fork *ForkError
	var gap *GapError
	var refused *RefusedError
	switch {
	case errors.As(err, &fork):
		a.Code, a.NodeID, a.NodeSeq, a.Index = codeFork, fork.NodeID, fork.NodeSeq, &fork.Index
	case errors.As(err, &gap):
		a.Code, a.NodeID, a.NodeSeq, a.Want = codeGap, gap.NodeID, gap.NodeSeq, gap.Want
	case errors.As(err, &refused):
		a.Code, a.NodeID, a.NodeSeq, a.Text = codeRefused, refused.NodeID, refused.NodeSeq, refused.Reason
	}
	return a
}

// err is the inverse of answerOf.
func (a answer) err() error {
	switch {
	case a.Code == codeFork && a.Index != nil:
		return &ForkError{a.NodeID, a.NodeSeq, *a.Index}
	case a.Code == codeGap:
		return &GapError{a.NodeID, a.NodeSeq, a.Want}
	case a.Code == codeRefused:
		return &RefusedError{a.NodeID, a.NodeSeq, a.Text}
	}
	return fmt.Errorf("the log answers %.40q: %.400s", a.Code, a.Text)
}
