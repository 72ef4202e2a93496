package translog

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vacate/proof"
)

func mustURL(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// A ca certifies for a test.
type ca struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t testing.TB) *ca {
	c := &ca{dir: t.TempDir()}
	c.cert, c.key = c.make(t, "ca", nil)
	return c
}

// make makes a certificate and writes it, and its key, to NAME.crt and NAME.key.
func (c *ca) make(t testing.TB, name string, use []x509.ExtKeyUsage) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: use,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: use == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature}
	parent, signer := tmpl, key
	if use == nil {
		tmpl.KeyUsage |= x509.KeyUsageCertSign
	} else {
		parent, signer = c.cert, c.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := strings.ReplaceAll(name, "/", "_")
	for suffix, block := range map[string]*pem.Block{".crt": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(filepath.Join(c.dir, file+suffix), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func (c *ca) path(name string) string {
	return filepath.Join(c.dir, strings.ReplaceAll(name, "/", "_"))
}

var (
	forServer = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	forClient = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
)

// nodeLine is the line of a policy that pins node n's key.
func nodeLine(t testing.TB, n byte, times string) string {
	t.Helper()
	k, err := proof.NewPublicKey(testKey(n).Public())
	if err != nil {
		t.Fatal(err)
	}
	return "node " + nodeID(n) + " " + k.String() + " " + times + "\n"
}

type fleet struct {
	ca            *ca
	policy        string // path
	secure, plain string // addresses
}

// serve runs `log serve` until the test ends.
func serve(t testing.TB, dir, policy string) *fleet {
	t.Helper()
	f := &fleet{ca: newCA(t)}
	f.policy = filepath.Join(f.ca.dir, "policy")
	f.writePolicy(t, policy)
	f.ca.make(t, "server", forServer)
	cfg := ServeConfig{Config: testConfig(t, dir), Listen: "127.0.0.1:0", ListenTiles: "127.0.0.1:0", PolicyFile: f.policy,
		CertFile: f.ca.path("server") + ".crt", KeyFile: f.ca.path("server") + ".key", ClientCAFile: f.ca.path("ca") + ".crt"}
	ready, done := make(chan struct{}), make(chan error, 1)
	cfg.Ready = func(secure, plain net.Addr) {
		f.secure, f.plain = secure.String(), plain.String()
		close(ready)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- Serve(ctx, cfg) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serving: %v", err)
		}
	})
	return f
}

func (f *fleet) writePolicy(t testing.TB, lines string) {
	t.Helper()
	_, vkey := logKey(t)
	if err := os.WriteFile(f.policy, []byte("log "+vkey+"\nquorum none\n"+lines), 0o600); err != nil {
		t.Fatal(err)
	}
}

// client returns a client that shows the certificate of a name; "" shows none.
func (f *fleet) client(t testing.TB, name string) *Client {
	t.Helper()
	cfg := ClientConfig{URL: "https://" + f.secure, CAFile: f.ca.path("ca") + ".crt"}
	if name != "" {
		f.ca.make(t, name, forClient)
		cfg.CertFile, cfg.KeyFile = f.ca.path(name)+".crt", f.ca.path(name)+".key"
	}
	c, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestServe(t *testing.T) {
	f := serve(t, t.TempDir(), nodeLine(t, 1, "- -")+nodeLine(t, 2, "- -"))
	one, two := f.client(t, nodeID(1)), f.client(t, nodeID(2))
	if got := mustAdd(t, one, run(t, 1, 5, 8)...); !slices.Equal(got, []uint64{0, 1, 2}) {
		t.Errorf("indices %v", got)
	}
	if got := mustAdd(t, one, run(t, 1, 5, 8)...); !slices.Equal(got, []uint64{0, 1, 2}) {
		t.Errorf("indices, again: %v", got)
	}
	if got := mustAdd(t, two, run(t, 2, 1, 3)...); !slices.Equal(got, []uint64{3, 4}) {
		t.Errorf("indices %v", got)
	}
	cp := opened(t, one, 5)
	env, err := one.Leaf(t.Context(), 4)
	if err != nil {
		t.Fatal(err)
	}
	path, err := one.Proof(t.Context(), 4, cp.Size)
	if err != nil {
		t.Fatal(err)
	}
	if err := proof.VerifyInclusion(cp, 4, proof.LeafHash(env), path); err != nil {
		t.Error(err)
	}

	forged := leaf(t, 1, 8, 0)
	forged.Envelope = resign(t, forged.Envelope, 7)
	stranger := f.client(t, nodeID(3))
	for _, tt := range []struct {
		name   string
		client *Client
		leaf   Leaf
		is     error
		text   string
	}{
		{"gap", one, leaf(t, 1, 9, 0), ErrGap, "record 8 first"},
		{"fork", one, leaf(t, 1, 6, 1), ErrFork, "index 1"},
		{"another node's record", two, leaf(t, 1, 8, 0), nil, "not of this node"},
		{"signed by a key that is not pinned", one, forged, ErrRefused, "no key"},
		{"a node that the policy does not name", stranger, leaf(t, 3, 1, 0), ErrRefused, "names no key"},
		{"without a certificate", f.client(t, ""), leaf(t, 1, 8, 0), nil, "certificate"},
	} {
		_, err := tt.client.Add(t.Context(), []Leaf{tt.leaf})
		if err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v, want one that says %q", tt.name, err, tt.text)
		}
	}

	// The policy is read again: a node is added, and another one's key has ended.
	f.writePolicy(t, nodeLine(t, 1, "- 2020-01-01T00:00:00Z")+nodeLine(t, 2, "- -")+nodeLine(t, 3, "- -"))
	mustAdd(t, stranger, leaf(t, 3, 1, 0))
	if _, err := one.Add(t.Context(), []Leaf{leaf(t, 1, 8, 0)}); !errors.Is(err, ErrRefused) {
		t.Errorf("a key that has ended: %v", err)
	}
	if err := os.WriteFile(f.policy, []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := two.Add(t.Context(), []Leaf{leaf(t, 2, 3, 0)}); !errors.Is(err, ErrRefused) {
		t.Errorf("a policy that cannot be read: %v", err)
	}
}

// TestPolicyAtOnce: a change of the policy is seen that shows neither in its file's time
// nor in its size.
func TestPolicyAtOnce(t *testing.T) {
	f := serve(t, t.TempDir(), nodeLine(t, 1, "- 2920-01-01T00:00:00Z"))
	one := f.client(t, nodeID(1))
	mustAdd(t, one, leaf(t, 1, 1, 0))
	info, err := os.Stat(f.policy)
	if err != nil {
		t.Fatal(err)
	}
	f.writePolicy(t, nodeLine(t, 1, "- 2020-01-01T00:00:00Z"))
	if err := os.Chtimes(f.policy, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	_, err = one.Add(t.Context(), []Leaf{leaf(t, 1, 2, 0)})
	if late := time.Since(info.ModTime()) > timeOfFiles; !errors.Is(err, ErrRefused) && !late { // a machine that slept has read it as settled
		t.Errorf("a key that has just ended: %v", err)
	}
}

// TestRoom: a node that never ends its requests holds up nobody but itself, and all
// together have no more than there are.
func TestRoom(t *testing.T) {
	m := &room{of: map[string]int{}}
	slow := nodeID(1)
	for i := range maxOfNode {
		if !m.enter(slow) {
			t.Fatalf("request %d of a node is refused", i+1)
		}
	}
	if m.enter(slow) {
		t.Error("one request more than a node may have")
	}
	for i := range maxAdding - maxOfNode {
		if !m.enter(nodeID(byte(2 + i/maxOfNode))) {
			t.Fatalf("request %d is refused", i+1+maxOfNode)
		}
	}
	if m.enter(nodeID(200)) {
		t.Error("one request more than there may be")
	}
	m.leave(slow)
	if !m.enter(nodeID(200)) || m.enter(slow) {
		t.Error("the place of a request that has ended goes to who comes first")
	}
	m.leave(nodeID(200))
	for range maxOfNode - 1 {
		m.leave(slow)
	}
	if _, there := m.of[slow]; there {
		t.Error("a node that has no requests is still remembered")
	}
}

// resign signs the payload of an envelope with the key of another node.
func resign(t testing.TB, envelope []byte, n byte) []byte {
	t.Helper()
	e, err := proof.ParseEnvelope(envelope)
	if err != nil {
		t.Fatal(err)
	}
	out, err := proof.Sign(e.Payload, testKey(n))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestServeHostile: what no client of ours would send.
func TestServeHostile(t *testing.T) {
	f := serve(t, t.TempDir(), nodeLine(t, 1, "- -"))
	one := f.client(t, nodeID(1))
	post := func(c *http.Client, url, body string) (int, string) {
		t.Helper()
		resp, err := c.Post(url, addType, strings.NewReader(body))
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	secure := "https://" + f.secure + addPath
	good, err := encodeLeaves(run(t, 1, 1, 2))
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{"nothing": "", "half a length": "\x00", "a length too long": "\x10\x00{}", "no record": "\x00\x02{}",
		"bytes after the end": string(good) + "\x01", "too long": strings.Repeat("x", maxAddBody+1)} {
		if status, text := post(one.http, secure, body); status != http.StatusBadRequest || !strings.Contains(text, codeMalformed) {
			t.Errorf("%s: %d %s", name, status, text)
		}
	}
	if status, text := post(http.DefaultClient, "http://"+f.plain+addPath, string(good)); status != http.StatusNotFound && status != http.StatusMethodNotAllowed {
		t.Errorf("adding over plain HTTP: %d %s", status, text)
	}
	// A certificate of another authority is not even listened to.
	other := newCA(t)
	other.make(t, nodeID(1), forClient)
	pair, err := tls.LoadX509KeyPair(other.path(nodeID(1))+".crt", other.path(nodeID(1))+".key")
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(f.ca.cert)
	alien := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }}}}
	if status, text := post(alien, secure, string(good)); status != 0 || !strings.Contains(text, "tls") {
		t.Errorf("a certificate of another authority: %d %s", status, text)
	}
	// A server's certificate is not a node's.
	f.ca.make(t, nodeID(1), forServer)
	c, err := NewClient(ClientConfig{URL: "https://" + f.secure, CAFile: f.ca.path("ca") + ".crt",
		CertFile: f.ca.path(nodeID(1)) + ".crt", KeyFile: f.ca.path(nodeID(1)) + ".key"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Add(t.Context(), run(t, 1, 1, 2)); err == nil {
		t.Error("a server's certificate was taken for a node's")
	}
	plain, err := NewClient(ClientConfig{URL: "http://" + f.plain})
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	opened(t, plain, 0)
	if _, err := plain.Add(t.Context(), run(t, 1, 1, 2)); err == nil || !strings.Contains(err.Error(), "https") {
		t.Errorf("adding without https: %v", err)
	}
	if got := mustAdd(t, one, run(t, 1, 1, 3)...); len(got) != 2 {
		t.Errorf("afterwards: %v", got)
	}
}

func TestClientConfig(t *testing.T) {
	for _, bad := range []ClientConfig{{URL: ""}, {URL: "log.example"}, {URL: "ftp://log.example"}, {URL: "https://a@log.example"},
		{URL: "https://log.example", CAFile: "/nowhere"}, {URL: "https://log.example", CertFile: "/nowhere"}} {
		if _, err := NewClient(bad); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}
