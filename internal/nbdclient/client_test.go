package nbdclient

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestSocketPath(t *testing.T) {
	tests := []struct{ target, path, export, err string }{
		{target: "/run/x.sock", path: "/run/x.sock"},
		{target: "nbd+unix:///?socket=/run/x.sock", path: "/run/x.sock"},
		{target: "nbd+unix:///name?socket=/a%20b", path: "/a b", export: "name"},
		{target: "nbd+unix:///", err: "want nbd+unix"},
		{target: "nbd://host/", err: "want nbd+unix"},
		{target: "nbd+unix://%zz", err: "parsing NBD URI"},
	}
	for _, tt := range tests {
		path, export, err := SocketPath(tt.target)
		if path != tt.path || export != tt.export || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("SocketPath(%q) = %q, %q, %v", tt.target, path, export, err)
		}
	}
}

// A script is a server that says what it was told to say, whatever it hears.
type script struct {
	io.Reader
	heard bytes.Buffer
}

func (s *script) Write(p []byte) (int, error)      { return s.heard.Write(p) }
func (s *script) Close() error                     { return nil }
func (s *script) LocalAddr() net.Addr              { return nil }
func (s *script) RemoteAddr() net.Addr             { return nil }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func optionReply(id, typ uint32, data ...[]byte) []byte {
	d := slices.Concat(data...)
	return slices.Concat(be64(optReplyMagic), be32(id), be32(typ), be32(uint32(len(d))), d)
}

func chunk(flags, typ uint16, cookie uint64, data ...[]byte) []byte {
	d := slices.Concat(data...)
	return slices.Concat(be32(structuredMagic), be32(uint32(flags)<<16|uint32(typ)), be64(cookie), be32(uint32(len(d))), d)
}

// handshakeBytes is what a server of 1 MiB says until transmission.
func handshakeBytes() []byte {
	return slices.Concat(be64(initMagic), be64(optionMagic), []byte{0, 3},
		optionReply(optStructuredReply, repAck),
		optionReply(optSetMetaContext, repMetaContext, be32(9), []byte("base:allocation")),
		optionReply(optSetMetaContext, repAck),
		optionReply(optGo, repInfo, []byte{0, infoExport}, be64(1<<20), []byte{0, 0xff}),
		optionReply(optGo, repInfo, []byte{0, infoBlockSize}, be32(512), be32(4096), be32(1<<20)),
		optionReply(optGo, repAck))
}

func scripted(t testing.TB, replies ...[]byte) (*Client, *script) {
	t.Helper()
	s := &script{Reader: bytes.NewReader(slices.Concat(handshakeBytes(), slices.Concat(replies...)))}
	c, err := New(s, Options{})
	if err != nil {
		t.Fatal(err)
	}
	s.heard.Reset()
	return c, s
}

func TestReadChunks(t *testing.T) {
	c, s := scripted(t,
		chunk(0, chunkOffsetHole, 1, be64(4096), be32(1024)),
		chunk(0, chunkOffsetData, 1, be64(4096+1024), bytes.Repeat([]byte{7}, 1024)),
		chunk(chunkDone, chunkNone, 1))
	p := bytes.Repeat([]byte{1}, 2048)
	if _, err := c.ReadAt(p, 4096); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, append(make([]byte, 1024), bytes.Repeat([]byte{7}, 1024)...)) {
		t.Error("chunks were not put together")
	}
	want := slices.Concat(be32(requestMagic), be32(0), be64(1), be64(4096), be32(2048))
	if !bytes.Equal(s.heard.Bytes(), want) {
		t.Errorf("sent %x, want %x", s.heard.Bytes(), want)
	}
}

func TestErrorChunks(t *testing.T) {
	c, _ := scripted(t,
		chunk(0, chunkErrorOffset, 1, be32(uint32(syscall.EIO)), []byte{0, 3}, []byte("bad"), be64(512)),
		chunk(chunkDone, chunkNone, 1),
		chunk(chunkDone, chunkErrors+1, 2, be32(uint32(syscall.EINVAL)), []byte{0, 0}),
		slices.Concat(be32(simpleMagic), be32(uint32(syscall.ENOSPC)), be64(3)))
	var e *Error
	if err := c.ReadFlags(make([]byte, 1024), 0, 0); !errors.As(err, &e) || e.Errno != syscall.EIO || e.Text != "bad" || e.At != 512 {
		t.Errorf("read: %v", err)
	}
	if err := c.Trim(0, 512, 0); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("trim: %v", err)
	}
	if err := c.WriteFlags(make([]byte, 512), 0, 0); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write: %v", err)
	}
}

