package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vacate/internal/extent"
	"vacate/internal/ipc"
	"vacate/internal/mem"
	"vacate/internal/nbdclient"
	"vacate/internal/volatile"
)

const (
	nodeID    = "00112233445566778899aabbccddeeff"
	driveSize = 34 << 20 // 32 extents of 1 MiB
)

// A host is an engine with its keeper, and a folder for drives and sockets. The
// engine may be another one after a crash.
type host struct {
	*Engine
	t      testing.TB
	dir    string
	keeper *testKeeper
	drives int
	cfg    Config // of the first engine
	dead   *atomic.Bool
}

func duplicate(t testing.TB, f *os.File) *os.File {
	t.Helper()
	f, err := dup(f)
	check(t, err)
	return f
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newHost(t testing.TB, change ...func(*Config)) *host {
	t.Helper()
	kept, err := volatile.CreateKeys()
	check(t, err)
	mapped, err := volatile.OpenKeys(duplicate(t, kept.File()))
	check(t, err)
	table, err := volatile.CreateTable(volatile.TableHeader{Generation: 1})
	check(t, err)
	h := &host{t: t, dir: folder(t, "/dev/shm"), keeper: newTestKeeper(kept)}
	h.cfg = Config{
		Keys: mapped, Table: table, MaxConns: 8,
		Lock: mem.TryLock, FenceWait: time.Millisecond, Log: slog.New(slog.DiscardHandler),
	}
	for _, c := range change {
		c(&h.cfg)
	}
	h.takeOver()
	t.Cleanup(func() {
		h.closeAll()
		h.crash()()
		for _, s := range h.keeper.slots {
			s.close()
		}
		check(t, errors.Join(kept.Close(), mapped.Close(), table.Close()))
	})
	return h
}

// next starts an engine on what is in memory; it has taken nothing over yet.
func (h *host) next() {
	h.dead = new(atomic.Bool)
	h.cfg.Generation++
	cfg := h.cfg
	cfg.Keeper = engineLink{h.keeper, h.dead}
	h.Engine = New(cfg)
}

// takeOver starts an engine that takes over what is in memory.
func (h *host) takeOver() {
	h.t.Helper()
	h.next()
	check(h.t, h.TakeOver())
}

// crash ends the engine where it stands, as far as that can be had within one
// process: what it does from now on reaches neither keeper nor table. Clients
// lose their connections. Its fences are held until release is called, as by I/O
// that is still in flight.
func (h *host) crash() (release func()) {
	h.t.Helper()
	e := h.Engine
	h.dead.Store(true)
	e.mu.Lock()
	e.leaving = true
	e.cancel()
	e.mu.Unlock()
	e.returning.Wait()
	e.searching.Wait()
	e.watching.Wait()
	for _, t := range e.tenancies() {
		t.mu.Lock()
		t.disinherit()
		if t.server != nil {
			t.server.abandon()
			if t.erasure == nil { // else its close goes on, until it meets the keeper
				t.server.Wait()
				t.stopCounting()
				t.counting.Wait()
			}
		}
		t.mu.Unlock()
	}
	return sync.OnceFunc(func() {
		for _, t := range e.tenancies() {
			if t.server != nil {
				t.server.Wait()
			}
			if t.erasure == nil {
				check(h.t, t.closeMap())
			}
		}
		for _, d := range e.openDrives() {
			check(h.t, d.Close())
		}
	})
}

// abandon ends servers as a crash does: NBD's connections end, and a vhost-user
// session is left where it stands.
func (x *exports) abandon() {
	if x.vhost != nil {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		x.vhost.Leave(now)
	}
	if x.nbd != nil {
		x.nbd.Close()
	}
}

// restart kills the engine and starts the next one.
func (h *host) restart() {
	h.t.Helper()
	h.crash()()
	h.takeOver()
}

// folder returns a new folder with a path short enough for a socket.
func folder(t testing.TB, in string) string {
	t.Helper()
	dir, err := os.MkdirTemp(in, "engine")
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
	return dir
}

// closeAll leaves nothing open, whatever the test did.
func (h *host) closeAll() {
	h.keeper.set(func() { h.keeper.wipeErr, h.keeper.mapErr, h.keeper.onWipe = nil, nil, nil })
	for _, l := range h.list().Leases {
		if _, err := h.close(l.Lease); err != nil {
			h.t.Errorf("closing lease %s behind the test: %v", l.Lease, err)
		}
		h.drained(l.Lease)
	}
	for uuid := range h.openDrives() {
		if _, err := h.closeDriveByID(uuid); err != nil {
			h.t.Errorf("closing drive %s behind the test: %v", uuid, err)
		}
	}
}

// do makes a call as control does, with a request in JSON.
func do[Resp any](h *host, method string, req any, file *os.File) (*Resp, error) {
	h.t.Helper()
	body, err := json.Marshal(req)
	check(h.t, err)
	v, err := h.Handle(h.t.Context(), method, body, only(file))
	if err != nil {
		return nil, err
	}
	return v.(*Resp), nil
}

func (h *host) close(id string) (*ipc.Erasure, error) {
	h.t.Helper()
	return h.Engine.closeLease(id)
}

// drained waits until nothing of a lease is left.
func (h *host) drained(id string) {
	h.t.Helper()
	if t, _, _ := h.lease(id); t != nil {
		select {
		case <-t.gone:
		case <-time.After(time.Minute):
			h.t.Fatalf("lease %s does not drain", id)
		}
	}
}

func (h *host) closeDriveByID(uuid string) (*ipc.Empty, error) {
	return h.Engine.closeDrive(context.Background(), &ipc.DriveCloseRequest{UUID: uuid})
}

// newFile makes a file of the size of a drive.
func (h *host) newFile(dir string) (path, uuid string) {
	h.t.Helper()
	h.drives++
	path = filepath.Join(dir, fmt.Sprintf("drive%d", h.drives))
	check(h.t, os.WriteFile(path, nil, 0o600))
	check(h.t, os.Truncate(path, driveSize))
	return path, fmt.Sprintf("%032x", 0xd0+h.drives)
}

func (h *host) enrolled(dir string) (path, uuid string) {
	h.t.Helper()
	path, uuid = h.newFile(dir)
	_, err := do[ipc.DriveInfo](h, ipc.MethodEnroll, ipc.EnrollRequest{Path: path, Node: nodeID, UUID: uuid, Epoch: 1}, nil)
	check(h.t, err)
	return path, uuid
}

func (h *host) openDriveAt(path, uuid string, epoch, next uint64) (*ipc.DriveInfo, error) {
	return do[ipc.DriveInfo](h, ipc.MethodDriveOpen,
		ipc.DriveOpenRequest{Path: path, Node: nodeID, UUID: uuid, Epoch: epoch, NewEpoch: next}, nil)
}

// drive enrols and opens a new drive.
func (h *host) drive(dir string) (path, uuid string) {
	h.t.Helper()
	path, uuid = h.enrolled(dir)
	_, err := h.openDriveAt(path, uuid, 1, 1)
	check(h.t, err)
	return path, uuid
}

func (h *host) driveStats(uuid string) ipc.DriveStats {
	h.t.Helper()
	for _, d := range h.stats().Drives {
		if d.UUID == uuid {
			d.LastError = ""
			return d
		}
	}
	h.t.Fatalf("no drive %s", uuid)
	return ipc.DriveStats{}
}

func leaseID(n int) string {
	return fmt.Sprintf("lease%s", string(rune('a'+n/26))+string(rune('a'+n%26))+"aaaaaaaaa")
}

// request is a lease of 8 MiB in a slot, on the drive's extents from 8·at on.
func request(slot int, uuid string, at uint32) ipc.LeaseOpenRequest {
	return ipc.LeaseOpenRequest{
		Lease: leaseID(slot), Slot: slot, SizeBytes: 8 << 20, LogicalBlock: 512, UID: uint32(os.Geteuid()),
		Pieces: []extent.Piece{{Drive: uuid, Range: extent.Range{First: 8 * at, Count: 8}}},
	}
}

// listen returns a listening socket, as control makes it.
func (h *host) listen() (f *os.File, path string) {
	h.t.Helper()
	path = filepath.Join(folder(h.t, h.dir), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	check(h.t, err)
	l.SetUnlinkOnClose(false)
	f, err = l.File()
	check(h.t, errors.Join(err, l.Close()))
	return f, path
}

// open opens a lease and returns its socket, NBD's if it has both.
func (h *host) open(req ipc.LeaseOpenRequest) string {
	h.t.Helper()
	paths, err := h.tryOpen(req, socketsOf(req.Exports))
	check(h.t, err)
	return paths[0]
}

// tryOpen opens a lease with so many sockets, and returns their paths.
func (h *host) tryOpen(req ipc.LeaseOpenRequest, sockets int) (paths []string, err error) {
	h.t.Helper()
	paths, _, err = h.openAnswer(req, sockets)
	return paths, err
}

// openAnswer does, and returns the answer too.
func (h *host) openAnswer(req ipc.LeaseOpenRequest, sockets int) (paths []string, opened *ipc.LeaseOpened, err error) {
	h.t.Helper()
	var files []*os.File
	for range sockets {
		f, path := h.listen()
		files, paths = append(files, f), append(paths, path)
	}
	body, err := json.Marshal(req)
	check(h.t, err)
	v, err := h.Handle(h.t.Context(), ipc.MethodLeaseOpen, body, files)
	if err != nil {
		return paths, nil, err
	}
	opened = v.(*ipc.LeaseOpened)
	if opened.KeyGeneratedNs <= 0 || opened.KeyCommit == "" {
		h.t.Fatalf("of the key is told: %+v", opened)
	}
	return paths, opened, nil
}

// dial connects a client, and returns its connection too.
func dial(t testing.TB, socket string, o nbdclient.Options) (*nbdclient.Client, net.Conn) {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	check(t, err)
	t.Cleanup(func() { conn.Close() })
	c, err := nbdclient.New(conn, o)
	check(t, err)
	return c, conn
}

// hungUp reports whether the other side has shut the connection down. It waits
// a moment for it.
func hungUp(t testing.TB, conn net.Conn, moment time.Duration) bool {
	t.Helper()
	check(t, conn.SetReadDeadline(time.Now().Add(moment)))
	_, err := conn.Read(make([]byte, 1))
	check(t, conn.SetReadDeadline(time.Time{}))
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return true
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("reading from an idle connection: %v", err)
	}
	return false
}

func wantCode(t testing.TB, err error, code string) {
	t.Helper()
	var re *ipc.RemoteError
	if !errors.As(err, &re) || re.Code != code {
		t.Errorf("error %v, want one with code %q", err, code)
	}
}

// files is how many descriptors this process has.
func files(t testing.TB) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	return len(all)
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// only are those of all that are there.
func only(all ...*os.File) []*os.File {
	return slices.DeleteFunc(all, func(f *os.File) bool { return f == nil })
}
