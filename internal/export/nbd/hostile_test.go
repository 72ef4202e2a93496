package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"vacate/internal/nbdclient"
)

// A rawClient speaks NBD byte by byte.
type rawClient struct {
	t *testing.T
	net.Conn
}

func rawConnect(t *testing.T, s *Server) rawClient {
	t.Helper()
	c := rawClient{t, connect(t, s)}
	if err := c.SetDeadline(time.Now().Add(3 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	if got, want := c.read(18), hexBytes("4e42444d41474943 49484156454f5054 0003"); !bytes.Equal(got, want) {
		t.Fatalf("greeting %x, want %x", got, want)
	}
	return c
}

func (c rawClient) read(n int) []byte {
	c.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		c.t.Fatalf("reading %d bytes: %v", n, err)
	}
	return b
}

func (c rawClient) write(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatalf("writing %d bytes: %v", len(b), err)
	}
}

// wantEnd checks that the server ends the connection, without another byte.
func (c rawClient) wantEnd() {
	c.t.Helper()
	n, err := io.Copy(io.Discard, c)
	if n != 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
		c.t.Errorf("%d bytes and error %v, want the connection's end", n, err)
	}
}

// enter goes through the shortest handshake.
func (c rawClient) enter() {
	c.t.Helper()
	c.write(append(hexBytes("00000003"), option(optExportName, nil)...))
	c.read(10)
}

func option(id uint32, data []byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, magicOption)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func command(flags, typ uint16, cookie, off uint64, length uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, magicRequest)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, typ)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, off)
	return binary.BigEndian.AppendUint32(b, length)
}

// TestHostileHandshake: what does not keep to the protocol is cut off, and does
// not harm the client beside it.
func TestHostileHandshake(t *testing.T) {
	huge := option(optList, nil)
	binary.BigEndian.PutUint32(huge[12:], maxOption+1)
	tests := []struct {
		name string
		send []byte
	}{
		{"unknown client flag", hexBytes("80000003")},
		{"http", []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")},
		{"wrong option magic", append(hexBytes("00000003"), make([]byte, 16)...)},
		{"option too long", append(hexBytes("00000003"), huge...)},
		{"unknown export name", append(hexBytes("00000003"), option(optExportName, []byte("other"))...)},
	}
	s := alone(t, newMemory(1<<20).config())
	beside := client(t, s, nbdclient.Options{})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := rawConnect(t, s)
			c.write(tt.send)
			c.wantEnd()
			if err := beside.Flush(); err != nil {
				t.Errorf("the client beside: %v", err)
			}
		})
	}
	eventually(t, "garbage is counted", func() bool { return s.Stats().Garbage == uint64(len(tests)-1) })

	t.Run("too many options", func(t *testing.T) {
		c := rawConnect(t, s)
		go func() { _, _ = io.Copy(io.Discard, c) }()
		b := append(hexBytes("00000003"), bytes.Repeat(option(optList, nil), 100)...)
		for range 2 * maxOptions / 100 {
			if _, err := c.Write(b); err != nil {
				return // the end, as wanted
			}
			b = b[len(b)-100*optionHeaderSize:]
		}
		eventually(t, "the connection ends", func() bool { _, err := c.Write(b); return err != nil })
	})
	t.Run("silence", func(t *testing.T) {
		cfg := newMemory(1 << 20).config()
		cfg.HandshakeTimeout = 2 * time.Second
		c := rawConnect(t, alone(t, cfg))
		_, _ = c.Write(hexBytes("0000")) // it may have ended already
		c.wantEnd()
	})
}

