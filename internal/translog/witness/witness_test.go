package witness

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// testLog is a log in memory, made of Go's own tlog.
type testLog struct {
	t      testing.TB
	origin string
	signer note.Signer
	vkey   string
	hashes []tlog.Hash
}

func (l *testLog) ReadHashes(at []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(at))
	for i, n := range at {
		out[i] = l.hashes[n]
	}
	return out, nil
}

// newLog makes a log of n records; seed makes its key and its records.
func newLog(t testing.TB, origin string, seed byte, n int) *testLog {
	t.Helper()
	l := &testLog{t: t, origin: origin}
	private := ed25519.NewKeyFromSeed([]byte(strings.Repeat(string(rune('a'+seed)), 32)))
	pub := append([]byte{1}, private.Public().(ed25519.PublicKey)...)
	h := sha256.Sum256(append([]byte(origin+"\n"), pub...))
	id := binary.BigEndian.Uint32(h[:])
	l.vkey = fmt.Sprintf("%s+%08x+%s", origin, id, base64.StdEncoding.EncodeToString(pub))
	skey := fmt.Sprintf("PRIVATE+KEY+%s+%08x+%s", origin, id, base64.StdEncoding.EncodeToString(append([]byte{1}, private.Seed()...)))
	var err error
	if l.signer, err = note.NewSigner(skey); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		hs, err := tlog.StoredHashes(int64(i), fmt.Appendf(nil, "record %d of %d", i, seed), l)
		if err != nil {
			t.Fatal(err)
		}
		l.hashes = append(l.hashes, hs...)
	}
	return l
}

func (l *testLog) root(size int64) tlog.Hash {
	h, err := tlog.TreeHash(size, l)
	if err != nil {
		l.t.Fatal(err)
	}
	return h
}

func (l *testLog) checkpoint(size int64) string {
	return l.sign(fmt.Sprintf("%s\n%d\n%s\n", l.origin, size, l.root(size)))
}

func (l *testLog) sign(text string) string {
	n, err := note.Sign(&note.Note{Text: text}, l.signer)
	if err != nil {
		l.t.Fatal(err)
	}
	return string(n)
}

// proof returns the lines of a proof.
func (l *testLog) proof(from, to int64) string {
	if from == 0 || from == to {
		return ""
	}
	p, err := tlog.ProveTree(to, from, l)
	if err != nil {
		l.t.Fatal(err)
	}
	var b strings.Builder
	for _, h := range p {
		b.WriteString(h.String() + "\n")
	}
	return b.String()
}

func (l *testLog) request(from, to int64) string {
	return fmt.Sprintf("old %d\n%s\n%s", from, l.proof(from, to), l.checkpoint(to))
}