// TestNonsense: a reply that makes no sense ends the connection, and is never
// taken for success.
func TestNonsense(t *testing.T) {
	data := make([]byte, 512)
	for name, reply := range map[string][]byte{
		"wrong magic":             make([]byte, 20),
		"wrong cookie":            chunk(chunkDone, chunkNone, 2),
		"nothing at all":          nil,
		"no data":                 chunk(chunkDone, chunkNone, 1),
		"simple reply with data":  slices.Concat(be32(simpleMagic), be32(0), be64(1), data),
		"half of the data":        chunk(chunkDone, chunkOffsetData, 1, be64(0), data[:100]),
		"data before the range":   chunk(chunkDone, chunkOffsetData, 1, be64(1<<64-1), data),
		"data behind the range":   chunk(chunkDone, chunkOffsetData, 1, be64(1), data),
		"data chunk without data": chunk(chunkDone, chunkOffsetData, 1, be64(0)),
		"hole behind the range":   chunk(chunkDone, chunkOffsetHole, 1, be64(0), be32(513)),
		"hole of a wrong length":  chunk(chunkDone, chunkOffsetHole, 1, be64(0)),
		"block status":            chunk(chunkDone, chunkBlockStatus, 1, be32(9), be32(512), be32(0)),
		"unknown chunk":           chunk(chunkDone, 77, 1),
		"none that is not last":   chunk(0, chunkNone, 1),
		"short error":             chunk(chunkDone, chunkErrors+1, 1, be32(5)),
		"text too long":           chunk(chunkDone, chunkErrors+1, 1, be32(5), []byte{0, 9}, []byte("x")),
	} {
		c, _ := scripted(t, reply)
		err := c.ReadFlags(data, 0, 0)
		var e *Error
		if err == nil || errors.As(err, &e) {
			t.Errorf("%s: error %v, want the connection's end", name, err)
		}
		if err := c.Flush(); err == nil || !strings.Contains(err.Error(), "has ended") {
			t.Errorf("%s: flush after it: %v", name, err)
		}
	}
}

func TestNonsenseStatus(t *testing.T) {
	for name, reply := range map[string][]byte{
		"another context":   chunk(chunkDone, chunkBlockStatus, 1, be32(8), be32(512), be32(0)),
		"no extent":         chunk(chunkDone, chunkBlockStatus, 1, be32(9)),
		"empty extent":      chunk(chunkDone, chunkBlockStatus, 1, be32(9), be32(0), be32(0)),
		"extent too long":   chunk(chunkDone, chunkBlockStatus, 1, be32(9), be32(1025), be32(0)),
		"half an extent":    chunk(chunkDone, chunkBlockStatus, 1, be32(9), be32(512)),
		"no chunk":          chunk(chunkDone, chunkNone, 1),
		"a simple reply":    slices.Concat(be32(simpleMagic), be32(0), be64(1)),
		"a chunk with data": chunk(chunkDone, chunkOffsetData, 1, be64(0), make([]byte, 8)),
	} {
		c, _ := scripted(t, reply)
		if got, err := c.BlockStatus(0, 1024); err == nil {
			t.Errorf("%s: %v without an error", name, got)
		}
	}
}

// TestHandshakeNonsense cuts the handshake off at every byte, and flips each.
func TestHandshakeNonsense(t *testing.T) {
	whole := handshakeBytes()
	for n := range whole {
		if _, err := New(&script{Reader: bytes.NewReader(whole[:n])}, Options{}); err == nil {
			t.Fatalf("a handshake of %d of %d bytes succeeded", n, len(whole))
		}
		b := slices.Clone(whole)
		b[n] ^= 0xff
		_, _ = New(&script{Reader: bytes.NewReader(b)}, Options{}) // must not panic or hang
	}
}

func FuzzReplies(f *testing.F) {
	f.Add(chunk(chunkDone, chunkOffsetData, 1, be64(0), make([]byte, 512)))
	f.Add(chunk(chunkDone, chunkErrorOffset, 1, be32(5), []byte{0, 0}, be64(0)))
	f.Add(slices.Concat(chunk(0, chunkOffsetHole, 1, be64(0), be32(512)), chunk(chunkDone, chunkNone, 1),
		chunk(chunkDone, chunkBlockStatus, 2, be32(9), be32(512), be32(3))))
	f.Fuzz(func(t *testing.T, replies []byte) {
		c, _ := scripted(t, replies)
		_ = c.ReadFlags(make([]byte, 512), 0, 0)
		if got, err := c.StatusOnce(0, 1024, 0); err == nil && len(got) == 0 {
			t.Error("a status without an extent is no error")
		}
		r := newRun(Load{Depth: 4, BlockSize: 512, Span: 1 << 20, Requests: 8}, c)
		r.compose()
		if err := r.parse(replies[:min(len(replies), len(r.in))]); err == nil && r.inFlight < 0 {
			t.Error("more answers than requests")
		}
	})
}

func TestLoadValidates(t *testing.T) {
	c, _ := scripted(t)
	for _, l := range []Load{{}, {Requests: 1, Depth: -1}, {Requests: 1, BlockSize: 2 << 20}, {Requests: 1, Off: 1, Span: 1 << 20}} {
		if _, err := l.Run(c); err == nil {
			t.Errorf("Load%+v runs", l)
		}
	}
}

func TestHistogram(t *testing.T) {
	for d := time.Duration(0); d < 1<<40; d = d*17/16 + 1 {
		i := bucket(d)
		if up := upper(i); d > up || float64(up) > float64(d)*1.126 || i > 0 && upper(i-1) >= d {
			t.Fatalf("%d ns is in bucket %d, which ends at %d", d, i, up)
		}
	}
	var h histogram
	if h.quantile(0.5) != 0 {
		t.Error("quantile of nothing is not 0")
	}
	for i := range 1000 {
		h.add(time.Duration(i) * time.Microsecond)
	}
	if p := h.quantile(0.99); p < 989*time.Microsecond || p > 1126*time.Microsecond {
		t.Errorf("p99 = %v", p)
	}
}
