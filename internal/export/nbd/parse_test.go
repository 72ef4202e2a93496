package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"vacate/internal/blk"
)

func TestVerdictTextsFit(t *testing.T) {
	for v, d := range verdicts {
		if len(d.text) > smallReply-chunkSize-6-8 {
			t.Errorf("text of verdict %d has %d bytes, and its reply does not fit %d", v, len(d.text), smallReply)
		}
		if (d.errno == 0) != (verdict(v) == admitted) || (d.text == "") != (d.errno == 0) {
			t.Errorf("verdict %d: error %d with text %q", v, d.errno, d.text)
		}
	}
	for value := range uint32(128) {
		if n := len(errorText(value)); n == 0 || n > smallReply-chunkSize-6-8 {
			t.Errorf("text of error %d has %d bytes, want some, in a reply that fits %d", value, n, smallReply)
		}
	}
}

// FuzzRequest: any header is parsed and judged without a panic, and what is
// admitted lies inside the volume, so that no arithmetic further down overflows.
func FuzzRequest(f *testing.F) {
	for _, b := range [][]byte{
		command(0, cmdRead, 1, 0, 4096),
		command(cmdFlagFUA, cmdWrite, 1, 1<<63, 1<<32-1),
		command(cmdFlagDF, cmdRead, 1, 512, 1<<20),
		command(0, cmdFlush, 1, 0, 0),
		command(cmdFlagReqOne, cmdBlockStatus, 1, 0, 1<<30),
		command(1<<15, 99, 1, 1, 1),
		bytes.Repeat([]byte{0xff}, requestSize),
	} {
		f.Add(b, uint64(1<<20), uint8(9), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, size uint64, shift uint8, negotiated bool) {
		if len(b) < requestSize || size > blk.MaxVolume || shift > 12 {
			return
		}
		r, ok := parseRequest(b)
		if !ok {
			return
		}
		if again := command(r.flags, r.typ, r.cookie, r.off, r.length); !bytes.Equal(again, b[:requestSize]) {
			t.Fatalf("%x is written as %x again", b[:requestSize], again)
		}
		terms := terms{size: size, align: 1 << shift, structured: negotiated, allocation: negotiated}
		if terms.judge(&r) != admitted || r.typ == cmdFlush {
			return
		}
		if end := r.off + uint64(r.length); end > size || end < r.off || r.length == 0 || (r.off|end)%terms.align != 0 {
			t.Errorf("admitted %+v to a volume of %d bytes", r, size)
		}
		if isLarge(&r) && r.length > maxRequest {
			t.Errorf("admitted %+v over the maximum", r)
		}
	})
}

// FuzzOption: the data of any option is parsed without a panic, and what is
// found lies inside it.
func FuzzOption(f *testing.F) {
	f.Add(hexBytes("00000000 0001 0003"))
	f.Add(hexBytes("00000001 78 0000"))
	f.Add(hexBytes("00000000 00000001 0000000f 626173653a616c6c6f636174696f6e"))
	f.Add(hexBytes("00000000 ffffffff"))
	f.Add(hexBytes("ffffffff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		before := slices.Clone(data)
		if r, ok := parseInfo(data); ok && (len(r.name) > maxName || len(r.name)+6 > len(data)) {
			t.Errorf("info with a name of %d bytes in %d", len(r.name), len(data))
		}
		if r, ok := parseContexts(data); ok && (len(r.name)+8+4*r.queries > len(data) || r.queries < 0) {
			t.Errorf("%d queries for a name of %d bytes in %d", r.queries, len(r.name), len(data))
		}
		if !bytes.Equal(data, before) {
			t.Error("parsing changed the data")
		}
	})
}

// FuzzServer feeds bytes to a server behind a whole handshake or none: it never
// panics, never hangs, sends nothing but replies, and serves the next client.
func FuzzServer(f *testing.F) {
	read := command(0, cmdRead, 1, 0, 4096)
	f.Add(false, hexBytes("00000003"))
	f.Add(false, append(hexBytes("00000003"), option(optGo, make([]byte, 6))...))
	f.Add(true, slices.Concat(read, command(0, cmdWrite, 2, 4096, 8), make([]byte, 8), command(0, cmdDisc, 3, 0, 0)))
	f.Add(true, slices.Concat(command(0, cmdRead, 1, 0, 600<<10), command(0, cmdBlockStatus, 2, 0, 1<<20), read))
	f.Add(true, command(0, cmdWrite, 2, 0, 300<<10))
	f.Add(true, slices.Concat(command(0, cmdWriteZeroes, 2, 0, 1<<20), command(0, cmdTrim, 4, 1, 1), command(0, cmdFlush, 3, 0, 0)))
	f.Add(true, bytes.Repeat(read, 200))
	m, later := newMemory(1<<20), newMemory(1<<20)
	later.async = true
	cfg := later.config()
	cfg.Export = newAnnounced(f, later)
	servers := []*Server{alone(f, m.config()), alone(f, cfg)}
	f.Fuzz(func(t *testing.T, entered bool, stream []byte) {
		for _, s := range servers {
			converse(t, s, entered, stream)
		}
	})
}

// converse plays stream, and checks that what comes back are replies, and that the
// connection ends.
func converse(t *testing.T, s *Server, entered bool, stream []byte) {
	c := connect(t, s)
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if entered {
		stream = slices.Concat(hexBytes("00000003"), option(optStructuredReply, nil),
			option(optSetMetaContext, hexBytes("00000000 00000001 0000000f 626173653a616c6c6f636174696f6e")),
			option(optGo, make([]byte, 6)), stream)
	}
	go func() {
		_, _ = c.Write(stream) // the server may cut it off
		_ = c.(*net.UnixConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the server hangs")
	}
	if len(got) < 18 {
		t.Fatalf("%d bytes, want at least the greeting", len(got))
	}
	checkReplies(t, got[18:], entered)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// checkReplies checks that b is made of replies. A stream cut off by the end of
// the connection may end in the middle of one.
func checkReplies(t *testing.T, b []byte, structured bool) {
	for len(b) >= 8 {
		n := 0
		switch {
		case binary.BigEndian.Uint64(b) == magicOptReply && len(b) >= optReplySize:
			n = optReplySize + int(binary.BigEndian.Uint32(b[16:]))
		case binary.BigEndian.Uint32(b) == magicSimple:
			n = simpleSize
		case binary.BigEndian.Uint32(b) == magicStructured && len(b) >= chunkSize:
			n = chunkSize + int(binary.BigEndian.Uint32(b[16:]))
		case !structured:
			return // simple replies to reads, and the answer to optExportName, have no frame
		case len(b) >= chunkSize:
			t.Fatalf("no reply: %x", b[:min(len(b), 64)])
		default:
			return
		}
		b = b[min(n, len(b)):]
	}
}
