package script

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vacate/internal/keyring"
	"vacate/internal/translog"
	"vacate/proof"
)

// A fleet is a log that is served by itself, with a witness, and a node and an
// operator that write to it, in one folder.
type fleet struct {
	t    *testing.T
	dir  string
	ca   *x509.Certificate
	key  *ecdsa.PrivateKey
	ring *keyring.Keyring // of the node, and of its operator
	prev string           // hash of the node's last record
	seq  uint64
}

const fleetNode = "0123456789abcdef0123456789abcdef"

func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{t: t, dir: t.TempDir(), prev: proof.ZeroHash}
	f.ca, f.key = f.certify("ca")
	var err error
	if f.ring, err = keyring.Open(f.path("keys"), keyring.Options{}); err != nil {
		t.Fatal(err)
	}
	f.certify("server")
	f.certify(fleetNode)
	f.certify(proof.OperatorID(f.public(f.ring.Operator())))
	return f
}

func (f *fleet) path(name string) string {
	return filepath.Join(f.dir, strings.ReplaceAll(name, "/", "_"))
}

func (f *fleet) write(name string, b []byte) {
	f.t.Helper()
	if err := os.WriteFile(f.path(name), b, 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fleet) public(s crypto.Signer) proof.PublicKey {
	f.t.Helper()
	k, err := proof.NewPublicKey(s.Public())
	if err != nil {
		f.t.Fatal(err)
	}
	return k
}

// certify writes NAME.pem and NAME.tls: the first by itself, all others by it.
func (f *fleet) certify(name string) (*x509.Certificate, *ecdsa.PrivateKey) {
	f.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	parent, signer := f.ca, f.key
	if parent == nil {
		c.IsCA, c.KeyUsage, c.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		f.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		f.t.Fatal(err)
	}
	f.write(name+".pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	f.write(name+".tls", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	if c, err = x509.ParseCertificate(der); err != nil {
		f.t.Fatal(err)
	}
	return c, key
}

// A served is a log or a witness that runs.
type served struct {
	Key, Listen, Tiles string
	stop               func()
}

// serve starts a process of the command line, and waits until it is ready.
func (f *fleet) serve(args ...string) served {
	f.t.Helper()
	cmd := exec.Command(bin, append(append([]string{"log"}, args...), "-o", "json")...)
	cmd.Dir = f.dir
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		f.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	var s served
	stopped := false
	s.stop = func() {
		if stopped {
			return
		}
		stopped = true
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			f.t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			f.t.Errorf("vacate %s: %v\n%s", args[0], err, errs.String())
		}
	}
	f.t.Cleanup(s.stop)
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &s)
	}
	if err != nil {
		f.t.Fatalf("vacate %q is not ready: %v: %q\n%s", args, err, line, errs.String())
	}
	return s
}

// vacate runs the command line, and returns what it prints as JSON.
func (f *fleet) vacate(code int, into any, args ...string) string {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, append(args, "-o", "json")...)
	cmd.Dir = f.dir
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		f.t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		f.t.Fatalf("vacate %q: exit code %d, want %d\n%s%s", args, got, code, out.String(), errs.String())
	}
	if into != nil {
		if err := json.Unmarshal(out.Bytes(), into); err != nil {
			f.t.Fatalf("vacate %q: %v\n%s", args, err, out.String())
		}
	}
	return errs.String()
}

// record is a record of the node, signed.
func (f *fleet) record(r proof.Record) translog.Leaf {
	f.t.Helper()
	f.seq++
	r.NodeID, r.NodeSeq, r.PrevHash, r.Claims = fleetNode, f.seq, f.prev, []string{proof.ClaimAsserted}
	payload, err := proof.EncodePayload(r)
	if err != nil {
		f.t.Fatal(err)
	}
	envelope, err := proof.Sign(payload, f.ring.Node())
	if err != nil {
		f.t.Fatal(err)
	}
	f.prev = proof.PayloadHash(payload)
	return translog.Leaf{NodeID: fleetNode, NodeSeq: f.seq, Envelope: envelope}
}

// open is the OPEN record of a lease on its own extent.
func (f *fleet) open(id string, extent uint32) translog.Leaf {
	return f.record(proof.Record{Type: proof.OPEN, LeaseID: id, Bytes: 1 << 20, Cipher: proof.CipherXTS, KeyBits: proof.XTSBits, KeyMode: proof.ModeTenant,
		Space: []proof.Space{{Drive: strings.Repeat("a1", 16), Extents: []proof.Range{{First: extent, Count: 1}}}}})
}

// lostResult is what node-lost prints.
type lostResult struct {
	LastSeq uint64
	Leases  []struct{ ID string }
	Index   *uint64
	Files   []string
}

// auditResult is what an audit prints.
type auditResult struct {
	OK       bool
	Size     uint64
	Summary  proof.Summary
	Findings []proof.Finding
}

