package nodesim

import (
	"context"
	"slices"
	"strings"

	"vacate/internal/ipc"
	"vacate/proof"
)

// committed is what the engine says of a key that it made. The key is the lease's
// id, four times.
func (e *Engine) committed(req ipc.LeaseOpenRequest) ipc.LeaseOpened {
	key := []byte(strings.Repeat(req.Lease, proof.KeyLen/len(req.Lease)))
	salt, half := make([]byte, proof.KeySaltLen), make([]byte, proof.SaltLen)
	o := ipc.LeaseOpened{KeyGeneratedNs: e.clock, KeyMode: ipc.KeyModeNode, KeyCommit: proof.KeyCommit(req.Lease, salt, key),
		KeySalt: strings.Repeat("00", len(salt))}
	if s := req.Share; s != nil {
		o.KeyMode = ipc.KeyModeSplit
		o.NodeCommit, o.NodeSalt = proof.ShareCommit(proof.HalfNode, req.Lease, half, key), strings.Repeat("00", len(half))
		o.ShareCommit, o.ShareSalt = proof.ShareCommit(proof.HalfTenant, req.Lease, half, s.Sealed), strings.Repeat("00", len(half))
	}
	return o
}

// ServeLease implements node.Engine, as does the method below.
func (e *Engine) ServeLease(ctx context.Context, id string) error {
	_, err := call(ctx, e, "ServeLease", func() (struct{}, error) {
		v := e.leases[id]
		if v == nil || v.erasure != nil {
			return struct{}{}, refuse(ipc.CodeNotFound, "the engine holds no open lease %s", id)
		}
		if e.Holds != nil && !e.Holds(id) {
			e.violated("N1: lease %s is served, and the journal does not hold it", id)
		}
		v.held = false
		return struct{}{}, nil
	})
	return err
}

// ReleaseLease gives away what it was given, backwards.
func (e *Engine) ReleaseLease(ctx context.Context, req ipc.LeaseReleaseRequest) (ipc.LeaseReleased, error) {
	return call(ctx, e, "engine ReleaseLease", func() (ipc.LeaseReleased, error) {
		if v := e.leases[req.Lease]; v == nil || v.erasure != nil || v.held {
			return ipc.LeaseReleased{}, refuse(ipc.CodeNotFound, "the engine holds no open lease %s", req.Lease)
		}
		if e.Released != nil && !e.Released(req.Lease) {
			e.violated("the key of lease %s is released, and no record says so", req.Lease)
		}
		sealed := slices.Clone(req.Recipient)
		slices.Reverse(sealed)
		return ipc.LeaseReleased{Sealed: sealed}, nil
	})
}

// Held are the leases that are not served yet.
func (e *Engine) Held() (ids []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, v := range e.leases {
		if v.held {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}
