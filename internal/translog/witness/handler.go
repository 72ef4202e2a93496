package witness

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
)

// Bounds of a request: a proof has at most 63 hashes (C2SP tlog-witness), and
// nobody needs more than a few signatures.
const (
	maxBody   = 64 << 10
	maxProof  = 63
	maxOrigin = 255
	hashSize  = 32
	sizeType  = "text/x.tlog.size"
	// A clock may be set back a little; beyond, nothing is signed.
	maxBackwards = time.Minute
)

// A refusal is an answer other than 200.
type refusal struct {
	status int
	text   string
	size   *uint64 // 409: the size of the tree that was cosigned last
}

func (r *refusal) Error() string { return r.text }

func refuse(status int, format string, args ...any) error {
	return &refusal{status: status, text: fmt.Sprintf(format, args...)}
}

// Handler serves POST /add-checkpoint:
//
//  1. 400: the body has not the form of a request.
//  2. 404: the origin is of no log that is witnessed.
//  3. 403: no key of that log has signed the checkpoint.
//  4. 400: the old size is larger than the checkpoint's.
//  5. 409 and the size: the old size is not that of the checkpoint cosigned last.
//  6. 409: of the same size, and another root.
//  7. 422: the proof does not hold.
//  8. The checkpoint is made durable as the one cosigned last; 200 and the cosignature.
//
// From 5 on this is one transaction.
func (w *Witness) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /add-checkpoint", func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Cache-Control", "no-store")
		body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxBody))
		if err != nil {
			http.Error(rw, "the request is too long, or ended early", http.StatusBadRequest)
			return
		}
		line, err := w.add(body)
		if err != nil {
			w.answer(rw, err)
			return
		}
		rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
		rw.Write(line) //nolint:errcheck // the log has gone, and asks again
	})
	return mux
}

func (w *Witness) answer(rw http.ResponseWriter, err error) {
	var r *refusal
	switch {
	case !errors.As(err, &r):
		w.cfg.Log.Error("a checkpoint cannot be witnessed", "error", err.Error())
		http.Error(rw, "the witness is not able to witness", http.StatusInternalServerError)
	case r.size != nil:
		rw.Header().Set("Content-Type", sizeType)
		rw.WriteHeader(r.status)
		fmt.Fprintf(rw, "%d\n", *r.size)
	default:
		http.Error(rw, r.text, r.status)
	}
}

// add witnesses one checkpoint, and returns the cosignature's line.
func (w *Witness) add(body []byte) ([]byte, error) {
	req, err := parse(body)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "%v", err)
	}
	keys, known := w.logs[req.origin]
	if !known {
		return nil, refuse(http.StatusNotFound, "log %q is not witnessed here", req.origin)
	}
	if _, err := note.Open(req.checkpoint, keys); err != nil {
		return nil, refuse(http.StatusForbidden, "no key that is known of log %q has signed the checkpoint", req.origin)
	}
	if req.old > req.size {
		return nil, refuse(http.StatusBadRequest, "old size %d is larger than the checkpoint's, %d", req.old, req.size)
	}
	var at time.Time
	err = w.state.replace(req.origin, func(old saw) (saw, error) {
		if err := w.check(req, old); err != nil {
			return saw{}, err
		}
		if at, err = w.now(old); err != nil {
			return saw{}, err
		}
		return saw{V: 1, Size: req.size, Root: req.root, Time: at.Unix()}, nil
	})
	if err != nil {
		return nil, err
	}
	return w.key.cosign(req.text, at), nil
}

// check decides whether a checkpoint may follow what was seen of its log.
func (w *Witness) check(req request, old saw) error {
	if req.old != old.Size {
		return &refusal{status: http.StatusConflict, text: "old size", size: &old.Size}
	}
	if old.Size == req.size && old.Root != nil && !bytes.Equal(old.Root, req.root) {
		w.cfg.Log.Error("a log has signed two trees of one size: keep this line, it is evidence", "origin", req.origin,
			"size", req.size, "was", old.Root, "checkpoint", string(req.checkpoint))
		return refuse(http.StatusConflict, "the tree of %d had another root", req.size)
	}
	var err error
	switch {
	case req.old > 0:
		err = proof.VerifyConsistency(rfc6962.DefaultHasher, req.old, req.size, req.proof, old.Root, req.root)
	case len(req.proof) > 0:
		err = errors.New("a proof from the empty tree is empty")
	case req.size == 0 && !bytes.Equal(req.root, rfc6962.DefaultHasher.EmptyRoot()):
		err = errors.New("the tree is empty, and its root is another's")
	}
	if err != nil {
		w.cfg.Log.Warn("a checkpoint is not proven to continue its log", "origin", req.origin, "from", req.old, "to", req.size)
		return refuse(http.StatusUnprocessableEntity, "the consistency proof from %d to %d does not hold", req.old, req.size)
	}
	return nil
}

// now is the time of a cosignature (W3).
func (w *Witness) now(old saw) (time.Time, error) {
	now, last := w.cfg.Clock(), time.Unix(old.Time, 0)
	if now.Before(last.Add(-maxBackwards)) {
		return time.Time{}, fmt.Errorf("the clock says %v, and said %v before: set it right", now.UTC(), last.UTC())
	}
	if now.Before(last) {
		now = last
	}
	return now, nil
}

// request is what is asked for.
type request struct {
	old        uint64
	proof      [][]byte
	checkpoint []byte // the signed note
	text       []byte // what it signs
	origin     string
	size       uint64
	root       []byte
}

// parse takes the body of a request in its one form.
func parse(body []byte) (r request, err error) {
	head, checkpoint, ok := bytes.Cut(body, []byte("\n\n"))
	if !ok {
		return r, errors.New("no empty line follows the proof")
	}
	lines := strings.Split(string(head), "\n")
	old, ok := strings.CutPrefix(lines[0], "old ")
	if !ok {
		return r, errors.New("the first line is not \"old SIZE\"")
	}
	if r.old, err = decimal(old); err != nil {
		return r, err
	}
	if len(lines)-1 > maxProof {
		return r, fmt.Errorf("a proof of more than %d hashes", maxProof)
	}
	for _, line := range lines[1:] {
		h, err := hash(line)
		if err != nil {
			return r, err
		}
		r.proof = append(r.proof, h)
	}
	r.checkpoint = checkpoint
	return r, r.parseCheckpoint()
}

// parseCheckpoint reads the text of the checkpoint (C2SP tlog-checkpoint); its
// signatures are read when they are verified.
func (r *request) parseCheckpoint() (err error) {
	end := bytes.Index(r.checkpoint, []byte("\n\n"))
	if end < 0 {
		return errors.New("the checkpoint has no signatures")
	}
	r.text = r.checkpoint[:end+1]
	lines := strings.Split(string(r.checkpoint[:end]), "\n")
	if len(lines) < 3 || lines[0] == "" || len(lines[0]) > maxOrigin {
		return errors.New("the checkpoint has no origin, size and root")
	}
	r.origin = lines[0]
	if r.size, err = decimal(lines[1]); err != nil {
		return err
	}
	r.root, err = hash(lines[2])
	return err
}

// decimal reads a size without leading zeros.
func decimal(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%.30q is not the size of a tree", s)
	}
	return n, nil
}

// hash reads a hash in canonical base64.
func hash(s string) ([]byte, error) {
	h, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(h) != hashSize || strings.ContainsAny(s, "\r\n") {
		return nil, fmt.Errorf("%.60q is not a hash in base64", s)
	}
	return h, nil
}
