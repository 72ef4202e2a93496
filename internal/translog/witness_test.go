package translog

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vacate/internal/translog/witness"
	"vacate/proof"
)

// A lazy witness can be made to answer nothing good.
type lazy struct {
	http.Handler
	away atomic.Bool
}

func (l *lazy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if l.away.Load() {
		http.Error(w, strings.Repeat("gone ", 1<<20), http.StatusServiceUnavailable)
		return
	}
	l.Handler.ServeHTTP(w, r)
}

// newWitness runs a witness of the tests' log, and returns its line in a policy.
func newWitness(t *testing.T, name string) (*lazy, string) {
	t.Helper()
	_, vkey := logKey(t)
	w, err := witness.New(witness.Config{Dir: t.TempDir(), Name: name, Logs: []string{vkey}, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	l := &lazy{Handler: w.Handler()}
	srv := httptest.NewServer(l)
	t.Cleanup(srv.Close)
	return l, fmt.Sprintf("witness %s %s %s\n", name, w.VerifierKey(), srv.URL)
}

// TestWitnesses: checkpoints have a quorum while the witnesses answer, are
// published without while they do not, and get it again afterwards, also where the
// log does not grow.
func TestWitnesses(t *testing.T) {
	first, line1 := newWitness(t, "w1")
	second, line2 := newWitness(t, "w2")
	_, line3 := newWitness(t, "w3")
	lines := line1 + line2 + line3 + "group most 2 w1 w2 w3\nquorum most\n"
	_, vkey := logKey(t)
	policy, err := proof.ParsePolicy([]byte("log " + vkey + "\n" + lines))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cfg := testConfig(t, dir)
	cfg.Witnesses, cfg.Republish, cfg.WitnessTimeout = []byte(lines), 200*time.Millisecond, time.Minute
	l, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	// until waits for a checkpoint of a size, with or without a quorum.
	until := func(size uint64, quorum bool) {
		t.Helper()
		end := time.Now().Add(time.Minute)
		for time.Now().Before(end) {
			note, err := Await(t.Context(), l, size-1, 10*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			cp, got, err := policy.OpenCheckpoint(note)
			if err != nil {
				t.Fatalf("%v in\n%s", err, note)
			}
			if got != quorum {
				time.Sleep(10 * time.Millisecond)
				continue
			}
			for _, c := range cp.Cosigned {
				if d := time.Since(c.Time); d < -time.Second || d > 10*time.Minute {
					t.Errorf("%s cosigned at %v", c.Witness, c.Time)
				}
			}
			return
		}
		t.Fatalf("no checkpoint of %d records with quorum %v", size, quorum)
	}
	begin := time.Now()
	mustAdd(t, l, run(t, 1, 1, 4)...)
	until(3, true)
	t.Logf("from a record to a cosigned checkpoint: %v", time.Since(begin))
	first.away.Store(true) // two of three are left
	mustAdd(t, l, run(t, 1, 4, 300)...)
	until(299, true)
	second.away.Store(true)
	mustAdd(t, l, run(t, 1, 300, 302)...)
	until(301, false)
	first.away.Store(false)
	until(301, true)
	second.away.Store(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	folder, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	note, err := folder.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, quorum, err := policy.OpenCheckpoint(note); err != nil || !quorum {
		t.Errorf("the checkpoint that was left by Close: quorum %v, %v", quorum, err)
	}
	if l, err = Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	mustAdd(t, l, run(t, 1, 302, 303)...)
	until(302, true)
}

func TestWitnessPolicy(t *testing.T) {
	_, line := newWitness(t, "w1")
	_, other := newWitness(t, "w2")
	f := strings.Fields(line)
	for _, tt := range []struct{ name, policy, want string }{
		{"none", "", ""},
		{"lines of others", "# a comment\nlog x\nnode a b - -\n\n", ""},
		{"one", line + "quorum w1\n", ""},
		{"without an address", "witness w1 " + f[2] + "\nquorum none\n", ""},
		{"no quorum", line, "quorum"},
		{"quorum unknown", line + "quorum w9\n", "w9"},
		{"one key twice", line + "witness w2 " + f[2] + " http://other/\nquorum w1\n", "one key"},
		{"one address twice", line + strings.Replace(other, strings.Fields(other)[3], f[3], 1) + "quorum w1\n", "one address"},
	} {
		_, err := witnesses([]byte(tt.policy))
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}
