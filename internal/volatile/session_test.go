package volatile

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
)

// specSession is the record of the page's vector.
func specSession() SessionRecord {
	r := SessionRecord{
		Conn: 2, Channel: 3, Log: 4, Inflight: 5, Protocol: 0xb22b, Features: 0x1_7400_0000, FeaturesSet: true, ProtocolSet: true,
		WriteThrough: true, ToldBytes: 1 << 30,
		LogSize: 4096, LogOffset: 8192, InflightSize: 65536, InflightOffset: 4096, InflightQueues: 2, InflightRing: 128,
		Removed: SessionRegion{Guest: 1 << 32, User: 0x7f0000000000, Size: 1 << 21},
	}
	r.Regions[0] = SessionRegion{Guest: 0, User: 0x7f1000000000, Size: 1 << 30, Offset: 0, Place: 6}
	r.Regions[31] = SessionRegion{Guest: 1 << 33, User: 0x7f2000000000, Size: 1 << 21, Offset: 1 << 30, Place: 255}
	r.Rings[0] = SessionRing{
		Size: 256, Base: 0, Kick: 7, Call: 8, Err: 9, Started: true, Enabled: true, Running: true, Addressed: true, LogUsed: true,
		Desc: 0x7f1000001000, Avail: 0x7f1000002000, Use: 0x7f1000003000, LogAddr: 0x3000,
	}
	r.Rings[1] = SessionRing{Size: 1024, Base: 65535, Enabled: true}
	r.Named(func(p uint8) { r.Held.Add(p) })
	r.Held.Add(200)
	return r
}

// TestSessionVectors holds code and page together. The vectors were computed from
// the page's tables by a program that shares nothing with this package.
func TestSessionVectors(t *testing.T) {
	vec := vectorsOf(t, "../../docs/spec/vhostuser.md")
	check := func(name string, got []byte) {
		t.Helper()
		if want := vec[name]; !bytes.Equal(got, want) {
			t.Errorf("%s:\n got % x\nwant % x", name, got, want)
		}
		delete(vec, name)
	}
	var h [sessionHeader]byte
	encodeSessionHeader(&h, 2, 70000)
	check("session-header", h[:])
	if q, n, err := decodeSessionHeader(&h); q != 2 || n != 70000 || err != nil {
		t.Errorf("header read back: %d, %d, %v", q, n, err)
	}
	r := specSession()
	b := make([]byte, sessionCopy)
	encodeCopy(b, 7, &r)
	check("session-record", b[:152])
	check("session-region", b[152+31*40:][:40])
	check("session-ring", b[1432:][:48])
	check("session-checksum", b[sessionCopy-4:])
	var got SessionRecord
	if seq, err := decodeCopy(b, &got); err != nil || seq != 7 || got != r {
		t.Errorf("read back: %d, %+v, %v", seq, got, err)
	}
	for name := range vec {
		t.Errorf("vector %s is on the page, and no test checks it", name)
	}
}

func newSession(t *testing.T, queues int) (*os.File, *Session) {
	t.Helper()
	f, err := CreateSession(queues, 70000)
	if err != nil {
		t.Fatal(err)
	}
	other := dup(t, f)
	s, err := OpenSession(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), other.Close()); err != nil {
			t.Error(err)
		}
	})
	return other, s
}

