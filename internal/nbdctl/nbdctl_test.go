package nbdctl

import (
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/genetlink/genltest"
	"github.com/mdlayher/netlink"
)

var testFamily = genetlink.Family{ID: 33, Name: familyName, Version: 1, Groups: []genetlink.MulticastGroup{{ID: 7, Name: groupName}}}

// attrs are a message's attributes, by type; sockets are the descriptors.
type attrs struct {
	numbers map[uint16]uint64
	backend string
	sockets []uint32
}

func decode(t *testing.T, b []byte) attrs {
	t.Helper()
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		t.Fatal(err)
	}
	a := attrs{numbers: map[uint16]uint64{}}
	for d.Next() {
		switch d.Type() {
		case attrIndex:
			a.numbers[attrIndex] = uint64(d.Uint32())
		case attrBackend:
			a.backend = d.String()
		case attrSockets:
			d.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					if list.Type() != sockItem {
						t.Errorf("a list of sockets holds a %d", list.Type())
					}
					list.Nested(func(item *netlink.AttributeDecoder) error {
						for item.Next() {
							a.sockets = append(a.sockets, item.Uint32())
						}
						return nil
					})
				}
				return nil
			})
		default:
			a.numbers[d.Type()] = d.Uint64()
		}
	}
	if err := d.Err(); err != nil {
		t.Fatal(err)
	}
	return a
}

