package server

import (
	"context"

	"vacate/internal/ipc"
	"vacate/internal/lease"
	"vacate/internal/limit"
	"vacate/internal/node"
)

// A Node is what the API needs of the owner of leases, drives and space. [Of]
// makes one of a [node.Node]. Its methods may be called from any goroutine; an
// error that is no [*node.Error] is an internal one.
type Node interface {
	Open(ctx context.Context, req node.OpenRequest) (lease.Lease, error)
	Limit(ctx context.Context, id string, limits limit.Limits) (lease.Lease, error)
	Resize(ctx context.Context, id string, sizeBytes int64, plan bool) (lease.Lease, error)
	Close(ctx context.Context, id string) (lease.Lease, error)
	Get(id string) (lease.Lease, error)
	List(ended bool) []lease.Lease
	Watch() (Watch, error)
	SocketPath(id, kind string) string

	Enroll(ctx context.Context, req node.EnrollRequest) (node.Enrolment, error)
	Drives(ctx context.Context) []node.Drive
	Drive(ctx context.Context, name string) (node.Drive, error)

	Status() node.Status
	Stats(ctx context.Context) (ipc.Stats, error)
	Stop(ctx context.Context, erase bool) ([]lease.Lease, error)
}

// A Watch receives changes of leases; see [node.Watch].
type Watch interface {
	Next(ctx context.Context) (node.Change, error)
	Close()
}

// Of is n as the API calls it.
func Of(n *node.Node) Node { return realNode{n} }

type realNode struct{ *node.Node }

func (n realNode) Watch() (Watch, error) { return n.Node.Watch() }
