package translog

import (
	"context"
	"errors"
	"time"
)

// ClientConfig says where a log is served, and who asks. Zero means the default.
type ClientConfig struct {
	URL      string // of the log: "https://log.example:7443"
	CertFile string // PEM; who adds records shows it. Empty: reading only
	KeyFile  string
	CAFile   string        // PEM; whom to trust. Empty: the host's roots
	Timeout  time.Duration // of one request; 30 s
}

// A Client is a log that another machine serves. Its methods may be called from
// any goroutine.
type Client struct{ tiles }

// NewClient returns the log at cfg.URL. It does not talk to it yet.
func NewClient(cfg ClientConfig) (*Client, error) { return nil, errors.ErrUnsupported }

// Add implements [Adder].
func (c *Client) Add(ctx context.Context, leaves []Leaf) ([]uint64, error) {
	return nil, errors.ErrUnsupported
}

// Close ends idle connections.
func (c *Client) Close() error { return nil }
