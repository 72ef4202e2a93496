package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"vacate/client"
	"vacate/internal/extent"
	"vacate/internal/ipc"
	"vacate/internal/lease"
	"vacate/internal/limit"
	"vacate/internal/node"
)

// Uids of the tests. The daemon's own is the one that runs them.
const (
	uidOperator = 40
	uidAuditor  = 50
	uidTenant   = 1000
	uidOther    = 2000
)

const (
	idOwn   = "aaaaaaaaaaaaaaaa" // uidTenant's
	idOther = "bbbbbbbbbbbbbbbb" // uidOther's
	idPast  = "cccccccccccccccc" // uidTenant's, closed

	idOtherPast = "dddddddddddddddd" // uidOther's, closed
)

// A fakeNode keeps leases in a map.
type fakeNode struct {
	found   string // the lease that every Open finds by its key; "": none
	mu      sync.Mutex
	leases  map[string]lease.Lease
	watches map[*fakeWatch]bool
	opened  []node.OpenRequest
	enrols  []node.EnrollRequest
	stopped bool
	limited []limit.Limits
	fail    error         // of Open, Limit and Close
	hold    chan struct{} // Close waits for it, if not nil
	entered chan struct{} // Close closes it before it waits
	engine  bool          // an engine answers
}

type fakeWatch struct {
	n  *fakeNode
	ch chan node.Change
}

func fakeLease(id string, uid uint32, state lease.State) lease.Lease {
	l := lease.Lease{ID: id, Tenant: "acme", SizeBytes: 1 << 30, LogicalBlock: 512, UID: uid, State: state, Space: lease.Held, OpenSeq: 1,
		Pieces: []extent.Piece{{Drive: "d1", Range: extent.Range{First: 2, Count: 16}}}, OpenedAt: time.Unix(1e9, 0)}
	if state.Ended() {
		l.Space, l.Result, l.CloseSeq, l.ClosedAt = lease.Free, lease.OK, 2, time.Unix(2e9, 0)
		l.Erasure = &lease.Erasure{GateClosedNs: 1000, CiphersDoneNs: 3000, KeyDestroyedNs: 91000, ReadBack: true, Drained: true}
	}
	return l
}

func newFakeNode() *fakeNode {
	n := &fakeNode{leases: make(map[string]lease.Lease), watches: make(map[*fakeWatch]bool), engine: true}
	for _, l := range []lease.Lease{fakeLease(idOwn, uidTenant, lease.Open), fakeLease(idOther, uidOther, lease.Open), fakeLease(idPast, uidTenant, lease.Closed),
		fakeLease(idOtherPast, uidOther, lease.Closed)} {
		n.leases[l.ID] = l
	}
	return n
}

func (n *fakeNode) Open(_ context.Context, req node.OpenRequest) (lease.Lease, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.opened = append(n.opened, req)
	if n.fail != nil {
		return lease.Lease{}, n.fail
	}
	if n.found != "" {
		return n.leases[n.found], nil
	}
	l := fakeLease(fmt.Sprintf("%016d", len(n.opened)), req.UID, lease.Open)
	l.Tenant, l.SizeBytes, l.Limits, l.Exports = req.Tenant, req.SizeBytes, req.Limits, req.Exports
	if req.Attach != nil {
		if err := req.Attach.Attach(context.Background(), l); err != nil {
			return lease.Lease{}, err
		}
	}
	n.put(l)
	return l, nil
}

// put changes a lease and tells the watches. REQUIRES: n.mu is held.
func (n *fakeNode) put(l lease.Lease) {
	n.leases[l.ID] = l
	for w := range n.watches {
		w.ch <- node.Change{Lease: l}
	}
}

func (n *fakeNode) Limit(_ context.Context, id string, limits limit.Limits) (lease.Lease, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.limited = append(n.limited, limits)
	if n.fail != nil {
		return lease.Lease{}, n.fail
	}
	l := n.leases[id]
	l.Limits = limits
	n.put(l)
	return l, nil
}

func (n *fakeNode) Resize(_ context.Context, id string, sizeBytes int64, plan bool) (lease.Lease, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fail != nil {
		return lease.Lease{}, n.fail
	}
	l := n.leases[id]
	if l.SizeBytes = sizeBytes; !plan {
		n.put(l)
	}
	return l, nil
}

func (n *fakeNode) Close(_ context.Context, id string) (lease.Lease, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hold != nil {
		hold := n.hold
		n.mu.Unlock()
		close(n.entered)
		<-hold
		n.mu.Lock()
	}
	if n.fail != nil {
		return lease.Lease{}, n.fail
	}
	l, ok := n.leases[id]
	if !ok {
		return l, &node.Error{Kind: node.NotFound, Text: "no such lease"}
	}
	if !l.State.Ended() {
		l = fakeLease(id, l.UID, lease.Closed)
		n.put(l)
	}
	return l, nil
}

func (n *fakeNode) Get(id string) (lease.Lease, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if l, ok := n.leases[id]; ok {
		return l, nil
	}
	return lease.Lease{}, &node.Error{Kind: node.NotFound, Object: id, Text: "the node has no such lease"}
}

func (n *fakeNode) List(ended bool) []lease.Lease {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []lease.Lease
	for _, l := range n.leases {
		if ended || !l.State.Ended() {
			all = append(all, l)
		}
	}
	slices.SortFunc(all, func(a, b lease.Lease) int { return compare(a.ID, b.ID) })
	return all
}

func compare(a, b string) int {
	if a < b {
		return -1
	}
	return 1
}

