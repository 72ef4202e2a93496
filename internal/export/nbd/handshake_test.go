package nbd

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/nbdclient"
)

// hexBytes reads hex digits, with spaces where they help.
func hexBytes(s string) []byte {
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		panic(err)
	}
	return b
}

// An answer to an option, without its magic.
type optReply struct {
	option, typ uint32
	data        string
}

func (r optReply) String() string { return fmt.Sprintf("%d/%#x %q", r.option, r.typ, r.data) }

func (c rawClient) readReplies() []optReply {
	c.t.Helper()
	var all []optReply
	for {
		b := c.read(optReplySize)
		if binary.BigEndian.Uint64(b) != magicOptReply {
			c.t.Fatalf("no option reply: %x", b)
		}
		r := optReply{option: binary.BigEndian.Uint32(b[8:]), typ: binary.BigEndian.Uint32(b[12:])}
		r.data = string(c.read(int(binary.BigEndian.Uint32(b[16:]))))
		all = append(all, r)
		if r.typ == repAck || r.typ&(1<<31) != 0 {
			return all
		}
	}
}

// TestOptions sends options one after another on one connection.
func TestOptions(t *testing.T) {
	const (
		flags      = "\x0d\x6d" // without DF
		flagsDF    = "\x0d\xed"
		sizeMiB    = "\x00\x00\x00\x00\x00\x10\x00\x00"
		blockSizes = "\x00\x03\x00\x00\x02\x00\x00\x00\x10\x00\x02\x00\x00\x00"
	)
	context := func(id string) string { return id + "base:allocation" }
	query := func(export string, queries ...string) string {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(export)))
		b = append(b, export...)
		b = binary.BigEndian.AppendUint32(b, uint32(len(queries)))
		for _, q := range queries {
			b = binary.BigEndian.AppendUint32(b, uint32(len(q)))
			b = append(b, q...)
		}
		return string(b)
	}
	info := func(fl string) []optReply {
		return []optReply{{optInfo, repInfo, "\x00\x00" + sizeMiB + fl}, {optInfo, repInfo, blockSizes}, {optInfo, repAck, ""}}
	}
	tests := []struct {
		name string
		id   uint32
		data string
		want []optReply // a text is not compared
	}{
		{"list", optList, "", []optReply{{optList, repServer, "\x00\x00\x00\x00"}, {optList, repAck, ""}}},
		{"list with data", optList, "x", []optReply{{optList, repErrInvalid, ""}}},
		{"starttls", 5, "", []optReply{{5, repErrUnsup, ""}}},
		{"extended headers", 11, "", []optReply{{11, repErrUnsup, ""}}},
		{"unknown", 0xdeadbeef, "data", []optReply{{0xdeadbeef, repErrUnsup, ""}}},
		{"info", optInfo, "\x00\x00\x00\x00\x00\x00", info(flags)},
		{"info of another export", optInfo, "\x00\x00\x00\x01x\x00\x00", []optReply{{optInfo, repErrUnknown, ""}}},
		{"go of another export", optGo, "\x00\x00\x00\x01x\x00\x00", []optReply{{optGo, repErrUnknown, ""}}},
		{"info cut off", optInfo, "\x00\x00\x00", []optReply{{optInfo, repErrInvalid, ""}}},
		{"info with a name too long", optInfo, "\x00\x00\x00\x09x\x00\x00", []optReply{{optInfo, repErrInvalid, ""}}},
		{"info with requests missing", optInfo, "\x00\x00\x00\x00\x00\x02\x00\x03", []optReply{{optInfo, repErrInvalid, ""}}},
		{"context before structured", optSetMetaContext, query("", "base:allocation"), []optReply{{optSetMetaContext, repErrInvalid, ""}}},
		{"structured with data", optStructuredReply, "x", []optReply{{optStructuredReply, repErrInvalid, ""}}},
		{"structured", optStructuredReply, "", []optReply{{optStructuredReply, repAck, ""}}},
		{"info with DF", optInfo, "\x00\x00\x00\x00\x00\x00", info(flagsDF)},
		{"list contexts", optListMetaContext, query(""), []optReply{{optListMetaContext, repMetaContext, context("\x00\x00\x00\x00")}, {optListMetaContext, repAck, ""}}},
		{"list contexts of base", optListMetaContext, query("", "base:"), []optReply{{optListMetaContext, repMetaContext, context("\x00\x00\x00\x00")}, {optListMetaContext, repAck, ""}}},
		{"list contexts of others", optListMetaContext, query("", "qemu:dirty-bitmap:x"), []optReply{{optListMetaContext, repAck, ""}}},
		{"set nothing", optSetMetaContext, query(""), []optReply{{optSetMetaContext, repAck, ""}}},
		{"set base is no wildcard", optSetMetaContext, query("", "base:"), []optReply{{optSetMetaContext, repAck, ""}}},
		{"set one of two", optSetMetaContext, query("", "x:y", "base:allocation"), []optReply{{optSetMetaContext, repMetaContext, context("\x00\x00\x00\x01")}, {optSetMetaContext, repAck, ""}}},
		{"set for another export", optSetMetaContext, query("x", "base:allocation"), []optReply{{optSetMetaContext, repErrUnknown, ""}}},
		{"set with queries missing", optSetMetaContext, query("")[:6], []optReply{{optSetMetaContext, repErrInvalid, ""}}},
		{"set with four billion queries", optSetMetaContext, "\x00\x00\x00\x00\xff\xff\xff\xff", []optReply{{optSetMetaContext, repErrInvalid, ""}}},
		{"set with a rest", optSetMetaContext, query("") + "x", []optReply{{optSetMetaContext, repErrInvalid, ""}}},
		{"abort", optAbort, "", []optReply{{optAbort, repAck, ""}}},
	}
	c := rawConnect(t, alone(t, newMemory(1<<20).config()))
	c.write(hexBytes("00000003"))
	for _, tt := range tests {
		c.write(option(tt.id, []byte(tt.data)))
		got := c.readReplies()
		if len(got) != len(tt.want) {
			t.Errorf("%s: %d replies %v, want %d", tt.name, len(got), got, len(tt.want))
			continue
		}
		for i, want := range tt.want {
			if want.typ&(1<<31) != 0 {
				if got[i].data == "" {
					t.Errorf("%s: an error without a text", tt.name)
				}
				got[i].data = ""
			}
			if got[i] != want {
				t.Errorf("%s: reply %d is %v, want %v", tt.name, i, got[i], want)
			}
		}
	}
	c.wantEnd()
}

