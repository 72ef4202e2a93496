package nbd

import "encoding/binary"

// The parsers of what clients send. They are pure: bytes in, values out, and
// never a panic.

// A request is the header of one, as the client sent it.
type request struct {
	flags  uint16
	typ    uint16
	cookie uint64
	off    uint64 // bytes
	length uint32 // bytes
}

// parseRequest reads a request header.
//
// REQUIRES: len(b) ≥ requestSize.
func parseRequest(b []byte) (r request, ok bool) {
	b = b[:requestSize]
	r = request{
		flags:  binary.BigEndian.Uint16(b[4:]),
		typ:    binary.BigEndian.Uint16(b[6:]),
		cookie: binary.BigEndian.Uint64(b[8:]),
		off:    binary.BigEndian.Uint64(b[16:]),
		length: binary.BigEndian.Uint32(b[24:]),
	}
	return r, binary.BigEndian.Uint32(b) == magicRequest
}

// payload is how many bytes follow the header.
func (r *request) payload() int {
	if r.typ == cmdWrite {
		return int(r.length)
	}
	return 0
}

// parseOption reads the header of an option.
//
// REQUIRES: len(b) ≥ optionHeaderSize.
func parseOption(b []byte) (id, length uint32, ok bool) {
	b = b[:optionHeaderSize]
	return binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:]),
		binary.BigEndian.Uint64(b) == magicOption
}

// An infoRequest is the data of optInfo and optGo.
type infoRequest struct {
	name      []byte // of the export; aliases the data
	blockSize bool   // the client asks for, and will obey, the block sizes
}

// parseInfo reads: length of the name (32 bits), name, number of information
// requests (16 bits), the requests (16 bits each).
func parseInfo(data []byte) (r infoRequest, ok bool) {
	name, rest, ok := cutString(data)
	if !ok || len(rest) < 2 {
		return infoRequest{}, false
	}
	n := int(binary.BigEndian.Uint16(rest))
	rest = rest[2:]
	if len(rest) != 2*n {
		return infoRequest{}, false
	}
	r.name = name
	for ; len(rest) > 0; rest = rest[2:] {
		if binary.BigEndian.Uint16(rest) == infoBlockSize {
			r.blockSize = true
		}
	}
	return r, true
}

// A contextRequest is the data of optListMetaContext and optSetMetaContext.
type contextRequest struct {
	name    []byte // of the export; aliases the data
	queries int
	exact   bool // one of the queries is "base:allocation"
	base    bool // one of the queries is "base:"
}

// parseContexts reads: length of the name (32 bits), name, number of queries
// (32 bits), and for each its length (32 bits) and text.
func parseContexts(data []byte) (r contextRequest, ok bool) {
	name, rest, ok := cutString(data)
	if !ok || len(rest) < 4 {
		return contextRequest{}, false
	}
	n := binary.BigEndian.Uint32(rest)
	rest = rest[4:]
	if uint64(n)*4 > uint64(len(rest)) {
		return contextRequest{}, false
	}
	r.name, r.queries = name, int(n)
	for range n {
		var q []byte
		if q, rest, ok = cutString(rest); !ok {
			return contextRequest{}, false
		}
		switch string(q) {
		case contextAllocation:
			r.exact = true
		case "base:":
			r.base = true
		}
	}
	return r, len(rest) == 0
}

// cutString takes a string with its length (32 bits) in front off b.
func cutString(b []byte) (s, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := binary.BigEndian.Uint32(b)
	b = b[4:]
	if n > maxName || uint64(n) > uint64(len(b)) {
		return nil, nil, false
	}
	return b[:n:n], b[n:], true
}
