package server

import (
	"context"
	"fmt"
	"slices"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/node"
)

// trust answers TrustService.
type trust struct{ s *Server }

// Policy implements TrustService.
func (h trust) Policy(ctx context.Context, _ *vacatev1.TrustServicePolicyRequest) (*vacatev1.TrustServicePolicyResponse, error) {
	p, err := h.s.proof("policy")
	if err != nil {
		return nil, err
	}
	b, err := p.Policy(ctx)
	if err != nil {
		return nil, err
	}
	return &vacatev1.TrustServicePolicyResponse{Policy: b}, nil
}

// Keys implements TrustService.
func (h trust) Keys(ctx context.Context, _ *vacatev1.TrustServiceKeysRequest) (*vacatev1.TrustServiceKeysResponse, error) {
	p, err := h.s.proof("keys")
	if err != nil {
		return nil, err
	}
	all, err := p.Keys(ctx)
	if err != nil {
		return nil, err
	}
	res := &vacatev1.TrustServiceKeysResponse{}
	for _, k := range all {
		res.Keys = append(res.Keys, keyMessage(k))
	}
	return res, nil
}

// rotatable are the roles whose keys a daemon can replace. A log's key is its
// name: another key is another log.
var rotatable = []string{"node", "operator"}

// Rotate implements TrustService. A caller that goes away does not stop it.
func (h trust) Rotate(ctx context.Context, req *vacatev1.TrustServiceRotateRequest) (*vacatev1.TrustServiceRotateResponse, error) {
	if !slices.Contains(rotatable, req.GetRole()) {
		return nil, &node.Error{Kind: node.Invalid, Object: "role", Text: fmt.Sprintf("there is no key of role %q to rotate", req.GetRole()),
			Next: "write node or operator; a log's key is never replaced: start another log, and put both into the policy"}
	}
	p, err := h.s.proof("keys")
	if err != nil {
		return nil, err
	}
	r, err := p.Rotate(context.WithoutCancel(ctx), req.GetRole(), req.GetPlan())
	if err != nil {
		return nil, err
	}
	res := &vacatev1.TrustServiceRotateResponse{Old: keyMessage(r.Old), NodeSeq: r.NodeSeq}
	if !req.GetPlan() {
		res.New = keyMessage(r.New)
	}
	return res, nil
}

// Statement implements TrustService.
func (h trust) Statement(ctx context.Context, _ *vacatev1.TrustServiceStatementRequest) (*vacatev1.TrustServiceStatementResponse, error) {
	p, err := h.s.proof("statement")
	if err != nil {
		return nil, err
	}
	b, err := p.Statement(ctx)
	if err != nil {
		return nil, err
	}
	return &vacatev1.TrustServiceStatementResponse{Statement: b}, nil
}

func keyMessage(k Key) *vacatev1.Key {
	return &vacatev1.Key{Role: k.Role, Name: k.Name, PublicKey: k.PublicKey, KeyId: k.KeyID, Where: k.Where,
		Since: timestamp(k.Since), Until: timestamp(k.Until)}
}

// translog answers LogService.
type translog struct{ s *Server }

// maxLeaves is how many leaves are returned at once: 256 of 4 KiB are 1 MiB.
const maxLeaves = 256

// Status implements LogService.
func (h translog) Status(ctx context.Context, _ *vacatev1.LogServiceStatusRequest) (*vacatev1.LogServiceStatusResponse, error) {
	p, err := h.s.proof("log")
	if err != nil {
		return nil, err
	}
	st, err := p.LogStatus(ctx)
	if err != nil {
		return nil, err
	}
	return &vacatev1.LogServiceStatusResponse{Origin: st.Origin, Where: st.Where, Checkpoint: st.Checkpoint, Size: st.Size,
		Witnesses: st.Witnesses, Quorum: st.Quorum, Spool: st.Spool, SpoolMax: st.SpoolMax, SpoolOldest: timestamp(st.SpoolOldest),
		LastError: st.LastError, DeadlinesMet: st.DeadlinesMet, DeadlinesMissed: st.DeadlinesMissed, DeadlinesPending: st.DeadlinesPending,
		Certificates: st.Certificates, KeepSeconds: int64(st.Keep.Seconds())}, nil
}

// Records implements LogService.
func (h translog) Records(ctx context.Context, req *vacatev1.LogServiceRecordsRequest) (*vacatev1.LogServiceRecordsResponse, error) {
	p, err := h.s.proof("log")
	if err != nil {
		return nil, err
	}
	limit := int(req.GetLimit())
	if limit == 0 || limit > maxLeaves {
		limit = maxLeaves
	}
	leaves, checkpoint, err := p.Records(ctx, req.GetFrom(), limit)
	if err != nil {
		return nil, err
	}
	res := &vacatev1.LogServiceRecordsResponse{Checkpoint: checkpoint}
	for i, b := range leaves {
		res.Leaves = append(res.Leaves, &vacatev1.Leaf{Index: req.GetFrom() + uint64(i), Envelope: b})
	}
	return res, nil
}
