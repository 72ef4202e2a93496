package translog

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"vacate/proof"
)

// ClientConfig says where a log is served, and who asks. Zero means the default.
type ClientConfig struct {
	URL      string // of the log: "https://log.example:7443"; http is for reading only
	CertFile string // PEM; who adds records shows it. Empty: reading only
	KeyFile  string
	CAFile   string        // PEM; whom to trust. Empty: the host's roots
	Timeout  time.Duration // of one request; 30 s
}

// A Client is a log that another machine serves. Its methods may be called from
// any goroutine.
type Client struct {
	tiles
	base   string // without a slash at its end
	http   *http.Client
	secure bool
}

// NewClient returns the log at cfg.URL. It does not talk to it yet.
func NewClient(cfg ClientConfig) (*Client, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, fmt.Errorf("log at %q: write its address as https://HOST:PORT", cfg.URL)
	}
	conf, err := clientTLS(cfg)
	if err != nil {
		return nil, fmt.Errorf("log at %s: %w", u.Redacted(), err)
	}
	c := &Client{
		base:   strings.TrimSuffix(u.String(), "/"),
		secure: len(conf.Certificates) > 0 && u.Scheme == "https",
		http: &http.Client{
			Timeout:       orElse(cfg.Timeout, 30*time.Second),
			CheckRedirect: noRedirect,
			Transport:     &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute, Proxy: http.ProxyFromEnvironment},
		},
	}
	c.tiles.fetch = c.get
	return c, nil
}

func clientTLS(cfg ClientConfig) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS13}
	if cfg.CAFile != "" {
		pool, err := certPool(cfg.CAFile)
		if err != nil {
			return nil, err
		}
		conf.RootCAs = pool
	}
	if cfg.CertFile != "" || cfg.KeyFile != "" {
		pair, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("reading the client's certificate: %w", err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return conf, nil
}

func certPool(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading certificates: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("reading certificates: %s has none (PEM)", file)
	}
	return pool, nil
}

// get fetches a resource.
func (c *Client) get(ctx context.Context, path string, limit int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req) //nolint:bodyclose // drain closes it
	if err != nil {
		return nil, fmt.Errorf("asking the log: %w", err)
	}
	defer drain(resp.Body)
	switch resp.StatusCode {
	case http.StatusOK:
		return bounded(resp.Body, path, limit)
	case http.StatusNotFound:
		return nil, fmt.Errorf("%s: %w", path, ErrNotFound)
	}
	return nil, fmt.Errorf("asking the log for %s: it answers %s", path, resp.Status)
}

// drain lets a connection be used again, where little is left in it.
func drain(b io.ReadCloser) {
	io.CopyN(io.Discard, b, 4<<10) //nolint:errcheck // then it is not used again
	b.Close()                      //nolint:errcheck // it was read
}

// Add implements [Adder]. What does not fit one request goes in several, in
// order; where a later one fails, the earlier ones stay.
func (c *Client) Add(ctx context.Context, leaves []Leaf) ([]uint64, error) {
	if len(leaves) > MaxAdd {
		return nil, fmt.Errorf("adding %d records to the log: more than %d at once", len(leaves), MaxAdd)
	}
	if !c.secure {
		return nil, errors.New("adding records to a log needs https and a client's certificate: configure both")
	}
	var out []uint64
	for len(leaves) > 0 {
		n, size := 0, 0
		for n < len(leaves) && size+len(leaves[n].Envelope)+2 <= maxAddBody {
			size += len(leaves[n].Envelope) + 2
			n++
		}
		if n == 0 {
			return nil, &RefusedError{leaves[0].NodeID, leaves[0].NodeSeq, "its envelope is too long"}
		}
		indices, err := c.add(ctx, leaves[:n])
		if err != nil {
			return nil, err
		}
		out, leaves = append(out, indices...), leaves[n:]
	}
	return out, nil
}

func (c *Client) add(ctx context.Context, leaves []Leaf) ([]uint64, error) {
	body, err := encodeLeaves(leaves)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+addPath, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", addType)
	resp, err := c.http.Do(req) //nolint:bodyclose // drain closes it
	if err != nil {
		return nil, fmt.Errorf("asking the log: %w", err)
	}
	defer drain(resp.Body)
	raw, err := bounded(resp.Body, "the log's answer", maxAnswer)
	if err != nil {
		return nil, err
	}
	a, err := proof.Decode[answer](raw)
	switch {
	case err != nil || a.V != wireV:
		return nil, fmt.Errorf("asking the log: it answers %s, and not as a log does: %.200q", resp.Status, raw)
	case a.Code != "":
		return nil, a.err()
	case resp.StatusCode != http.StatusOK || len(a.Indices) != len(leaves):
		return nil, fmt.Errorf("asking the log to add %d records: it answers %s with %d indices", len(leaves), resp.Status, len(a.Indices))
	}
	return a.Indices, nil
}

// Close ends idle connections.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}
