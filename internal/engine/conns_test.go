package engine

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/nbdclient"
)

// TestConnectionBudget: the host's maximum counts over all leases. Who comes
// too late is told why, and gets in when another has left.
func TestConnectionBudget(t *testing.T) {
	h := newHost(t, func(c *Config) { c.MaxConns = 2 })
	_, uuid := h.drive(h.dir)
	a, b := h.open(request(0, uuid, 0)), h.open(request(1, uuid, 1))
	first, _ := dial(t, a, nbdclient.Options{})
	second, _ := dial(t, b, nbdclient.Options{})
	for i, socket := range []string{a, b} {
		_, err := nbdclient.Dial(socket, nbdclient.Options{})
		var refusal *nbdclient.Refusal
		if !errors.As(err, &refusal) || !strings.Contains(refusal.Text, "at most 2 connections") || !strings.Contains(refusal.Text, "max_connections") {
			t.Errorf("a third connection: %v, want a refusal that says how many, and what to do", err)
		}
		if s := h.stats(); s.Connections != 2 || s.Refused != uint64(i+1) {
			t.Errorf("%d connections, %d refused; want 2, %d", s.Connections, s.Refused, i+1)
		}
	}
	check(t, first.Close())
	eventually(t, "the place to be given back", func() bool { return h.stats().Connections == 1 })
	third, _ := dial(t, b, nbdclient.Options{})
	check(t, errors.Join(second.Flush(), third.Flush()))

	_, err := h.close(leaseID(1)) // with two clients connected
	check(t, err)
	h.drained(leaseID(1))
	if n := h.stats().Connections; n != 0 {
		t.Errorf("%d places are taken after all clients' lease is gone", n)
	}
	admit, _ := h.conns.lease()
	release, err := admit()
	check(t, err)
	release()
	release() // a second time does nothing
	if n := h.stats().Connections; n != 0 {
		t.Errorf("%d places are taken", n)
	}
}

// TestBudgetKeepsPlaces: a lease that takes all connections it can get leaves
// some to the others: one each.
func TestBudgetKeepsPlaces(t *testing.T) {
	b := &budget{max: 8}
	greedy, _ := b.lease()
	second, _ := b.lease()
	third, _ := b.lease()
	fourth, _ := b.lease()
	var release func()
	for i := range 6 {
		var err error
		if release, err = greedy(); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	refused := func(who string, admit func() (func(), error), says string) {
		t.Helper()
		if _, err := admit(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want a refusal that says %q", who, err, says)
		}
	}
	refused("the greedy lease's seventh", greedy, "keeps the last 2")
	if _, err := second(); err != nil {
		t.Errorf("a neighbour's first: %v", err)
	}
	refused("the neighbour's second", second, "keeps the last 2")
	if _, err := third(); err != nil {
		t.Errorf("another neighbour's first: %v", err)
	}
	refused("a third neighbour's first, over the maximum", fourth, "at most 8 connections at once: ")
	release()
	if _, err := fourth(); err != nil {
		t.Errorf("its first, when a place was given up: %v", err)
	}
}

// TestL8LeaveFull: a planned end breaks no connection on a host that has as many
// as it may, whichever lease comes back first.
func TestL8LeaveFull(t *testing.T) {
	h := newHost(t, func(c *Config) { c.MaxConns = 8 })
	_, uuid := h.drive(h.dir)
	var clients []*nbdclient.Client
	for slot, n := range []int{6, 1, 1} {
		socket := h.open(request(slot, uuid, uint32(slot)))
		for range n {
			c, _ := dial(t, socket, nbdclient.Options{Timeout: time.Minute})
			clients = append(clients, c)
		}
	}
	for range 5 { // the order is the scheduler's
		h.handOver()
		for i, c := range clients {
			if err := c.Flush(); err != nil {
				t.Fatalf("L8: connection %d: %v", i, err)
			}
		}
	}
	if s := h.stats(); s.Connections != 8 || s.Refused != 0 {
		t.Errorf("%d connections, %d refused", s.Connections, s.Refused)
	}
}

// TestReadmit: what a predecessor admitted is admitted again, within the maximum.
func TestReadmit(t *testing.T) {
	b := &budget{max: 4}
	admit, readmit := b.lease()
	for i := range 4 {
		if _, err := readmit(); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	if _, err := readmit(); err == nil {
		t.Error("a fifth was admitted")
	}
	if _, err := admit(); err == nil {
		t.Error("a new one was admitted")
	}
}

// TestAllow: a lease's socket serves root, the daemon, and the lease's user.
func TestAllow(t *testing.T) {
	h := newHost(t)
	allow := h.allow(1234)
	for uid, want := range map[uint32]bool{0: true, uint32(os.Geteuid()): true, 1234: true, 1235: false, 1<<32 - 1: false} {
		if got := allow(uid); got != want {
			t.Errorf("user %d: %v, want %v", uid, got, want)
		}
	}
}

// TestStats: what clients did is counted, a lease and a drive; an erased lease
// has no counters any more.
func TestStats(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	req := request(0, uuid, 0)
	if s := h.stats(); len(s.Leases) != 0 || len(s.Drives) != 1 || s.Connections != 0 {
		t.Errorf("before: %+v", s)
	}
	c, _ := dial(t, h.open(req), nbdclient.Options{})
	buf := make([]byte, 64<<10)
	check(t, errors.Join(c.WriteFlags(buf, 0, 0), c.WriteFlags(buf, 1<<20, 0), c.ReadFlags(buf, 0, 0), c.Flush(), c.Trim(0, 8192, 0)))
	if err := c.ReadFlags(buf, c.Size(), 0); err == nil {
		t.Error("read behind the end")
	}
	s, err := do[ipc.Stats](h, ipc.MethodStats, ipc.Empty{}, nil)
	check(t, err)
	want := ipc.LeaseStats{Lease: req.Lease, Connections: 1, Reads: 1, Writes: 2, Discards: 1, Flushes: 1,
		ReadBytes: 64 << 10, WriteBytes: 128 << 10, Written: 120 << 10}
	if len(s.Leases) != 1 || s.Leases[0] != want {
		t.Errorf("lease %+v, want %+v", s.Leases, want)
	}
	if d := s.Drives[0]; d.UUID != uuid || d.WriteBytes != 128<<10 || d.ReadBytes != 64<<10 || d.Errors != 0 {
		t.Errorf("drive %+v", d)
	}
	release := h.hang(req.Lease)
	_, err = h.close(req.Lease)
	check(t, err)
	if s := h.stats(); len(s.Leases) != 0 || len(s.Drives) != 1 {
		t.Errorf("after the erasure: %+v", s)
	}
	release()
	h.drained(req.Lease)
}

// TestEndings: how a lease ended is remembered, of the last maxEndings leases.
func TestEndings(t *testing.T) {
	var n endings
	const more = 10
	for i := range maxEndings + more {
		n.add(fmt.Sprint(i), ipc.Erasure{KeyDestroyedNs: int64(i)})
	}
	if len(n.byID) != maxEndings || len(n.order) != maxEndings {
		t.Fatalf("%d and %d endings, want %d", len(n.byID), len(n.order), maxEndings)
	}
	if _, ok := n.byID[fmt.Sprint(more-1)]; ok {
		t.Error("an old ending is remembered, a newer one is not")
	}
	for _, i := range []int{more, maxEndings + more - 1} {
		if er, ok := n.byID[fmt.Sprint(i)]; !ok || er.KeyDestroyedNs != int64(i) || !er.Drained {
			t.Errorf("ending %d: %+v, %v", i, er, ok)
		}
	}
}