// TestFleet: a log and its witness are processes of their own; an auditor reads and
// audits it from another folder; a node that never comes back is declared lost by its
// operator, without any daemon.
func TestFleet(t *testing.T) {
	f := newFleet(t)
	key := f.public(f.ring.Node()).String()
	operator := f.public(f.ring.Operator())
	f.write("nodes", fmt.Appendf(nil, "quorum none\nnode %s %s - -\noperator ops %s - -\n", fleetNode, key, operator))
	serve := []string{"serve", "--dir", "log", "--origin", "log.example/1", "--policy", "nodes", "--listen", "127.0.0.1:0", "--listen-tiles", "127.0.0.1:0",
		"--cert", "server.pem", "--key", "server.tls", "--client-ca", "ca.pem"}
	first := f.serve(serve...) // which makes its key
	first.stop()
	w := f.serve("witness", "--dir", "witness", "--name", "w.example/1", "--listen", "127.0.0.1:0", "--log-key", first.Key)
	f.write("witnesses", fmt.Appendf(nil, "witness w %s http://%s\nquorum w\n", w.Key, w.Listen))
	log := f.serve(append(serve, "--witnesses", "witnesses")...)
	if log.Key != first.Key {
		t.Fatalf("the log's key was %s, and is %s", first.Key, log.Key)
	}
	f.write("policy", fmt.Appendf(nil, "log %s\nwitness w %s\nquorum w\nnode %s %s - -\noperator ops %s - -\n", log.Key, w.Key, fleetNode, key, operator))
	for _, name := range []string{"log/keys/node.key", "log/keys/operator.key"} {
		if _, err := os.Stat(filepath.Join(f.dir, name)); err == nil {
			t.Errorf("the log made %s, and signs no records", name)
		}
	}

	f.add(log, f.open("aaaabbbbccccdddd", 0), f.open("eeeeffffgggghhhh", 1))
	tiles := "http://" + log.Tiles
	var a auditResult
	f.vacate(0, &a, "log", "audit", "--policy", "policy", "--log", tiles, "--keep", "kept")
	if !a.OK || a.Size != 2 || a.Summary.Open != 2 {
		t.Errorf("audited %+v", a)
	}
	var shown []struct{ Record proof.Record }
	f.vacate(0, &shown, "log", "show", "--log", "https://"+log.Listen, "--log-ca", "ca.pem", "--lease", "eeeeffffgggghhhh")
	if len(shown) != 1 || shown[0].Record.Type != proof.OPEN {
		t.Errorf("shown %+v", shown)
	}

	f.lost(log, operator)
	f.vacate(0, &a, "log", "audit", "--policy", "policy", "--log", filepath.Join(f.dir, "log"), "--kept", "kept")
	if !a.OK || a.Size != 3 || a.Summary.Lost != 2 || a.Summary.Open != 0 {
		t.Errorf("audited %+v", a)
	}

	// A node that is alive after all is found out.
	f.add(log, f.open("iiiijjjjkkkkllll", 2))
	f.vacate(5, &a, "log", "audit", "--policy", "policy", "--log", tiles)
	if !slices.ContainsFunc(a.Findings, func(f proof.Finding) bool { return f.Code == proof.FindAfterLost }) {
		t.Errorf("a node that was declared lost writes on: %+v", a.Findings)
	}
}

// add adds records as their node, and waits for a checkpoint that has them, and that the policy
// accepts.
func (f *fleet) add(log served, leaves ...translog.Leaf) {
	f.t.Helper()
	c, err := translog.NewClient(translog.ClientConfig{URL: "https://" + log.Listen, CAFile: f.path("ca.pem"),
		CertFile: f.path(fleetNode + ".pem"), KeyFile: f.path(fleetNode + ".tls")})
	if err != nil {
		f.t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(f.t.Context(), 3*time.Minute)
	defer cancel()
	at, err := c.Add(ctx, leaves)
	if err != nil {
		f.t.Fatal(err)
	}
	text, err := os.ReadFile(f.path("policy"))
	if err != nil {
		f.t.Fatal(err)
	}
	policy, err := proof.ParsePolicy(text)
	if err != nil {
		f.t.Fatal(err)
	}
	for {
		note, err := translog.Await(ctx, c, at[len(at)-1], 50*time.Millisecond)
		if err != nil {
			f.t.Fatal(err)
		}
		if _, quorum, err := policy.OpenCheckpoint(note); err != nil {
			f.t.Fatal(err)
		} else if quorum {
			return
		}
		time.Sleep(50 * time.Millisecond) // a witness that was slow signs the next one; Await ends with ctx
	}
}

// lost declares the node lost: first a plan, then once, and never twice.
func (f *fleet) lost(log served, operator proof.PublicKey) {
	f.t.Helper()
	id := strings.ReplaceAll(proof.OperatorID(operator), "/", "_")
	args := []string{"log", "node-lost", fleetNode, "--policy", "policy", "--operator-key", "keys/operator.key", "--log", "https://" + log.Listen,
		"--log-ca", "ca.pem", "--cert", id + ".pem", "--key", id + ".tls"}
	var v lostResult
	f.vacate(0, &v, append(args, "--plan")...)
	if v.LastSeq != 2 || len(v.Leases) != 2 || v.Index != nil {
		f.t.Errorf("planned %+v", v)
	}
	if errs := f.vacate(1, nil, "log", "node-lost", fleetNode, "--policy", "policy", "--operator-key", "keys/node.key", "--log", "https://"+log.Listen); !strings.Contains(errs, "not of an operator") {
		f.t.Errorf("with a node's key: %s", errs)
	}
	f.vacate(0, &v, append(args, "--certificates", "certificates")...)
	if v.Index == nil || *v.Index != 2 || len(v.Leases) != 2 || len(v.Files) != 2 {
		f.t.Errorf("recorded %+v", v)
	}
	var results []struct{ Result proof.Result }
	f.vacate(0, &results, append([]string{"certificate", "verify", "--policy", "policy"}, v.Files...)...)
	if len(results) != 2 || results[0].Result.Result != proof.ResultLostNode || results[0].Result.Times[1].NotBefore == "" {
		f.t.Errorf("the certificates say %+v", results)
	}
	f.vacate(0, &v, append(args, "--certificates", "again")...) // without the operator's beacon
	f.vacate(0, nil, append([]string{"certificate", "verify", "--policy", "policy"}, v.Files...)...)
	if errs := f.vacate(4, nil, args...); !strings.Contains(errs, "declared lost already") {
		f.t.Errorf("a second time: %s", errs)
	}
}
