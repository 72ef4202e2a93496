package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"

	"vacate/internal/sys"
)

// le is the byte order of this machine, as the specification wants it, on all
// machines that Vacate runs on.
var le = binary.LittleEndian

// errGarbage: what the frontend sent is not the protocol. The session ends, as
// nobody knows where the next message begins, or what the frontend takes for
// granted.
var errGarbage = errors.New("not the vhost-user protocol")

// errRefused: a message that is well-formed and cannot be carried out. Nothing was
// changed. The frontend is told, if it wants to be; else the session ends, since it
// would go on as if it had been done.
var errRefused = errors.New("refused")

// A message is one of the frontend.
type message struct {
	request   uint32
	needReply bool
	payload   []byte // valid until the next message
	files     []int  // its descriptors: closed when it is done, unless taken
}

// parseHeader returns the request and the payload's size, and refuses what no
// message begins with.
func parseHeader(b []byte) (m message, size int, err error) {
	request, flags, n := le.Uint32(b), le.Uint32(b[4:]), le.Uint32(b[8:])
	switch {
	case flags&flagsMask != flagsVersion:
		return m, 0, fmt.Errorf("%s of version %d: %w", requestName(request), flags&flagsMask, errGarbage)
	case flags&flagsReply != 0:
		return m, 0, fmt.Errorf("%s as a reply to nothing: %w", requestName(request), errGarbage)
	case n > maxPayload:
		return m, 0, fmt.Errorf("%s of %d bytes: %w", requestName(request), n, errGarbage)
	}
	return message{request: request, needReply: flags&flagsNeedReply != 0}, int(n), nil
}

// check holds the message against its form.
func (m *message) check() error {
	f, ok := forms[m.request]
	switch {
	case !ok:
		return fmt.Errorf("%s is not served: %w", requestName(m.request), errRefused)
	case len(m.payload) < f.min || len(m.payload) > f.max:
		return fmt.Errorf("%s of %d bytes: want %d to %d: %w", f.name, len(m.payload), f.min, f.max, errGarbage)
	case len(m.files) > f.fds || !f.anyFDs && len(m.files) != f.fds:
		return fmt.Errorf("%s with %d descriptors: want %d: %w", f.name, len(m.files), f.fds, errGarbage)
	}
	return nil
}

// take returns the i-th descriptor, which the caller owns from now on.
func (m *message) take(i int) int {
	fd := m.files[i]
	m.files[i] = -1
	return fd
}

// close closes the descriptors that nobody took.
func (m *message) close() {
	for _, fd := range m.files {
		if fd >= 0 {
			_ = sys.CloseFD(fd) // a duplicate that was never used
		}
	}
	m.files = nil
}

// u64 is a payload of 8 bytes.
func (m *message) u64() uint64 { return le.Uint64(m.payload) }

// state is a vring state description.
func (m *message) state() (index, num uint32) {
	return le.Uint32(m.payload), le.Uint32(m.payload[4:])
}

// newReply is the reply to a request with this payload.
func newReply(request uint32, payload []byte) []byte {
	b := le.AppendUint32(nil, request)
	b = le.AppendUint32(b, flagsVersion|flagsReply)
	b = le.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}
