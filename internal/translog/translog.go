// Package translog is the transparency log that records are added to: a tiled
// log of C2SP (tlog-tiles, tlog-checkpoint), kept by tessera in a folder.
//
// There are three ways to it, and one set of methods:
//
//   - [Log]: the log itself, in this process ([Open]). One process at a time.
//   - [Client]: a log that another machine serves ([Serve]), over HTTP.
//   - [Folder]: the folder of a log, read only, also while another process
//     writes to it.
//
// # Once, and in order
//
// A log takes the records of a node each exactly once, and in order of their
// number: the first that it sees may have any number, and starts the node's
// chain here. A record that is there already gets its index again if it is the
// same to the byte, and [ErrFork] otherwise; one that skips a number gets
// [ErrGap]. So a sender that does not know whether a call succeeded makes it
// again.
//
// # What is durable
//
// An index that Add returned is durable: the record, and the tree that contains
// it, were written and synced. A checkpoint that commits to it follows within
// [Config.Interval] and what the witnesses take ([Await]).
//
// The tree is the only truth. Which record lies where is looked up in an index
// (index.db) that is behind the tree after a crash, is brought up to it at the
// next start, and may be deleted at any time that the log is not open.
//
// docs/spec/log.md describes everything that leaves the process.
package translog

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Bounds of what a log takes.
const (
	// MaxAdd is the most leaves of one call of Add.
	MaxAdd = 1024
)

// A Leaf is a signed record, to be added to a log.
type Leaf struct {
	NodeID   string // the record's
	NodeSeq  uint64 // the record's
	Envelope []byte // the DSSE envelope, to the byte; at most [proof.MaxEnvelope]
}

// An Adder adds records to a log.
type Adder interface {
	// Add adds leaves (at most [MaxAdd]), and returns the index of each, durable.
	// It adds all of them or, where it refuses one, none. Where it fails for
	// another reason, ctx's end among them, some may have been added: make the same call again.
	//
	// Errors that say what is wrong with a leaf: [ErrFork], [ErrGap], [ErrRefused].
	Add(ctx context.Context, leaves []Leaf) ([]uint64, error)
}

// A Reader reads a log. Nothing that it returns is verified, other than that
// proofs are made of the tiles that were read: who trusts the log's key gives
// all of it to package proof.
type Reader interface {
	// Checkpoint returns the newest checkpoint that was published, a signed note
	// with the cosignatures that the log got.
	Checkpoint(ctx context.Context) ([]byte, error)
	// Proof returns the inclusion proof (RFC 6962, section 2.1.1) of the leaf at
	// index in the tree of size. index < size ≤ size of the newest checkpoint.
	Proof(ctx context.Context, index, size uint64) ([][32]byte, error)
	// Consistency returns the proof (RFC 6962, section 2.1.2) that the tree of
	// size from is the beginning of the tree of size to.
	Consistency(ctx context.Context, from, to uint64) ([][32]byte, error)
	// Leaf returns the envelope at index, to the byte.
	Leaf(ctx context.Context, index uint64) ([]byte, error)
	// Leaves calls each for the envelopes at from ≤ index < to, in order, and
	// ends with the first error. each may not keep the bytes.
	Leaves(ctx context.Context, from, to uint64, each func(index uint64, leaf []byte) error) error
}

// Sentinels of what is wrong with a leaf. The errors that Add returns are of the
// types below, and wrap them.
var (
	// ErrFork: the log holds another record with the same node and number.
	ErrFork = errors.New("the log holds another record with this number")
	// ErrGap: records before this one are missing.
	ErrGap = errors.New("the log misses records before this one")
	// ErrRefused: the leaf is not what it says, or its sender may not add it.
	ErrRefused = errors.New("the log refuses this record")
)

// ErrNotFound says that a log has no such leaf, tile or checkpoint.
var ErrNotFound = errors.New("not in the log")

// A ForkError names the record that is in the log already ([ErrFork]).
type ForkError struct {
	NodeID  string
	NodeSeq uint64
	Index   uint64 // where the other one lies
}

func (e *ForkError) Error() string {
	return fmt.Sprintf("record %d of node %s: %v, at index %d: two nodes use one identity, or the node's journal was restored from a copy",
		e.NodeSeq, e.NodeID, ErrFork, e.Index)
}

// Unwrap returns [ErrFork].
func (e *ForkError) Unwrap() error { return ErrFork }

// A GapError says which record the log needs first ([ErrGap]).
type GapError struct {
	NodeID  string
	NodeSeq uint64 // the one that was sent
	Want    uint64 // the one that comes next
}

func (e *GapError) Error() string {
	return fmt.Sprintf("record %d of node %s: %v: send record %d first", e.NodeSeq, e.NodeID, ErrGap, e.Want)
}

// Unwrap returns [ErrGap].
func (e *GapError) Unwrap() error { return ErrGap }

// A RefusedError says why a leaf is not taken ([ErrRefused]).
type RefusedError struct {
	NodeID  string
	NodeSeq uint64
	Reason  string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("record %d of node %s: %v: %s", e.NodeSeq, e.NodeID, ErrRefused, e.Reason)
}

// Unwrap returns [ErrRefused].
func (e *RefusedError) Unwrap() error { return ErrRefused }

// Await returns the first checkpoint of r that commits to the leaf at index,
// looking every so often; it ends with ctx.
func Await(ctx context.Context, r Reader, index uint64, every time.Duration) ([]byte, error) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		cp, err := r.Checkpoint(ctx)
		if err == nil {
			_, size, _, err := head(cp)
			if err != nil {
				return nil, err
			}
			if size > index {
				return cp, nil
			}
		} else if !errors.Is(err, ErrNotFound) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for a checkpoint of more than %d records: %w", index, ctx.Err())
		case <-t.C:
		}
	}
}