func newWitness(t testing.TB, dir string, logs ...*testLog) *Witness {
	t.Helper()
	cfg := Config{Dir: dir, Name: "witness.example/1", Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	for _, l := range logs {
		cfg.Logs = append(cfg.Logs, l.vkey)
	}
	w, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// ask sends a request, and returns status, content type and body.
func ask(h http.Handler, body string) (int, string, string) {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/add-checkpoint", strings.NewReader(body)))
	return rec.Code, rec.Header().Get("Content-Type"), rec.Body.String()
}

// TestConformance is the table of C2SP tlog-witness: each row is asked of a
// witness that has cosigned the tree of 5, and must leave it at that, 200 apart.
func TestConformance(t *testing.T) {
	l, evil, other := newLog(t, "log.example/a", 0, 40), newLog(t, "log.example/a", 1, 40), newLog(t, "log.example/b", 2, 9)
	evil.signer = l.signer // the log's own key signs another history
	stranger := newLog(t, "log.example/a", 3, 40)
	zeros := base64.StdEncoding.EncodeToString(make([]byte, 32))
	empty := sha256.Sum256(nil)
	many := strings.Repeat(zeros+"\n", 64)
	tests := []struct {
		name   string
		body   string
		status int
		size   string // of a 409
	}{
		{"it grows", l.request(5, 12), 200, ""},
		{"the same again", l.request(5, 5), 200, ""},
		{"with a signature of nobody's", l.request(5, 6) + strings.SplitAfter(stranger.checkpoint(6), "\n\n")[1], 200, ""},
		{"origin unknown", other.request(0, 3), 404, ""},
		{"origin unknown, old size wrong too", other.request(2, 3), 404, ""},
		{"signed by another key", stranger.request(5, 6), 403, ""},
		{"signature of another text", strings.Replace(l.request(5, 6), l.root(6).String(), l.root(7).String(), 1), 403, ""},
		{"old size too large", "old 7\n" + l.proof(5, 6) + "\n" + l.checkpoint(6), 400, ""},
		{"old size behind", l.request(3, 12), 409, "5\n"},
		{"old size zero", l.request(0, 12), 409, "5\n"},
		{"old size ahead", l.request(8, 12), 409, "5\n"},
		{"smaller tree", l.request(3, 4), 409, "5\n"},
		{"same size, other root", evil.request(5, 5), 409, ""},
		{"split view", evil.request(5, 12), 422, ""},
		{"proof of another size", fmt.Sprintf("old 5\n%s\n%s", l.proof(5, 13), l.checkpoint(12)), 422, ""},
		{"proof missing", "old 5\n\n" + l.checkpoint(12), 422, ""},
		{"proof too long", "old 5\n" + l.proof(5, 12) + zeros + "\n\n" + l.checkpoint(12), 422, ""},
		{"proof where none belongs", "old 5\n" + zeros + "\n\n" + l.checkpoint(5), 422, ""},
		{"more than 63 hashes", "old 5\n" + many + "\n" + l.checkpoint(12), 400, ""},
		{"empty", "", 400, ""},
		{"no empty line", "old 5\n" + l.checkpoint(12)[:20], 400, ""},
		{"old size with a zero before", "old 05\n" + l.proof(5, 12) + "\n" + l.checkpoint(12), 400, ""},
		{"old size negative", "old -5\n\n" + l.checkpoint(12), 400, ""},
		{"two blanks", "old  5\n" + l.proof(5, 12) + "\n" + l.checkpoint(12), 400, ""},
		{"another word", "new 5\n" + l.proof(5, 12) + "\n" + l.checkpoint(12), 400, ""},
		{"carriage returns", strings.ReplaceAll(l.request(5, 12), "\n", "\r\n"), 400, ""},
		{"hash not in base64", "old 5\n!!!!\n\n" + l.checkpoint(12), 400, ""},
		{"hash of 31 bytes", "old 5\n" + base64.StdEncoding.EncodeToString(make([]byte, 31)) + "\n\n" + l.checkpoint(12), 400, ""},
		{"hash in another base64", "old 5\n" + strings.Replace(zeros, "A=", "B=", 1) + "\n\n" + l.checkpoint(12), 400, ""},
		{"size with a zero before", "old 5\n\n" + l.sign("log.example/a\n012\n"+l.root(12).String()+"\n"), 400, ""},
		{"two lines", "old 5\n\n" + l.sign("log.example/a\n12\n"), 400, ""},
		{"no signatures", "old 5\n\nlog.example/a\n12\n" + l.root(12).String() + "\n", 400, ""},
		{"the empty tree with a root", "old 0\n\n" + l.sign("log.example/a\n0\n"+zeros+"\n"), 409, "5\n"},
		{"the empty tree", "old 0\n\n" + l.sign("log.example/a\n0\n"+base64.StdEncoding.EncodeToString(empty[:])+"\n"), 409, "5\n"},
		{"too long", "old 5\n" + strings.Repeat("a", maxBody), 400, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newWitness(t, t.TempDir(), l).Handler()
			if status, _, body := ask(h, l.request(0, 5)); status != 200 {
				t.Fatalf("first: %d %s", status, body)
			}
			status, kind, body := ask(h, tt.body)
			if status != tt.status {
				t.Fatalf("answers %d %q, want %d", status, body, tt.status)
			}
			if tt.size != "" && (body != tt.size || kind != sizeType) {
				t.Errorf("answers %q of type %q, want %q of type %q", body, kind, tt.size, sizeType)
			} else if tt.size == "" && kind == sizeType {
				t.Errorf("answers with a size: %q", body)
			}
			if status == 200 {
				return
			}
			if status, _, body := ask(h, l.request(5, 40)); status != 200 {
				t.Errorf("afterwards the tree of 5 cannot grow: %d %s", status, body)
			}
		})
	}
}

func TestEmptyTree(t *testing.T) {
	l := newLog(t, "log.example/a", 0, 4)
	h := newWitness(t, t.TempDir(), l).Handler()
	zeros := base64.StdEncoding.EncodeToString(make([]byte, 32))
	empty := sha256.Sum256(nil)
	for _, tt := range []struct {
		root string
		want int
	}{{zeros, 422}, {base64.StdEncoding.EncodeToString(empty[:]), 200}, {zeros, 409}} {
		if got, _, body := ask(h, "old 0\n\n"+l.sign("log.example/a\n0\n"+tt.root+"\n")); got != tt.want {
			t.Errorf("empty tree with root %s: %d %s, want %d", tt.root, got, body, tt.want)
		}
	}
	if got, _, body := ask(h, "old 0\n"+zeros+"\n\n"+l.checkpoint(3)); got != 422 {
		t.Errorf("proof from the empty tree: %d %s, want 422", got, body)
	}
	if got, _, body := ask(h, l.request(0, 3)); got != 200 {
		t.Errorf("from the empty tree: %d %s", got, body)
	}
	if rec := httptest.NewRecorder(); true {
		h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/add-checkpoint", nil))
		if rec.Code != http.StatusMethodNotAllowed {
			t.Errorf("GET: %d", rec.Code)
		}
	}
}

// verifyCosignature does what C2SP tlog-cosignature says, by itself.
func verifyCosignature(t *testing.T, vkey, text, line string) time.Time {
	t.Helper()
	name, rest, _ := strings.Cut(vkey, "+")
	id, key64, _ := strings.Cut(rest, "+")
	key, err := base64.StdEncoding.DecodeString(key64)
	if err != nil || key[0] != 4 {
		t.Fatalf("verifier key %q", vkey)
	}
	sig64, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "— "+name+" ")
	sig, err := base64.StdEncoding.DecodeString(sig64)
	if !ok || err != nil || len(sig) != 4+8+64 {
		t.Fatalf("line %q", line)
	}
	if got := fmt.Sprintf("%08x", sig[:4]); got != id {
		t.Errorf("key id %s, want %s", got, id)
	}
	at := binary.BigEndian.Uint64(sig[4:])
	if !ed25519.Verify(key[1:], []byte(fmt.Sprintf("cosignature/v1\ntime %d\n%s", at, text)), sig[12:]) {
		t.Error("the cosignature does not verify")
	}
	return time.Unix(int64(at), 0)
}