// TestSessionSuccessor commits records and reads them as the next engine would.
func TestSessionSuccessor(t *testing.T) {
	f, s := newSession(t, 2)
	if got := s.Record(); got != (SessionRecord{}) {
		t.Fatalf("a new file holds %+v", got)
	}
	want := specSession()
	for i := range uint64(5) {
		want.ToldBytes = 4096 * (i + 1)
		if err := s.Commit(&want); err != nil {
			t.Fatal(err)
		}
		copy(s.Inflight(), "in flight")
		if n := len(s.Inflight()); n != 70000 {
			t.Fatalf("inflight table of %d bytes", n)
		}
		next, err := OpenSession(dup(t, f))
		if err != nil {
			t.Fatal(err)
		}
		if got := next.Record(); got != want || next.Queues() != 2 || string(next.Inflight()[:9]) != "in flight" {
			t.Errorf("the successor reads %+v, want %+v", got, want)
		}
		if err := next.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestSessionCrash ends the writer at every store: the successor reads the record
// before or the one after, never another (V3).
func TestSessionCrash(t *testing.T) {
	_, s := newSession(t, 2)
	before, after := specSession(), specSession()
	after.ToldBytes, after.Rings[0].Base, after.Regions[3] = 1<<40, 77, SessionRegion{Guest: 1 << 34, Size: 4096, Place: 77}
	after.Held.Add(77)
	for _, first := range []bool{true, false} { // in both copies
		if err := s.Commit(&before); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, sessionCopy)
		c := 1 - s.newest
		encodeCopy(b, s.sequence+1, &after)
		old := make([]byte, sessionCopy)
		load(old, s.words[c])
		stores := 0
		for range inOrder(b) {
			stores++
		}
		for n := range stores + 1 {
			store(s.words[c], old)
			i := 0
			for at, v := range inOrder(b) {
				if i == n {
					break
				}
				s.words[c][at].Store(v)
				i++
			}
			next := *s
			next.newest = 0
			if err := next.load(); err != nil {
				t.Fatalf("after %d of %d stores: %v", n, stores, err)
			}
			want := before
			if n == stores {
				want = after
			}
			if next.record != want {
				t.Fatalf("after %d of %d stores (first copy: %v): neither record", n, stores, first)
			}
		}
		store(s.words[c], old)
	}
}

func TestSessionRefuses(t *testing.T) {
	_, s := newSession(t, 2)
	for name, change := range map[string]func(*SessionRecord){
		"named twice":         func(r *SessionRecord) { r.Channel = r.Conn },
		"not held":            func(r *SessionRecord) { r.Held = PlaceSet{} },
		"without connection":  func(r *SessionRecord) { r.Conn = 0 },
		"listener's place":    func(r *SessionRecord) { r.Log = 1; r.Held.Add(1) },
		"odd ring":            func(r *SessionRecord) { r.Rings[0].Size = 100 },
		"long ring":           func(r *SessionRecord) { r.Rings[0].Size = 2048 },
		"ring without queue":  func(r *SessionRecord) { r.Rings[2].Enabled = true },
		"removed with a file": func(r *SessionRecord) { r.Removed.Place = 9 },
	} {
		r := specSession()
		change(&r)
		if err := s.Commit(&r); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := s.Record(); got != (SessionRecord{}) {
		t.Errorf("a refused record was written")
	}
}

// TestSessionHostile opens files that are not what they should be.
func TestSessionHostile(t *testing.T) {
	for name, tt := range map[string]struct {
		damage func(t *testing.T, f *os.File)
		want   error
	}{
		"magic":          {writeAt(0, "X"), ErrFormat},
		"version":        {writeAt(8, "\x09"), ErrVersion},
		"header's sum":   {writeAt(12, "\x03"), ErrDamaged},
		"record":         {writeAt(sessionAt, "\x01\x00\x00\x00"), ErrDamaged},
		"other record":   {writeAt(sessionAt+sessionCopy, "\x01"), ErrDamaged},
		"nothing broken": {writeAt(sessionInflight, "xyz"), nil},
	} {
		f, err := CreateSession(1, 64)
		if err != nil {
			t.Fatal(err)
		}
		tt.damage(t, f)
		s, err := OpenSession(f)
		if !errors.Is(err, tt.want) || (tt.want == nil) != (err == nil) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
		if err == nil {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	plain, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSession(plain); err == nil || !strings.Contains(err.Error(), "sealed") {
		t.Errorf("a file whose size is not sealed: %v", err)
	}
	for _, n := range []int{0, 65} {
		if f, err := CreateSession(n, 64); !errors.Is(err, ErrFormat) {
			t.Errorf("%d queues: %v, %v", n, f, err)
		}
	}
}

func writeAt(at int64, text string) func(*testing.T, *os.File) {
	return func(t *testing.T, f *os.File) {
		t.Helper()
		if _, err := f.WriteAt([]byte(text), at); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzSessionRecord(f *testing.F) {
	b := make([]byte, sessionCopy)
	r := specSession()
	encodeCopy(b, 3, &r)
	f.Add(b[:ssnEnd])
	f.Fuzz(func(t *testing.T, in []byte) {
		b := make([]byte, sessionCopy)
		copy(b[:sessionCopy-4], in)
		seal(b)
		var r SessionRecord
		seq, err := decodeCopy(b, &r)
		if err != nil || seq == 0 {
			return
		}
		again := make([]byte, sessionCopy)
		encodeCopy(again, seq, &r)
		if string(again) != string(b) {
			t.Errorf("a record that is accepted does not come out as it went in: %+v", r)
		}
	})
}