// open returns a control of a driver that answers commands with do.
func open(t *testing.T, sysfs string, do func(genetlink.Message, netlink.Message) ([]genetlink.Message, error)) *Control {
	t.Helper()
	c, err := newControl(genltest.Dial(genltest.ServeFamily(testFamily, do)), sysfs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// put makes a file of sysfs.
func put(t *testing.T, sysfs, name, text string) {
	t.Helper()
	path := filepath.Join(sysfs, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func index(i uint32) []byte {
	b, err := encode(func(e *netlink.AttributeEncoder) { e.Uint32(attrIndex, i) })
	if err != nil {
		panic(err)
	}
	return b
}

func TestConnect(t *testing.T) {
	sysfs := t.TempDir()
	put(t, sysfs, "nbd5/backend", "vacate:run:lease\n")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	var got attrs
	c := open(t, sysfs, func(m genetlink.Message, n netlink.Message) ([]genetlink.Message, error) {
		if m.Header.Command != cmdConnect || n.Header.Flags != netlink.Request {
			t.Errorf("command %d with flags %v: an acknowledgement would be taken for the next command's", m.Header.Command, n.Header.Flags)
		}
		got = decode(t, m.Data)
		return []genetlink.Message{{Header: genetlink.Header{Command: cmdConnect}, Data: index(5)}}, nil
	})
	i, err := c.Connect(Config{Conns: []*os.File{r, w}, SizeBytes: 1 << 30, BlockBytes: 4096, ServerFlags: 0x10d, DeadConnTimeout: time.Minute, Backend: "vacate:run:lease"})
	if i != 5 || err != nil {
		t.Fatalf("connected %d, %v", i, err)
	}
	want := map[uint16]uint64{attrSizeBytes: 1 << 30, attrBlockBytes: 4096, attrTimeout: 0, attrDeadConnTimeout: 60, attrServerFlags: 0x10d, attrClientFlags: 0}
	if !maps.Equal(got.numbers, want) || got.backend != "vacate:run:lease" || len(got.sockets) != 2 || got.sockets[0] != uint32(r.Fd()) || got.sockets[1] != uint32(w.Fd()) {
		t.Errorf("the driver got %+v", got)
	}
}

// TestConnectOld: a driver that knows no marks leaves no device behind.
func TestConnectOld(t *testing.T) {
	var commands []uint8
	c := open(t, t.TempDir(), func(m genetlink.Message, _ netlink.Message) ([]genetlink.Message, error) {
		if commands = append(commands, m.Header.Command); m.Header.Command == cmdConnect {
			return []genetlink.Message{{Header: genetlink.Header{Command: cmdConnect}, Data: index(5)}}, nil
		}
		return nil, io.EOF
	})
	i, err := c.Connect(Config{Backend: "mark"})
	if i != -1 || !errors.Is(err, ErrTooOld) || !strings.Contains(err.Error(), "/dev/nbd5") {
		t.Errorf("connected %d, %v", i, err)
	}
	if string(commands) != string([]byte{cmdConnect, cmdDisconnect}) {
		t.Errorf("commands %d", commands)
	}
}

func TestReconfigure(t *testing.T) {
	var got attrs
	c := open(t, t.TempDir(), func(m genetlink.Message, n netlink.Message) ([]genetlink.Message, error) {
		if m.Header.Command != cmdReconfigure || n.Header.Flags != netlink.Request|netlink.Acknowledge {
			t.Errorf("command %d with flags %v", m.Header.Command, n.Header.Flags)
		}
		got = decode(t, m.Data)
		return nil, io.EOF
	})
	if err := c.Reconfigure(3, Change{Backend: "mark", SizeBytes: 8192}); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(got.numbers, map[uint16]uint64{attrIndex: 3, attrSizeBytes: 8192}) || got.backend != "mark" || got.sockets != nil {
		t.Errorf("the driver got %+v", got)
	}
	// A size that is told again makes the kernel wait for what is in flight.
	if err := c.Reconfigure(3, Change{Backend: "mark", Conns: []*os.File{os.Stdin}}); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(got.numbers, map[uint16]uint64{attrIndex: 3}) || len(got.sockets) != 1 {
		t.Errorf("the driver got %+v", got)
	}
}

func TestErrors(t *testing.T) {
	connect := func(c *Control) error { _, err := c.Connect(Config{}); return err }
	change := func(c *Control) error { return c.Reconfigure(2, Change{}) }
	end := func(c *Control) error { return c.Disconnect(2) }
	tests := []struct {
		errno syscall.Errno
		do    func(*Control) error
		want  error // nil: none of ours
		text  string
	}{
		{syscall.EPERM, connect, ErrNoPermission, "connect an nbd device"},
		{syscall.ENOSPC, connect, ErrFull, "remove some"},
		{syscall.EINVAL, connect, nil, "invalid argument"},
		{syscall.EINVAL, change, ErrNoDevice, "reconfigure /dev/nbd2"},
		{syscall.EPERM, end, ErrNoPermission, "disconnect /dev/nbd2"},
		{syscall.EBUSY, end, nil, "busy"},
	}
	for _, tt := range tests {
		c := open(t, t.TempDir(), func(genetlink.Message, netlink.Message) ([]genetlink.Message, error) {
			return nil, genltest.Error(int(tt.errno))
		})
		err := tt.do(c)
		var e *Error
		if !errors.Is(err, tt.errno) || !errors.As(err, &e) || e.Why != tt.want || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%v became %v, of which %v", tt.errno, err, tt.want)
		}
	}
}

func TestNoDriver(t *testing.T) {
	dial := func() *genetlink.Conn {
		return genltest.Dial(func(genetlink.Message, netlink.Message) ([]genetlink.Message, error) {
			return nil, genltest.Error(int(syscall.ENOENT))
		})
	}
	if _, err := newControl(dial(), "/"); !errors.Is(err, ErrNoDriver) || !strings.Contains(err.Error(), "modprobe nbd") {
		t.Errorf("without the driver: %v", err)
	}
	if _, err := watch(t.Context(), dial()); !errors.Is(err, ErrNoDriver) {
		t.Errorf("watching without the driver: %v", err)
	}
}

func TestAdmin(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]string{
		"Name:\tx\nCapEff:\t000001ffffffffff\n": "",
		"CapEff:\t0000000000200000\n":           "",
		"CapEff:\t00000000ffdfffff\n":           "CAP_SYS_ADMIN",
		"CapEff:\tzz\n":                         "capabilities",
		"":                                      "does not tell",
	} {
		put(t, dir, "status", text)
		err := admin(filepath.Join(dir, "status"))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestSysfs(t *testing.T) {
	sysfs := t.TempDir()
	put(t, sysfs, "nbd0/size", "0\n")
	put(t, sysfs, "nbd1/backend", "mark 1\n")
	put(t, sysfs, "nbd1/size", "2048\n")
	put(t, sysfs, "nbd1/queue/io_timeout", "30000")
	put(t, sysfs, "nbd12/backend", "mark 12\n")
	put(t, sysfs, "nbd13/backend", "\n") // a device that another has made
	c := &Control{sysfs: sysfs}
	marks, err := c.List()
	if err != nil || !maps.Equal(marks, map[int]string{1: "mark 1", 12: "mark 12"}) {
		t.Errorf("List() = %v, %v", marks, err)
	}
	if size, err := c.Size(1); size != 1<<20 || err != nil {
		t.Errorf("Size() = %d, %v", size, err)
	}
	if p, err := c.Patience(1); p != DefaultPatience || err != nil {
		t.Errorf("Patience() = %v, %v", p, err)
	}
	if err := c.SetPatience(1, 1500*time.Millisecond); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(filepath.Join(sysfs, "nbd1/queue/io_timeout")); !strings.HasPrefix(string(b), "1500") {
		t.Errorf("io_timeout holds %q, %v", b, err)
	}
	if err := c.SetPatience(2, time.Second); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the patience of what is not there: %v", err)
	}
	if _, err := c.Size(2); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the size of what is not there: %v", err)
	}
}

// TestReceive: what the driver tells, what others tell, and what got lost.
func TestReceive(t *testing.T) {
	var mu sync.Mutex
	next := []struct {
		m   []genetlink.Message
		err error
	}{
		{m: []genetlink.Message{{Header: genetlink.Header{Command: cmdLinkDead}, Data: index(4)}}},
		{m: []genetlink.Message{{Header: genetlink.Header{Command: cmdConnect}, Data: index(5)}}},
		{err: syscall.ENOBUFS},
		{err: syscall.EIO},
	}
	conn := genltest.Dial(genltest.ServeFamily(testFamily, func(genetlink.Message, netlink.Message) ([]genetlink.Message, error) {
		mu.Lock()
		defer mu.Unlock()
		n := next[0]
		next = next[1:]
		return n.m, n.err
	}))
	defer conn.Close()
	family, err := conn.GetFamily(familyName)
	if err != nil {
		t.Fatal(err)
	}
	family.ID = 0 // the test's connection gives multicasts no type
	var dead []int
	for range 3 {
		if err := receive(conn, family, func(i int) { dead = append(dead, i) }); err != nil {
			t.Fatal(err)
		}
	}
	if len(dead) != 2 || dead[0] != 4 || dead[1] != -1 {
		t.Errorf("dead are %d, want 4 and one that nobody knows", dead)
	}
	if err := receive(conn, family, nil); !errors.Is(err, syscall.EIO) {
		t.Errorf("an error became %v", err)
	}
}

// TestWatchEnds: with its context, without an error.
func TestWatchEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	conn := genltest.Dial(genltest.ServeFamily(testFamily, func(genetlink.Message, netlink.Message) ([]genetlink.Message, error) {
		cancel()
		return nil, syscall.EBADF
	}))
	family, err := conn.GetFamily(familyName)
	if err != nil || len(family.Groups) != 1 {
		t.Fatal(family, err)
	}
	if err := attend(ctx, conn, family, nil); err != nil {
		t.Error(err)
	}
}
