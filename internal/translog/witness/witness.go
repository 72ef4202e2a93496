// Package witness cosigns the checkpoints of logs: C2SP tlog-witness.
//
// A witness says of a checkpoint that it saw it, when, and that the log only
// ever grew: it never signs two checkpoints of one log that do not begin each
// other, also not across a crash.
package witness

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"
)

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
type Witness struct{}

// New opens the witness in cfg.Dir, or makes it and its key.
func New(cfg Config) (*Witness, error) { return nil, errors.ErrUnsupported }

// VerifierKey returns the key that goes into policies: NAME+HASH+KEY, of type cosignature/v1.
func (w *Witness) VerifierKey() string { return "" }

// Handler serves POST /add-checkpoint.
func (w *Witness) Handler() http.Handler { return http.NotFoundHandler() }

// Close closes the state.
func (w *Witness) Close() error { return nil }

// Serve runs a witness until ctx ends.
func Serve(ctx context.Context, cfg Config) error { return errors.ErrUnsupported }
