package translog

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"vacate/internal/translog/conns"
	"vacate/proof"
)

// ServeConfig says how a log is served to a fleet. Zero means the default, where there is one.
type ServeConfig struct {
	Config // Admit must be nil: PolicyFile says whose records are taken

	Listen       string // host:port of HTTPS: adding (with a client's certificate) and reading
	CertFile     string // PEM: the server's certificate
	KeyFile      string
	ClientCAFile string // PEM: who certifies the nodes
	ListenTiles  string // host:port of plain HTTP, for reading only. Empty: none

	// PolicyFile names the nodes and operators whose records are taken ([proof.Policy]).
	// It is read again when it has changed; where it cannot be read, nothing is taken.
	PolicyFile string

	// Ready is called once, when the addresses are listened on; tiles is nil
	// without ListenTiles. nil: not called.
	Ready func(listen, tiles net.Addr)
}

// Bounds of the server.
const (
	maxAdding   = 128  // requests of nodes that add at the same time
	maxOfNode   = 4    // and of one node, of these: it could let each take as long as may be
	maxConns    = 4096 // connections of an address
	readTimeout = 30 * time.Second
	idleTimeout = 2 * time.Minute
	drainTime   = 5 * time.Second
)

// Serve opens the log and serves it until ctx ends, then closes it. Whoever can
// reach it may read it. Whoever adds shows a certificate of ClientCAFile whose
// common name is the id of the node, sends records of this node alone, and
// each is signed with a key that the policy pins to the node now.
func Serve(ctx context.Context, cfg ServeConfig) (err error) {
	if cfg.Admit != nil {
		return errors.New("serving a log: Admit is the server's own")
	}
	conf, err := serverTLS(cfg)
	if err != nil {
		return fmt.Errorf("serving a log: %w", err)
	}
	pinned := &pinned{file: cfg.PolicyFile}
	if _, err := pinned.policy(); err != nil {
		return fmt.Errorf("serving a log: %w", err)
	}
	cfg.Admit = pinned.admit
	l, err := Open(ctx, cfg.Config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()

	var listen, plain net.Listener
	if listen, err = net.Listen("tcp", cfg.Listen); err != nil {
		return fmt.Errorf("serving a log: %w", err)
	}
	servers := []served{{tls.NewListener(conns.Limit(listen, maxConns), conf), l.server(adding(l))}}
	var plainAddr net.Addr
	if cfg.ListenTiles != "" {
		if plain, err = net.Listen("tcp", cfg.ListenTiles); err != nil {
			listen.Close()
			return fmt.Errorf("serving a log: %w", err)
		}
		plainAddr = plain.Addr()
		servers = append(servers, served{conns.Limit(plain, maxConns), l.server(l.Handler())})
	}
	if cfg.Ready != nil {
		cfg.Ready(listen.Addr(), plainAddr)
	}
	return serveAll(ctx, servers)
}

type served struct {
	listener net.Listener
	server   *http.Server
}

func (l *Log) server(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadTimeout: readTimeout, WriteTimeout: 2 * readTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(l.cfg.Log.Handler(), slog.LevelDebug)}
}

// serveAll serves until ctx ends or one server fails, and ends all of them.
func serveAll(ctx context.Context, servers []served) error {
	failed := make(chan error, len(servers))
	var all sync.WaitGroup
	for _, s := range servers {
		all.Go(func() {
			if err := s.server.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("serving a log: %w", err)
			}
		})
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	for _, s := range servers {
		if s.server.Shutdown(end) != nil {
			s.server.Close() //nolint:errcheck // whoever still talks is cut off
		}
	}
	all.Wait()
	return err
}

func serverTLS(cfg ServeConfig) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("reading the server's certificate: %w", err)
	}
	pool, err := certPool(cfg.ClientCAFile)
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, ClientCAs: pool,
		ClientAuth: tls.VerifyClientCertIfGiven, NextProtos: []string{"h2", "http/1.1"}}, nil
}

// adding serves readers, and nodes that add.
func adding(l *Log) http.Handler {
	room := &room{of: map[string]int{}}
	mux := http.NewServeMux()
	mux.Handle("/", l.Handler())
	mux.HandleFunc("POST "+addPath, func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 { // before anything of it is read
			reply(w, http.StatusForbidden, answer{V: wireV, Code: codeForbidden, Text: "show a client's certificate"})
			return
		}
		node := r.TLS.VerifiedChains[0][0].Subject.CommonName
		if !room.enter(node) {
			w.Header().Set("Retry-After", "1")
			reply(w, http.StatusServiceUnavailable, answer{V: wireV, Code: codeBusy, Text: "too many requests add records: try again"})
			return
		}
		defer room.leave(node)
		status, a := add(l, node, w, r)
		reply(w, status, a)
	})
	return mux
}

