package e2e

import (
	"bufio"
	"bytes"
	"context"
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
	"strings"
	"syscall"
	"testing"
	"time"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/internal/translog"
	"vacate/proof"
	"vacate/test/daemon"
)

// logHost is where the fleet's log listens. Whoever connects has another address of
// this machine's: while the log is away nobody can have its port instead.
const logHost = "127.77.0.1"

// An authority certifies nodes and their log, in one folder.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: shortDir(t)}
	a.cert, a.key = a.certify("ca")
	return a
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

// certify writes NAME.pem and NAME.key: the first by itself, all others by it.
func (a *authority) certify(name string) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(a.t, err)
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.ParseIP(logHost)}, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	parent, signer := a.cert, a.key
	if parent == nil {
		c.IsCA, c.KeyUsage, c.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	must(a.t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	must(a.t, err)
	must(a.t, os.WriteFile(a.path(name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(a.t, os.WriteFile(a.path(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	c, err = x509.ParseCertificate(der)
	must(a.t, err)
	return c, key
}

// A fleetLog is a `vacate log serve`.
type fleetLog struct {
	Key, Listen string
	cmd         *exec.Cmd
}

// serveLog starts the log of an authority's fleet, and waits until it is ready.
func (a *authority) serveLog(listen string) *fleetLog {
	a.t.Helper()
	cmd := exec.Command(bin, "log", "serve", "--dir", a.path("log"), "--origin", "log.test/1", "--policy", a.path("nodes"), "--listen", listen,
		"--cert", a.path("server.pem"), "--key", a.path("server.key"), "--client-ca", a.path("ca.pem"), "-o", "json")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	must(a.t, err)
	must(a.t, cmd.Start())
	l := &fleetLog{cmd: cmd}
	a.t.Cleanup(func() { cmd.Process.Kill() }) //nolint:errcheck // it may have ended
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, l)
	}
	if err != nil {
		a.t.Fatalf("the log is not ready: %v: %q\n%s", err, line, errs.String())
	}
	return l
}

func (l *fleetLog) stop(t *testing.T) {
	t.Helper()
	must(t, l.cmd.Process.Signal(syscall.SIGTERM))
	must(t, l.cmd.Wait())
}

// startInFleet starts a daemon whose records go to a log of its own process, over
// mutual TLS. It has had its own log before.
func startInFleet(t *testing.T, env ...string) (d *daemon.Daemon, a *authority, l *fleetLog) {
	t.Helper()
	d = start(t, daemon.Options{})
	must(t, d.Stop())
	<-d.Done()
	a = newAuthority(t)
	nodes, node := "quorum none\n", ""
	for line := range strings.Lines(string(read(t, filepath.Join(d.Dir, "policy")))) {
		switch f := strings.Fields(line); {
		case len(f) > 1 && f[0] == "node":
			node, nodes = f[1], nodes+line
		case len(f) > 1 && f[0] == "operator":
			nodes += line
		}
	}
	must(t, os.WriteFile(a.path("nodes"), []byte(nodes), 0o600))
	a.certify("server")
	a.certify(node)
	l = a.serveLog(logHost + ":0")
	must(t, os.WriteFile(a.path("policy"), fmt.Appendf(nil, "log %s\nquorum none\n", l.Key), 0o600))
	d = startIn(t, d.Bin, d.Dir, daemon.Options{Env: append(env,
		"VACATE_PROOF__LOG_URL=https://"+l.Listen, "VACATE_PROOF__CLIENT_CERT="+a.path(node+".pem"), "VACATE_PROOF__CLIENT_KEY="+a.path(node+".key"),
		"VACATE_PROOF__CLIENT_CA="+a.path("ca.pem"), "VACATE_PROOF__WITNESS_POLICY="+a.path("policy"))})
	return d, a, l
}

// metric is the value of a metric without labels.
func metric(t *testing.T, d *daemon.Daemon, name string) (v float64) {
	t.Helper()
	text, err := d.Admin("/metrics")
	must(t, err)
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			if _, err := fmt.Sscan(rest, &v); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			return v
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// verified fetches the certificate of a lease, and verifies it.
func verified(t *testing.T, d *daemon.Daemon, lease string) {
	t.Helper()
	api := client.Dial(filepath.Join(d.Dir, "vacate.sock"))
	defer api.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	got, err := api.Certificates.Get(ctx, &vacatev1.CertificateServiceGetRequest{LeaseId: lease, Wait: true})
	must(t, err)
	res, err := proof.Verify(got.GetBundle(), read(t, filepath.Join(d.Dir, "policy")), proof.Options{})
	if err != nil {
		t.Fatalf("%v\n%s", err, got.GetBundle())
	}
	if res.LeaseID != lease || res.Result != proof.ResultOK {
		t.Errorf("verified lease %s, %s", res.LeaseID, res.Result)
	}
}

// inOrder reads a log, and wants each record of its one node once and in order.
func (a *authority) inOrder(l *fleetLog) (records int) {
	a.t.Helper()
	c, err := translog.NewClient(translog.ClientConfig{URL: "https://" + l.Listen, CAFile: a.path("ca.pem")})
	must(a.t, err)
	defer c.Close() //nolint:errcheck // it was only read
	cp, err := c.Checkpoint(a.t.Context())
	must(a.t, err)
	point, err := proof.ParseCheckpoint(cp)
	must(a.t, err)
	last := uint64(0)
	must(a.t, c.Leaves(a.t.Context(), 0, point.Size, func(i uint64, leaf []byte) error {
		e, err := proof.ParseEnvelope(leaf)
		if err != nil {
			return err
		}
		r, err := proof.ParsePayload(e.Payload)
		if err == nil && last != 0 && r.NodeSeq != last+1 {
			err = fmt.Errorf("leaf %d is record %d, the one before %d", i, r.NodeSeq, last)
		}
		last, records = r.NodeSeq, records+1
		return err
	}))
	return records
}

// TestFleetLog: a confined daemon sends its records to a log elsewhere, over mutual
// TLS. While that is away records wait in the spool, and leases go on; when it is full
// they can only be closed, and the daemon says so; when the log is back all is sent, in
// order, and every lease has its certificate.
func TestFleetLog(t *testing.T) {
	const most = 64
	d, a, log := startInFleet(t, fmt.Sprintf("VACATE_PROOF__SPOOL_MAX=%d", most))
	pid, err := d.Child("control")
	must(t, err)
	if s := status(t, fmt.Sprintf("/proc/%d/status", pid)); s["NoNewPrivs"] != "1" || s["Seccomp"] != "2" {
		t.Fatalf("control is not confined: %v", s)
	}
	first := open(t, d, "--size", "1MiB")
	closeLease := func(l daemon.Lease) {
		t.Helper()
		if _, err := d.Run("lease", "close", l.ID); err != nil {
			t.Error(err)
		}
	}
	closeLease(first)
	verified(t, d, first.ID)

	log.stop(t)
	stayer := open(t, d, "--size", "16MiB")
	leases := []string{first.ID}
	var refused error
	for range most { // two records each: half of them fill it
		l, err := d.Open("--size", "1MiB")
		if err != nil {
			refused = err
			break
		}
		closeLease(l)
		leases = append(leases, l.ID)
	}
	if exitCode(refused) != 1 || !strings.Contains(fmt.Sprint(refused), "the spool of records is full") || !strings.Contains(fmt.Sprint(refused), "vacate log status") {
		t.Fatalf("opened with the log away: %v, want exit code 1, the full spool, and what to do", refused)
	}
	if out, err := d.Run("lease", "resize", stayer.ID, "--size", "32MiB"); exitCode(err) != 1 || !strings.Contains(fmt.Sprint(err), "the spool of records is full") {
		t.Errorf("resized with a full spool: %v %s", err, out)
	}
	if err := d.Ready(); err == nil || !strings.Contains(err.Error(), "the spool of records is full") {
		t.Errorf("/readyz says %v", err)
	}
	waiting := metric(t, d, "vacate_spool_records")
	if waiting < most || waiting > most+1 || metric(t, d, "vacate_spool_limit_records") != most || metric(t, d, "vacate_ready") != 0 {
		t.Errorf("%v records wait, %v may, ready %v", waiting, metric(t, d, "vacate_spool_limit_records"), metric(t, d, "vacate_ready"))
	}
	eventually(t, "the error to show", func() error {
		var st struct {
			Spool     uint64
			LastError string
		}
		must(t, d.JSON(&st, "log", "status"))
		if float64(st.Spool) != waiting || !strings.Contains(st.LastError, "connection refused") || metric(t, d, "vacate_log_failing") != 1 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	goesOn(t, d, stayer, "\x00")
	closeLease(stayer)
	leases = append(leases, stayer.ID)
	if now := metric(t, d, "vacate_spool_records"); now != waiting+1 {
		t.Errorf("%v records wait after a close, %v did before", now, waiting)
	}

	back := a.serveLog(log.Listen)
	eventually(t, "the spool to drain", func() error {
		if n := metric(t, d, "vacate_spool_records"); n != 0 {
			return fmt.Errorf("%v records wait", n)
		}
		return d.Ready()
	})
	last := open(t, d, "--size", "1MiB")
	closeLease(last)
	for _, id := range append(leases, last.ID) {
		verified(t, d, id)
	}
	if n, want := a.inOrder(back), 2*(len(leases)+1); n < want {
		t.Errorf("the log has %d records, want at least %d", n, want)
	}
	back.stop(t)
	if err := d.Stop(); err != nil { // it does not wait for the log
		t.Error(err)
	}
	if _, err := d.Child("control"); err == nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error("control goes on")
	}
}
