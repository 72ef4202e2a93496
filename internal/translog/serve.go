package translog

import (
	"context"
	"errors"
	"net"
)

// ServeConfig says how a log is served to a fleet. Zero means the default, where there is one.
type ServeConfig struct {
	Config

	Listen       string // host:port of HTTPS: adding (with a client's certificate) and reading
	CertFile     string // PEM: the server's certificate
	KeyFile      string
	ClientCAFile string // PEM: who certifies the nodes
	ListenTiles  string // host:port of plain HTTP, for reading only. Empty: none

	// PolicyFile names the nodes and operators whose records are taken (package
	// proof, Policy). It is read again when it changed.
	PolicyFile string

	// Ready is called once, when the addresses are listened on; tiles is nil
	// without ListenTiles. nil: not called.
	Ready func(listen, tiles net.Addr)
}

// Serve opens the log and serves it until ctx ends.
func Serve(ctx context.Context, cfg ServeConfig) error { return errors.ErrUnsupported }