// TestHostileRequests: each bad request gets its error, or the end of its
// connection where the stream cannot be trusted any more.
func TestHostileRequests(t *testing.T) {
	const size = 1 << 20
	tests := []struct {
		name          string
		flags, typ    uint16
		off           uint64
		length        uint32
		want          uint32
		negotiated    bool // with block sizes and structured replies
		payloadLength int
	}{
		{name: "unknown command", typ: 99, length: 4096, want: nbdEINVAL},
		{name: "unknown flag", flags: 1 << 9, typ: cmdRead, length: 4096, want: nbdEINVAL},
		{name: "flag of another command", flags: cmdFlagReqOne, typ: cmdRead, length: 4096, want: nbdEINVAL},
		{name: "DF that was not negotiated", flags: cmdFlagDF, typ: cmdRead, length: 4096, want: nbdEINVAL},
		{name: "DF over the limit", flags: cmdFlagDF, typ: cmdRead, length: 512 << 10, want: nbdEOVERFLOW, negotiated: true},
		{name: "status without context", typ: cmdBlockStatus, length: 4096, want: nbdEINVAL},
		{name: "empty read", typ: cmdRead, want: nbdEINVAL},
		{name: "empty write", typ: cmdWrite, want: nbdEINVAL},
		{name: "empty trim", typ: cmdTrim, want: nbdEINVAL},
		{name: "flush with a range", typ: cmdFlush, length: 4096, want: nbdEINVAL},
		{name: "read behind the end", typ: cmdRead, off: size, length: 512, want: nbdEINVAL},
		{name: "read across the end", typ: cmdRead, off: size - 512, length: 1024, want: nbdEINVAL},
		{name: "read at the last offset of all", typ: cmdRead, off: 1<<64 - 512, length: 1024, want: nbdEINVAL},
		{name: "read over the maximum", typ: cmdRead, length: maxRequest + 512, want: nbdEINVAL},
		{name: "read of 4 GiB", typ: cmdRead, length: 1<<32 - 512, want: nbdEINVAL},
		{name: "large read across the end", typ: cmdRead, length: size + 512, want: nbdEINVAL},
		{name: "write across the end", typ: cmdWrite, off: size - 512, length: 1024, want: nbdENOSPC, payloadLength: 1024},
		{name: "large write across the end", typ: cmdWrite, off: 512, length: size, want: nbdENOSPC, payloadLength: size},
		{name: "write over the maximum", typ: cmdWrite, length: maxRequest + 512, want: nbdEINVAL, payloadLength: maxRequest + 512},
		{name: "write with an unknown flag", flags: 1 << 9, typ: cmdWrite, length: 4096, want: nbdEINVAL, payloadLength: 4096},
		{name: "trim across the end", typ: cmdTrim, off: 512, length: size, want: nbdEINVAL},
		{name: "zeroes across the end", typ: cmdWriteZeroes, off: 512, length: size, want: nbdENOSPC},
		{name: "misaligned offset", typ: cmdRead, off: 1, length: 512, want: nbdEINVAL, negotiated: true},
		{name: "misaligned length", typ: cmdTrim, length: 513, want: nbdEINVAL, negotiated: true},
		{name: "misaligned write", typ: cmdWrite, off: 100, length: 512, want: nbdEINVAL, negotiated: true, payloadLength: 512},
		{name: "cache across the end", typ: cmdCache, off: size, length: 512, want: nbdEINVAL},
	}
	m := newMemory(size)
	s := alone(t, m.config())
	beside := client(t, s, nbdclient.Options{})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := rawConnect(t, s)
			if tt.negotiated {
				c.enterStructured()
			} else {
				c.enter()
			}
			c.write(command(tt.flags, tt.typ, 7, tt.off, tt.length))
			c.write(make([]byte, tt.payloadLength))
			if got := c.readError(7); got != tt.want {
				t.Errorf("error %d, want %d", got, tt.want)
			}
			// The connection goes on, in step.
			c.write(command(0, cmdFlush, 8, 0, 0))
			if got := c.readError(8); got != 0 {
				t.Errorf("flush after it: error %d", got)
			}
			if err := beside.Flush(); err != nil {
				t.Errorf("the client beside: %v", err)
			}
		})
	}
	m.with(func() {
		if !bytes.Equal(m.data, make([]byte, size)) {
			t.Error("a request that was refused changed the volume")
		}
	})
}

// enterStructured negotiates structured replies and block sizes.
func (c rawClient) enterStructured() {
	c.t.Helper()
	c.write(append(hexBytes("00000003"), option(optStructuredReply, nil)...))
	c.read(optReplySize)
	c.write(option(optGo, hexBytes("00000000 0001 0003")))
	c.read(optReplySize + 12 + optReplySize + 14 + optReplySize)
}