// TestExportName covers the old way in, with and without padding.
func TestExportName(t *testing.T) {
	s := alone(t, newMemory(1<<20).config())
	want := hexBytes("0000000000100000 0d6d")
	for flags, padding := range map[string]int{"00000003": 0, "00000001": oldZeroes, "00000000": oldZeroes} {
		c := rawConnect(t, s)
		c.write(append(hexBytes(flags), option(optExportName, nil)...))
		if got := c.read(10 + padding); !bytes.Equal(got, append(want, make([]byte, padding)...)) {
			t.Errorf("client flags %s: answer %x, want %x and %d zeros", flags, got, want, padding)
		}
		c.write(command(0, cmdFlush, 1, 0, 0))
		c.readError(1)
	}
}

// TestAdmit: over the budget a client gets a text, keeps its handshake, and may
// try again; what was taken is given back once.
func TestAdmit(t *testing.T) {
	var open atomic.Int64
	const text = "this host serves at most 2 connections: close one, or raise max_connections"
	cfg := newMemory(1 << 20).config()
	cfg.Admit = func() (func(), error) {
		if open.Add(1) > 2 {
			open.Add(-1)
			return nil, errors.New(text)
		}
		return func() { open.Add(-1) }, nil
	}
	s := alone(t, cfg)
	first := client(t, s, nbdclient.Options{})
	client(t, s, nbdclient.Options{OldStyle: true})

	third := rawConnect(t, s)
	third.write(append(hexBytes("00000003"), option(optGo, make([]byte, 6))...))
	if got := third.readReplies(); len(got) != 1 || got[0].typ != repErrPolicy || got[0].data != text {
		t.Errorf("third connection: %v, want a refusal with %q", got, text)
	}
	old := rawConnect(t, s)
	old.write(append(hexBytes("00000003"), option(optExportName, nil)...))
	old.wantEnd()
	_, err := nbdclient.New(connect(t, s), nbdclient.Options{})
	var refusal *nbdclient.Refusal
	if !errors.As(err, &refusal) || refusal.Text != text {
		t.Errorf("error %v, want a refusal with the text", err)
	}

	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a place is given back", func() bool { return open.Load() == 1 })
	third.write(option(optGo, make([]byte, 6)))
	if got := third.readReplies(); got[len(got)-1].typ != repAck {
		t.Errorf("third connection, with room: %v, want it admitted", got)
	}
	if st := s.Stats(); st.Refused != 3 {
		t.Errorf("%d refused, want 3", st.Refused)
	}
	stop(t, s)
	if n := open.Load(); n != 0 {
		t.Errorf("%d places taken after the end, want 0", n)
	}
}

