package volatile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"vacate/internal/mem"
	"vacate/internal/sys"
)

// A session file is what an engine must know to go on with a frontend's
// vhost-user session in another engine's place: what was negotiated, and which
// requests are in flight. Its layout is docs/spec/vhostuser.md; unlike the other
// files of the volatile memory the engine makes it, and the keeper only holds it.

const (
	sessionMagic    = "VACATESN"
	sessionHeader   = 128
	sessionAt       = pageSize       // of the first copy of the record
	sessionCopy     = 2 * pageSize   // bytes
	sessionInflight = 5 * pageSize   // of the inflight table
	maxInflight     = int64(4) << 20 // bytes
)

// A Session is a mapping of a session file. It belongs to one goroutine, except
// that the inflight table's queues belong to whom they are given to.
type Session struct {
	file     *os.File
	region   *mem.Region
	words    [2][]atomic.Uint64 // of the two copies
	queues   int
	inflight int64

	record   SessionRecord // what Record returns
	newest   int           // which copy it is
	sequence uint64        // its own
	buf      [2][]byte     // room for two copies
}

// CreateSession makes the file of a session with that many queues, 1 to
// SessionQueues, and an inflight table of that many bytes, of which each queue's
// owner knows the form. It is empty: no session, nothing in flight.
func CreateSession(queues int, inflight int64) (*os.File, error) {
	if queues < 1 || queues > SessionQueues || inflight < 8 || inflight > maxInflight {
		return nil, fmt.Errorf("making a session file for %d queues and %d bytes of what is in flight: %w", queues, inflight, ErrFormat)
	}
	f, err := sys.Memfd("vacate-session", sessionInflight+pageUp(inflight))
	if err != nil {
		return nil, fmt.Errorf("making a session file: %w", err)
	}
	var b [sessionHeader]byte
	encodeSessionHeader(&b, queues, inflight)
	if _, err := f.WriteAt(b[:], 0); err != nil {
		return nil, errors.Join(fmt.Errorf("making a session file: %w", err), f.Close())
	}
	return f, nil
}

// OpenSession maps a session file, and takes f over. It checks the header, the
// file's size, which must be sealed, and the record.
func OpenSession(f *os.File) (*Session, error) {
	s, err := openSession(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening a session file: %w", err), f.Close())
	}
	return s, nil
}

func openSession(f *os.File) (*Session, error) {
	if err := checkSealed(f); err != nil {
		return nil, err
	}
	var head [sessionHeader]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return nil, fmt.Errorf("its header: %w", errors.Join(err, ErrFormat))
	}
	queues, inflight, err := decodeSessionHeader(&head)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if want := sessionInflight + pageUp(inflight); st.Size() != want {
		return nil, fmt.Errorf("%d bytes, want %d: %w", st.Size(), want, ErrFormat)
	}
	r, err := mem.MapShared(f, int(st.Size()))
	if err != nil {
		return nil, err
	}
	s := &Session{file: f, region: r, queues: queues, inflight: inflight}
	w := mem.Words(r.Bytes())
	for c := range s.words {
		s.words[c] = w[(sessionAt+c*sessionCopy)/8:][:sessionCopy/8]
		s.buf[c] = make([]byte, sessionCopy)
	}
	if err := s.load(); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return s, nil
}

// load reads the record.
func (s *Session) load() error {
	if !stable(s.words[0], s.words[1], s.buf[0], s.buf[1]) {
		return fmt.Errorf("it never stops changing: %w", ErrDamaged)
	}
	var rec [2]SessionRecord
	var seq [2]uint64
	var err error
	for c := range rec {
		if seq[c], err = decodeCopy(s.buf[c], &rec[c]); err != nil {
			return err
		}
	}
	if seq[1] > seq[0] {
		s.newest = 1
	}
	s.record, s.sequence = rec[s.newest], seq[s.newest]
	return s.checkQueues(&s.record)
}

func (s *Session) checkQueues(r *SessionRecord) error {
	for _, q := range r.Rings[s.queues:] {
		if q != (SessionRing{}) {
			return fmt.Errorf("more than %d rings: %w", s.queues, ErrFormat)
		}
	}
	return nil
}

// Record is what was last committed, and the zero record in a new file.
func (s *Session) Record() SessionRecord { return s.record }

// Commit makes r the record. An engine may die within: then it is this one or
// the one before. An error says that r is none, and changes nothing.
func (s *Session) Commit(r *SessionRecord) error {
	if err := errors.Join(r.validate(), s.checkQueues(r)); err != nil {
		return fmt.Errorf("writing a session's record: %w", err)
	}
	c := 1 - s.newest
	encodeCopy(s.buf[c], s.sequence+1, r)
	for at, v := range inOrder(s.buf[c]) {
		s.words[c][at].Store(v)
	}
	s.record, s.newest, s.sequence = *r, c, s.sequence+1
	return nil
}

// Queues is for how many queues the file was made.
func (s *Session) Queues() int { return s.queues }

// Inflight is the inflight table, in the mapping. It starts at a page.
func (s *Session) Inflight() []byte {
	return s.region.Bytes()[sessionInflight:][:s.inflight:s.inflight]
}

// File is the session's file, to hand to a keeper. It belongs to s.
func (s *Session) File() *os.File { return s.file }

// Close unmaps and closes the file.
func (s *Session) Close() error { return errors.Join(s.region.Close(), s.file.Close()) }

func encodeSessionHeader(b *[sessionHeader]byte, queues int, inflight int64) {
	le := binary.LittleEndian
	*b = [sessionHeader]byte{}
	copy(b[:], sessionMagic)
	le.PutUint32(b[8:], version)
	le.PutUint32(b[12:], uint32(queues))
	le.PutUint64(b[16:], uint64(inflight))
	le.PutUint32(b[24:], sessionCopy)
	le.PutUint32(b[28:], sessionInflight)
	seal(b[:])
}

func decodeSessionHeader(b *[sessionHeader]byte) (queues int, inflight int64, err error) {
	le := binary.LittleEndian
	if err := checkHead(b[:], sessionMagic, "session file"); err != nil {
		return 0, 0, err
	}
	q, n := le.Uint32(b[12:]), le.Uint64(b[16:])
	switch {
	case q < 1 || q > SessionQueues:
		return 0, 0, fmt.Errorf("session file: %d queues: %w", q, ErrFormat)
	case n < 8 || n > uint64(maxInflight):
		return 0, 0, fmt.Errorf("session file: %d bytes of what is in flight: %w", n, ErrFormat)
	case le.Uint32(b[24:]) != sessionCopy || le.Uint32(b[28:]) != sessionInflight:
		return 0, 0, fmt.Errorf("session file: its parts lie elsewhere: %w", ErrFormat)
	case !allZero(b[32 : sessionHeader-4]):
		return 0, 0, fmt.Errorf("session file: reserved bytes of the header are in use: %w", ErrFormat)
	}
	return int(q), int64(n), nil
}
