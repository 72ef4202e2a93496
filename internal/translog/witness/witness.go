// Package witness cosigns the checkpoints of logs: C2SP tlog-witness.
//
// A witness says of a checkpoint that it saw it, when, and that the log only
// ever grew: it never signs two checkpoints of one log of which neither begins
// the other, also not across a crash.
package witness

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"vacate/internal/translog/conns"
)

// maxConns bounds the connections that a witness has at once.
const maxConns = 1024

// Config says which logs are witnessed, and how. Zero means the default, where there is one.
type Config struct {
	Dir  string   // state and key (mode 0600), made at first start
	Name string   // the witness's name in its signatures, such as "witness.example/1"
	Logs []string // the logs' keys: NAME+HASH+KEY, whose name is the log's origin; several may have one name

	Listen   string // host:port
	CertFile string // PEM. Empty: plain HTTP (a cosignature proves itself)
	KeyFile  string

	Ready func(addr net.Addr, key string) // called once by Serve, with the witness's verifier key
	Clock func() time.Time                // time.Now
	Log   *slog.Logger                    // slog.Default()
}

// A Witness cosigns checkpoints. Its methods may be called from any goroutine.
//
// Invariants:
//
//	W1: a cosignature leaves only after its checkpoint is the durable state of its log.
//	W2: the state of a log is only ever replaced, in the transaction that reads
//	    it, by a checkpoint that it is proven to begin.
//	W3: the times of the cosignatures of one log never go back.
type Witness struct {
	cfg   Config
	key   *key
	logs  map[string]note.Verifiers // origin: its keys
	state *state
}

// New opens the witness in cfg.Dir, or makes it and its key.
func New(cfg Config) (*Witness, error) {
	logs, err := parseLogs(cfg.Logs)
	if err != nil {
		return nil, err
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the witness's folder: %w", err)
	}
	st, err := openState(cfg.Dir)
	if err != nil {
		return nil, err
	}
	k, err := openKey(cfg.Dir, cfg.Name, st.fresh)
	if err != nil {
		return nil, errors.Join(err, st.close())
	}
	return &Witness{cfg: cfg, key: k, logs: logs, state: st}, nil
}

// parseLogs reads the keys of logs, by their origins.
func parseLogs(keys []string) (map[string]note.Verifiers, error) {
	byName := map[string][]note.Verifier{}
	seen := map[string]bool{}
	for _, text := range keys {
		v, err := note.NewVerifier(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("key of a log, %.100q: %w: it is written NAME+HASH+KEY, as the log's policy has it", text, err)
		}
		id := fmt.Sprintf("%s+%08x", v.Name(), v.KeyHash())
		if seen[id] {
			return nil, fmt.Errorf("key of a log: %s is named twice", id)
		}
		seen[id] = true
		byName[v.Name()] = append(byName[v.Name()], v)
	}
	if len(byName) == 0 {
		return nil, errors.New("a witness needs the key of a log that it is to witness")
	}
	logs := map[string]note.Verifiers{}
	for name, vs := range byName {
		logs[name] = note.VerifierList(vs...)
	}
	return logs, nil
}

// VerifierKey returns the key that goes into policies: NAME+HASH+KEY, of type cosignature/v1.
func (w *Witness) VerifierKey() string { return w.key.verifier() }

// Close closes the state.
func (w *Witness) Close() error { return w.state.close() }

// Serve runs a witness until ctx ends.
func Serve(ctx context.Context, cfg Config) (err error) {
	w, err := New(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("serving a witness: %w", err)
	}
	l = conns.Limit(l, maxConns)
	srv := &http.Server{Handler: w.Handler(), ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(w.cfg.Log.Handler(), slog.LevelDebug)}
	if cfg.Ready != nil {
		cfg.Ready(l.Addr(), w.VerifierKey())
	}
	var ending sync.WaitGroup
	ending.Add(1)
	stop := context.AfterFunc(ctx, func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if srv.Shutdown(end) != nil {
			srv.Close() //nolint:errcheck // whoever still talks is cut off
		}
		ending.Done()
	})
	if cfg.CertFile != "" || cfg.KeyFile != "" {
		err = srv.ServeTLS(l, cfg.CertFile, cfg.KeyFile)
	} else {
		err = srv.Serve(l)
	}
	if stop() { // it failed by itself
		return fmt.Errorf("serving a witness: %w", err)
	}
	ending.Wait()
	return nil
}