// A room counts the requests that add.
type room struct {
	mu  sync.Mutex
	all int
	of  map[string]int // node: its own
}

func (m *room) enter(node string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.all == maxAdding || m.of[node] == maxOfNode {
		return false
	}
	m.all++
	m.of[node]++
	return true
}

func (m *room) leave(node string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all--
	if m.of[node]--; m.of[node] == 0 {
		delete(m.of, node)
	}
}

func reply(w http.ResponseWriter, status int, a answer) {
	raw, err := proof.Encode(a)
	if err != nil { // strings and numbers
		panic("translog: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", cacheNothing)
	w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	w.WriteHeader(status)
	w.Write(raw) //nolint:errcheck // the node has gone, and asks again
}

// add serves one request that adds, of the node whose certificate was shown.
func add(l *Log, node string, w http.ResponseWriter, r *http.Request) (int, answer) {
	malformed := func(err error) (int, answer) {
		return http.StatusBadRequest, answer{V: wireV, Code: codeMalformed, Text: err.Error()}
	}
	body, err := bounded(http.MaxBytesReader(w, r.Body, maxAddBody), "the request", maxAddBody)
	if err != nil {
		return malformed(err)
	}
	leaves, err := decodeLeaves(body)
	if err != nil {
		return malformed(err)
	}
	for _, leaf := range leaves {
		if leaf.NodeID != node {
			return http.StatusForbidden, answer{V: wireV, Code: codeForbidden, NodeID: leaf.NodeID, NodeSeq: leaf.NodeSeq,
				Text: fmt.Sprintf("the certificate is of %.80q, not of this node", node)}
		}
	}
	indices, err := l.Add(r.Context(), leaves)
	if err == nil {
		return http.StatusOK, answer{V: wireV, Indices: indices}
	}
	a := answerOf(err)
	switch a.Code {
	case codeFork, codeGap:
		return http.StatusConflict, a
	case codeRefused:
		return http.StatusForbidden, a
	}
	l.cfg.Log.Error("records cannot be added to the log", "node", node, "error", err.Error())
	return http.StatusInternalServerError, a
}

// A pinned policy is a file that says whose records are taken. It may be used
// from any goroutine.
type pinned struct {
	file string

	mu   sync.Mutex
	read *proof.Policy
	info os.FileInfo // of the file that was read
	at   time.Time   // when it was
}

// A file that changed so shortly before it was read may change again, and show the
// same time.
const timeOfFiles = time.Second

// policy returns the policy as the file has it now.
func (p *pinned) policy() (*proof.Policy, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	info, err := os.Stat(p.file)
	if err != nil {
		return nil, fmt.Errorf("reading the policy: %w", err)
	}
	if p.read != nil && os.SameFile(info, p.info) && info.ModTime().Equal(p.info.ModTime()) && info.Size() == p.info.Size() &&
		p.info.ModTime().Before(p.at.Add(-timeOfFiles)) {
		return p.read, nil
	}
	at := time.Now()
	f, err := os.Open(p.file)
	if err != nil {
		return nil, fmt.Errorf("reading the policy: %w", err)
	}
	defer f.Close()
	text, err := bounded(f, p.file, 1<<20)
	if err != nil {
		return nil, err
	}
	read, err := proof.ParsePolicy(text)
	if err != nil {
		return nil, fmt.Errorf("reading the policy %s: %w", p.file, err)
	}
	p.read, p.info, p.at = read, info, at
	return read, nil
}

// admit checks that a leaf is signed by who it says, with a key that is valid now.
func (p *pinned) admit(leaf Leaf) error {
	policy, err := p.policy()
	if err != nil {
		return err
	}
	e, err := proof.ParseEnvelope(leaf.Envelope)
	if err != nil {
		return err
	}
	now := time.Now()
	keys := policy.Node(leaf.NodeID)
	for _, k := range policy.Operators() {
		if proof.OperatorID(k.Key) == leaf.NodeID {
			keys = append(keys, k)
		}
	}
	for _, k := range keys {
		if k.ValidDuring(now, now) && e.VerifyKey(k.Key) == nil {
			return nil
		}
	}
	if len(keys) == 0 {
		return errors.New("the log's policy names no key of this node: add a line \"node ID KEY - -\"")
	}
	return errors.New("no key that the log's policy names for this node, and that is valid now, has signed it")
}