func (n *fakeNode) Watch() (Watch, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	w := &fakeWatch{n: n, ch: make(chan node.Change, 100)}
	n.watches[w] = true
	return w, nil
}

func (w *fakeWatch) Next(ctx context.Context) (node.Change, error) {
	select {
	case c := <-w.ch:
		return c, nil
	case <-ctx.Done():
		return node.Change{}, ctx.Err()
	}
}

func (w *fakeWatch) Close() {
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	delete(w.n.watches, w)
}

func (n *fakeNode) watching() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.watches)
}

func (n *fakeNode) SocketPath(id, kind string) string {
	return "/run/a b/leases/" + id + "/" + kind + ".sock"
}

func (n *fakeNode) Enroll(_ context.Context, req node.EnrollRequest) (node.Enrolment, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.enrols = append(n.enrols, req)
	finding := ipc.Finding{Code: "signature", Text: "ext4", Refuse: true, Force: true}
	if req.Path == "/used" && !req.Plan && !req.Force {
		return node.Enrolment{}, &node.Error{Kind: node.Refused, Object: req.Path, Text: "it is used", Next: "look at it", Findings: []ipc.Finding{finding}}
	}
	return node.Enrolment{Drive: n.drive(), Findings: []ipc.Finding{finding}, Enrolled: !req.Plan}, nil
}

func (n *fakeNode) drive() node.Drive {
	return node.Drive{DriveInfo: ipc.DriveInfo{UUID: "d1", Path: "/dev/x", Serial: "S1", Engine: "pread", Flush: "none", SizeBytes: 1 << 40, ExtentBytes: 1 << 26, Extents: 100},
		State: node.DriveReady, CapacityBytes: 100 << 26, FreeBytes: 68 << 26, LeasedBytes: 32 << 26}
}

func (n *fakeNode) Drives(context.Context) []node.Drive { return []node.Drive{n.drive()} }

func (n *fakeNode) Drive(_ context.Context, name string) (node.Drive, error) {
	if d := n.drive(); name == d.Path || name == d.UUID {
		return d, nil
	}
	return node.Drive{}, &node.Error{Kind: node.NotFound, Object: name, Text: "no such drive", Next: "see `vacate drive list`"}
}

func (n *fakeNode) Status() node.Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := node.Status{NodeID: "n1", StartedAt: time.Unix(1e9, 0), Ready: n.engine, Engine: ipc.Hello{EngineID: "e1", Version: "v9", Generation: 2, Slots: 1024, MaxConns: 128, Shares: "this build clears no heap"},
		Leases: map[lease.State]int{lease.Open: 2}, Drives: 1, CapacityBytes: 100 << 26, FreeBytes: 68 << 26}
	if !n.engine {
		s.ReadyWhy = "there is no engine"
	}
	return s
}

func (n *fakeNode) Stats(context.Context) (ipc.Stats, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.engine {
		return ipc.Stats{}, errors.New("no engine")
	}
	return ipc.Stats{Connections: 3, Leases: []ipc.LeaseStats{{Lease: idOwn, Connections: 3, Reads: 4, Written: 4096}}}, nil
}

func (n *fakeNode) Stop(_ context.Context, erase bool) ([]lease.Lease, error) {
	if !erase {
		return nil, &node.Error{Kind: node.Refused, Text: "2 leases are open", Next: "stop with --erase"}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stopped = true
	return []lease.Lease{n.leases[idOwn]}, nil
}

// A daemon is a server on a socket, whose peers can be anybody.
type daemon struct {
	t      *testing.T
	node   *fakeNode
	proof  fakeProof
	devs   fakeDevices
	server *Server
	sock   string
	stop   context.CancelFunc
	ended  chan error

	mu  sync.Mutex
	uid uint32 // of the next connection
}

// start serves a fake node. What is said of peers is made up; TestRealPeer has
// the kernel's word.
func start(t *testing.T, change ...func(*Config)) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "v") // short: a socket's path is bounded
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, node: newFakeNode(), sock: filepath.Join(dir, "s"), ended: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	d.stop = cancel
	cfg := Config{Node: d.node, Proof: &d.proof, Devices: &d.devs, UID: 7, Operators: []uint32{uidOperator}, Auditors: []uint32{uidAuditor},
		Processes: Processes{Control: "v1", Keeper: "v0", LastUpgrade: "done", Binary: "/usr/bin/vacate"}, Upgrade: func() error { return nil },
		Log: slog.New(slog.DiscardHandler), End: cancel}
	for _, f := range change {
		f(&cfg)
	}
	if d.server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ln, err := Listen(d.sock, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	g := newGate(ln, d.server.connections)
	g.who = func(*net.UnixConn) (Peer, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		return Peer{UID: d.uid, PID: 99}, nil
	}
	go func() { d.ended <- serve(ctx, g, d.server.handler(ctx), cfg.Log, time.Second) }()
	t.Cleanup(func() {
		cancel()
		d.wait()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return d
}

// wait waits for the server's end, once.
func (d *daemon) wait() {
	if err, ok := <-d.ended; ok {
		close(d.ended)
		if err != nil {
			d.t.Errorf("serving ended with %v", err)
		}
	}
}

// as is a client whose connections are uid's. It makes one connection, so that
// the next client may be somebody else.
func (d *daemon) as(uid uint32) *client.Client {
	d.t.Helper()
	d.mu.Lock()
	d.uid = uid
	d.mu.Unlock()
	c := client.Dial(d.sock)
	d.t.Cleanup(c.Close)
	return c
}