func TestCosignature(t *testing.T) {
	l := newLog(t, "log.example/a", 0, 9)
	now := time.Unix(1_800_000_000, 0)
	w := newWitness(t, t.TempDir(), l)
	w.cfg.Clock = func() time.Time { return now }
	text := func(size int64) string { return strings.SplitAfter(l.checkpoint(size), "\n\n")[0] }
	at := func(from, size int64) time.Time {
		t.Helper()
		status, _, line := ask(w.Handler(), l.request(from, size))
		if status != 200 {
			t.Fatalf("%d %s", status, line)
		}
		return verifyCosignature(t, w.VerifierKey(), strings.TrimSuffix(text(size), "\n"), line)
	}
	if got := at(0, 4); !got.Equal(now) {
		t.Errorf("time %v, want %v", got, now)
	}
	first := now
	now = now.Add(-30 * time.Second) // W3
	if got := at(4, 6); !got.Equal(first) {
		t.Errorf("after the clock went back: time %v, want %v", got, first)
	}
	now = first.Add(-2 * time.Minute)
	if status, _, body := ask(w.Handler(), l.request(6, 7)); status != 500 {
		t.Errorf("after the clock went back far: %d %s, want 500", status, body)
	}
	now = first.Add(time.Second)
	if got := at(6, 7); !got.Equal(now) {
		t.Errorf("after the clock went on: time %v, want %v", got, now)
	}
}

// TestRace: of requests that race from one size, those that are answered 200
// can be put in an order in which each tree begins the next (W2).
func TestRace(t *testing.T) {
	const size = 400
	l := newLog(t, "log.example/a", 0, size)
	w := newWitness(t, t.TempDir(), l)
	h := w.Handler()
	type sent struct{ from, to int64 }
	var mu sync.Mutex
	granted := map[int64]sent{} // by from
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			from := int64(0)
			for range 60 {
				to := min(from+r.Int64N(9), size)
				status, _, body := ask(h, l.request(from, to))
				switch status {
				case 200:
					if to > from {
						mu.Lock()
						if other, twice := granted[from]; twice {
							t.Errorf("from %d both %d and %d were cosigned", from, other.to, to)
						}
						granted[from] = sent{from, to}
						mu.Unlock()
					}
					from = to
				case 409:
					n, err := strconv.ParseInt(strings.TrimSpace(body), 10, 64)
					if err != nil {
						t.Errorf("409 %q", body)
						return
					}
					from = n
				default:
					t.Errorf("%d %s", status, body)
					return
				}
			}
		})
	}
	all.Wait()
	at, steps := int64(0), 0
	for g, ok := granted[at]; ok; g, ok = granted[at] {
		at, steps = g.to, steps+1
	}
	if steps != len(granted) || steps == 0 {
		t.Errorf("%d of %d cosigned trees follow each other", steps, len(granted))
	}
}

