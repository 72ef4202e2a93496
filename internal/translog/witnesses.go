package translog

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/mod/sumdb/note"
	"k8s.io/klog/v2"
)

// algCosignature is the type of a witness's key (C2SP tlog-cosignature).
const algCosignature = 0x04

// witnesses reads the witness, group and quorum lines of a policy. A policy
// without witnesses asks none.
//
// tessera would take a log's key for a witness's, and ask one of two witnesses
// that share an address: both are refused here.
func witnesses(policy []byte) (tessera.WitnessGroup, error) {
	none := tessera.NewWitnessGroup(0)
	var lines []string
	seen := map[string]string{} // key or address: line
	quorum := false
	for line := range strings.Lines(string(policy)) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		switch f[0] {
		case "witness":
			if len(f) != 4 {
				continue // without an address: it is not ours to ask
			}
			_, key, _ := strings.Cut(f[2], "+") // the name has none, the key may
			_, key, _ = strings.Cut(key, "+")
			raw, err := base64.StdEncoding.DecodeString(key)
			if err != nil || len(raw) != 33 || raw[0] != algCosignature {
				return none, fmt.Errorf("witness %s: its key is not of type cosignature/v1: `vacate log witness` prints the right one", f[1])
			}
			for _, once := range []string{string(raw), f[3]} {
				if other, twice := seen[once]; twice {
					return none, fmt.Errorf("witnesses %s and %s have one key or one address", other, f[1])
				}
				seen[once] = f[1]
			}
		case "group":
		case "quorum":
			quorum = true
		default:
			continue
		}
		lines = append(lines, strings.TrimSpace(line))
	}
	if len(seen) == 0 {
		return none, nil
	}
	if !quorum {
		return none, errors.New("witnesses are named, and no quorum: add a line \"quorum NAME\"")
	}
	group, err := tessera.NewWitnessGroupFromPolicy([]byte(strings.Join(lines, "\n") + "\n"))
	if err != nil {
		return none, fmt.Errorf("reading the witnesses: %w", err)
	}
	return group, nil
}

// A transport bounds what a witness can answer.
type transport struct{ next http.RoundTripper }

const maxWitnessAnswer = 16 << 10

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxWitnessAnswer), resp.Body}
	return resp, nil
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// A signer signs checkpoints until it is stopped, and knows which it signed
// last: tessera asks the witnesses after it has signed, and publishes then.
type signer struct {
	note.Signer

	mu      sync.Mutex
	stopped bool
	text    []byte // of the last checkpoint
	at      time.Time
}

var errStopped = errors.New("the log is being closed")

func (s *signer) Sign(text []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil, errStopped
	}
	s.text, s.at = bytes.Clone(text), time.Now()
	return s.Signer.Sign(text)
}

func (s *signer) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
}

// awaitPublished waits until the checkpoint that was signed last is published:
// ending tessera while it asks witnesses would publish it without their cosignatures.
// REQUIRES: the signer is stopped.
func (l *Log) awaitPublished() error {
	if l.signer.text == nil {
		return nil
	}
	path := filepath.Join(l.cfg.Dir, treeDir, layout.CheckpointPath)
	signed := l.signer.at.Add(-20 * time.Millisecond) // a file's time is that of the kernel's last tick
	for range 2 * l.cfg.WitnessTimeout / (10 * time.Millisecond) {
		info, err := os.Stat(path)
		if err == nil && !info.ModTime().Before(signed) {
			cp, err := os.ReadFile(path)
			if err == nil && bytes.HasPrefix(cp, l.signer.text) {
				return nil
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("the log's last checkpoint was signed and is not published: it will be when the log is opened again")
}

// What tessera logs goes to the log that was opened last, as its debug lines
// where tessera calls it information.
var (
	relayOnce sync.Once
	relayTo   atomic.Pointer[slog.Logger]
)

type relay struct{}

func relayLogs(to *slog.Logger) {
	relayTo.Store(to)
	relayOnce.Do(func() { klog.SetSlogLogger(slog.New(relay{})) })
}

func lowered(level slog.Level) slog.Level {
	if level < slog.LevelWarn {
		return slog.LevelDebug
	}
	return level
}

func (relay) Enabled(ctx context.Context, level slog.Level) bool {
	return relayTo.Load().Enabled(ctx, lowered(level))
}

func (relay) Handle(ctx context.Context, r slog.Record) error {
	relayTo.Load().Log(ctx, lowered(r.Level), "tessera: "+strings.TrimSpace(r.Message))
	return nil
}

func (h relay) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h relay) WithGroup(string) slog.Handler      { return h }