// readError reads a reply without data and returns its error value.
func (c rawClient) readError(cookie uint64) uint32 {
	c.t.Helper()
	b := c.read(simpleSize)
	if got := binary.BigEndian.Uint64(b[8:]); got != cookie {
		c.t.Fatalf("reply to request %d, want %d", got, cookie)
	}
	if binary.BigEndian.Uint32(b) == magicSimple {
		return binary.BigEndian.Uint32(b[4:])
	}
	flags, typ := binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:])
	if binary.BigEndian.Uint32(b) != magicStructured || flags != chunkDone || typ != chunkError {
		c.t.Fatalf("reply %x, want an error chunk", b)
	}
	payload := c.read(int(binary.BigEndian.Uint32(c.read(4))))
	if text := payload[6:]; len(text) == 0 || int(binary.BigEndian.Uint16(payload[4:])) != len(text) {
		c.t.Errorf("error chunk %x, want one with a text", payload)
	}
	return binary.BigEndian.Uint32(payload)
}

// TestHostileStreams: a stream that cannot be trusted any more is cut off.
func TestHostileStreams(t *testing.T) {
	tests := []struct {
		name string
		send []byte
	}{
		{"wrong request magic", bytes.Repeat([]byte{0xff}, requestSize)},
		{"absurd payload", command(0, cmdWrite, 1, 0, maxPayload+1)},
		{"disconnect", command(0, cmdDisc, 1, 0, 0)},
	}
	s := alone(t, newMemory(1<<20).config())
	beside := client(t, s, nbdclient.Options{})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := rawConnect(t, s)
			c.enter()
			c.write(tt.send)
			c.wantEnd()
		})
	}
	for name, half := range map[string][]byte{
		"header":        command(0, cmdRead, 1, 0, 4096)[:20],
		"payload":       append(command(0, cmdWrite, 1, 0, 4096), make([]byte, 1000)...),
		"large payload": append(command(0, cmdWrite, 1, 0, 1<<20), make([]byte, 300<<10)...),
	} {
		t.Run("half a "+name, func(t *testing.T) {
			c := rawConnect(t, s)
			c.enter()
			c.write(half)
			if err := beside.Flush(); err != nil {
				t.Errorf("the client beside: %v", err)
			}
			// Half a request may come to its end at any time; after this it cannot.
			if err := c.Conn.(*net.UnixConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			c.wantEnd()
		})
	}
	if err := beside.Flush(); err != nil {
		t.Errorf("the client beside: %v", err)
	}
}

// TestNeverReads: a client that asks and never reads fills the kernel's buffer
// and its own thread, and nothing else; Close ends it.
func TestNeverReads(t *testing.T) {
	s := alone(t, newMemory(8<<20).config())
	beside := client(t, s, nbdclient.Options{})
	var deaf []rawClient
	for range 4 {
		c := rawConnect(t, s)
		c.enter()
		deaf = append(deaf, c)
	}
	before := resident(t)
	for _, c := range deaf {
		if err := c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		asked := 0
		for ; asked < 100_000; asked++ { // 12 GiB, if somebody read it
			if _, err := c.Write(command(0, cmdRead, uint64(asked), 0, 128<<10)); err != nil {
				break
			}
		}
		if asked == 100_000 {
			t.Error("the server took 100000 reads whose replies nobody read")
		}
	}
	const perConnection = 2 << 20 // our two buffers, and what the runtime needs for a thread
	if grown := resident(t) - before; grown > int64(len(deaf))*perConnection {
		t.Errorf("%d clients that never read made the process grow by %d bytes", len(deaf), grown)
	}
	if err := beside.Flush(); err != nil {
		t.Errorf("the client beside: %v", err)
	}
	stop(t, s)
}

// resident returns how much memory the process has.
func resident(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var pages int64
	for _, digit := range bytes.Fields(b)[1] {
		pages = pages*10 + int64(digit-'0')
	}
	return pages * int64(os.Getpagesize())
}
