package translog

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// Config says how a log is kept. Zero means the default, where there is one.
type Config struct {
	Dir    string      // the log's folder, made with mode 0700 where it is missing
	Origin string      // what the log calls itself in its checkpoints
	Signer note.Signer // signs checkpoints (Ed25519); its name is Origin

	// Witnesses are asked to cosign each checkpoint: lines of C2SP tlog-policy
	// (witness NAME KEY URL, group, quorum). Empty: none are asked. Where they
	// do not answer in time, the checkpoint is published without them.
	Witnesses      []byte
	WitnessTimeout time.Duration // 2 s

	Interval  time.Duration // from a record to the checkpoint that commits to it, witnesses apart; 250 ms, at least 100 ms
	Republish time.Duration // the same tree is signed, and cosigned, again; 10 s with witnesses, never without

	// Admit refuses leaves beyond what the log itself refuses. nil admits all.
	Admit func(Leaf) error

	Log *slog.Logger // slog.Default()
}

// A Log is a transparency log in a folder, open in this process.
// Its methods may be called from any goroutine.
type Log struct{ tiles }

// Open opens the log in cfg.Dir, or makes it. ctx bounds the opening: the log is open until Close.
func Open(ctx context.Context, cfg Config) (*Log, error) { return nil, errors.ErrUnsupported }

// Add implements [Adder].
func (l *Log) Add(ctx context.Context, leaves []Leaf) ([]uint64, error) {
	return nil, errors.ErrUnsupported
}

// Next returns the number of the record of node that the log takes next, and
// whether it has any of its records (else it takes any number).
func (l *Log) Next(node string) (seq uint64, ok bool) { return 0, false }

// Size returns how many records the log holds, durably.
func (l *Log) Size() uint64 { return 0 }

// Handler serves the log to readers, as C2SP tlog-tiles says.
func (l *Log) Handler() http.Handler { return http.NotFoundHandler() }

// Close waits until a checkpoint commits to all records, a few seconds at most,
// and closes the log.
func (l *Log) Close() error { return nil }