func TestReopen(t *testing.T) {
	l, evil := newLog(t, "log.example/a", 0, 30), newLog(t, "log.example/a", 1, 30)
	evil.signer = l.signer
	dir := t.TempDir()
	w := newWitness(t, dir, l)
	key := w.VerifierKey()
	if status, _, body := ask(w.Handler(), l.request(0, 20)); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	w.Close()
	w = newWitness(t, dir, l)
	if w.VerifierKey() != key {
		t.Errorf("key %s, was %s", w.VerifierKey(), key)
	}
	if status, _, _ := ask(w.Handler(), evil.request(0, 20)); status != 409 {
		t.Errorf("another history after a restart: %d, want 409", status)
	}
	if status, _, _ := ask(w.Handler(), evil.request(20, 25)); status != 422 {
		t.Errorf("another history after a restart: %d, want 422", status)
	}
	w.Close()

	path := filepath.Join(dir, keyFile)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	open := func(name string) error {
		w, err := New(Config{Dir: dir, Name: name, Logs: []string{l.vkey}})
		if err == nil {
			w.Close()
		}
		return err
	}
	refused := func(what, name, hint string) {
		t.Helper()
		if err := open(name); err == nil || !strings.Contains(err.Error(), hint) {
			t.Errorf("%s: %v, want one that says %q", what, err, hint)
		}
	}
	refused("a key that others can read", "witness.example/1", "chmod 0600")
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	refused("another name", "witness.example/2", "witness.example/1")
	refused("a name with a blank", "a b", "without blanks")
	state := filepath.Join(dir, stateFile)
	if err := os.Rename(state, state+"-away"); err != nil {
		t.Fatal(err)
	}
	refused("a state that is gone", "witness.example/1", "another witness")
	if err := os.WriteFile(state, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused("a state that is empty", "witness.example/1", "another witness")
	if err := os.Rename(state+"-away", state); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	refused("a key that is gone", "witness.example/1", "bring the key back")
}

func TestConfig(t *testing.T) {
	l := newLog(t, "log.example/a", 0, 1)
	for _, tt := range []struct {
		name string
		logs []string
		want string
	}{
		{"no log", nil, "needs the key"},
		{"no key", []string{"log.example/a"}, "NAME+HASH+KEY"},
		{"a key twice", []string{l.vkey, l.vkey}, "twice"},
		{"two keys of one log", []string{l.vkey, newLog(t, "log.example/a", 1, 1).vkey}, ""},
	} {
		w, err := New(Config{Dir: t.TempDir(), Name: "w", Logs: tt.logs})
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		if err == nil {
			w.Close()
		}
	}
}

// FuzzAdd: no request is cosigned that the log has not signed, whatever its form.
func FuzzAdd(f *testing.F) {
	l := newLog(f, "log.example/a", 0, 20)
	f.Add([]byte(l.request(5, 12)))
	f.Add([]byte(l.request(0, 3)))
	f.Add([]byte("old 5\n\n" + l.checkpoint(12)))
	f.Add([]byte("old 5\n\n\n\n"))
	w := newWitness(f, f.TempDir(), l)
	if status, _, body := ask(w.Handler(), l.request(0, 5)); status != 200 {
		f.Fatal(body)
	}
	texts := map[string]bool{}
	for n := range int64(20) {
		texts[strings.SplitAfter(l.checkpoint(n+1), "\n\n")[0]] = true
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		req, err := parse(body)
		if err != nil {
			return
		}
		if _, err := note.Open(req.checkpoint, w.logs[l.origin]); req.origin == l.origin && err == nil && !texts[string(req.text)+"\n"] {
			t.Errorf("a checkpoint that was never signed: %q", req.text)
		}
		w.add(body) //nolint:errcheck // it must not panic
	})
}