// A poorDevice has no memory for queues.
type poorDevice struct{ *memory }

func (poorDevice) NewQueue(int) (blk.Queue, error) { return nil, errors.New("out of locked memory") }

// TestNoQueue: what cannot be had is told, and what was taken is given back.
func TestNoQueue(t *testing.T) {
	open := 0
	cfg := newMemory(1 << 20).config()
	cfg.Export = poorDevice{newMemory(1 << 20)}
	cfg.Admit = func() (func(), error) { open++; return func() { open-- }, nil }
	s := alone(t, cfg)
	_, err := nbdclient.New(connect(t, s), nbdclient.Options{})
	if err == nil || !strings.Contains(err.Error(), "out of locked memory") {
		t.Errorf("error %v, want the reason", err)
	}
	stop(t, s)
	if open != 0 {
		t.Errorf("%d places taken after the end, want 0", open)
	}
}

// TestAllow: a user who may not gets a text and nothing else.
func TestAllow(t *testing.T) {
	cfg := newMemory(1 << 20).config()
	cfg.Allow = func(uid uint32) bool {
		if uid != uint32(os.Getuid()) {
			t.Errorf("asked for user %d, want %d", uid, os.Getuid())
		}
		return false
	}
	s := alone(t, cfg)
	c := rawConnect(t, s)
	c.write(hexBytes("00000003"))
	for _, id := range []uint32{optList, optInfo, optGo, optStructuredReply, optListMetaContext} {
		c.write(option(id, make([]byte, 6)))
		if got := c.readReplies(); len(got) != 1 || got[0].typ != repErrPolicy || !strings.Contains(got[0].data, "may not use this volume") {
			t.Errorf("option %d: %v, want a refusal", id, got)
		}
	}
	c.write(option(optExportName, nil))
	c.wantEnd()
}

// TestHandshakesWait: more clients than places wait in the backlog, and none is
// turned away.
func TestHandshakesWait(t *testing.T) {
	cfg := newMemory(1 << 20).config()
	cfg.MaxHandshakes = 1
	_, path := serve(t, cfg)
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() {
			c, err := nbdclient.Dial(path, nbdclient.Options{})
			if err == nil {
				err = c.Close()
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestValidate(t *testing.T) {
	bad := newMemory(1000)
	err := (&Config{Export: bad, QueueDepth: -1, HandshakeTimeout: -1, MaxHandshakes: -1, Lock: mem.TryLock}).Validate()
	for _, want := range []string{"logical blocks of 512", "queue depth -1", "handshake timeout -1ns", "-1 handshakes"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Validate = %v, want it to name %q", err, want)
		}
	}
	if err := (&Config{}).Validate(); err == nil {
		t.Error("Validate of nothing = nil")
	}
	if err := (&Config{Export: newMemory(4096)}).Validate(); err != nil {
		t.Errorf("Validate of defaults = %v", err)
	}
}
