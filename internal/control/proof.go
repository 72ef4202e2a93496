package control

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"vacate/internal/annex"
	"vacate/internal/attest"
	"vacate/internal/durable"
	"vacate/internal/journal"
	"vacate/internal/keyring"
	"vacate/internal/notary"
	"vacate/internal/secret"
	"vacate/internal/sys"
	"vacate/internal/tpm"
	"vacate/internal/translog"
	"vacate/internal/version"
	"vacate/proof"
)

// This file opens what records need: keys, log, certificates. It all comes before
// control is confined; the log alone is opened later, by who needs it first.

// maxWitnessPolicy bounds what is read of proof.witness_policy, in bytes.
const maxWitnessPolicy = 256 << 10

// A prover is what control has to make records into proofs.
type prover struct {
	*notary.Notary
	p      *process
	nodeID string
	keys   *keyring.Keyring
	log    notary.Log
	end    []func() error // in the order in which things were opened
	ports  []uint16       // that control connects to
	host   proof.Host     // as it was at the start
	annex  annex.Config
	policy *os.File // of --dev; nil without
	where  string   // the log's folder or address
}

// appender is a journal to which records can be appended that change nothing else.
type appender interface {
	Append(proof.Record) (uint64, error)
}

// openProof opens keys and certificates. It returns nil where the journal cannot be
// written: nothing is recorded then.
func (p *process) openProof(store journal.Store) (_ *prover, err error) {
	spool, ok := store.(journal.Spool)
	app, ok2 := store.(appender)
	if !ok || !ok2 {
		return nil, nil
	}
	pr := &prover{p: p, nodeID: store.NodeID(), where: p.cfg.LogDir()}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("preparing to sign and log records: %w", err), pr.close())
		}
	}()
	trust := notary.Trust{}
	if path := p.cfg.Proof.WitnessPolicy; path != "" {
		if trust.Witnesses, _, err = durable.Read(path, maxWitnessPolicy); err != nil {
			return nil, fmt.Errorf("reading proof.witness_policy: %w", err)
		}
	}
	var quoter notary.Quoter
	var load keyring.TPM
	boot, err := sys.BootID()
	if err != nil {
		return nil, err
	}
	if p.cfg.UsesTPM() {
		t, err := tpm.Open(p.cfg.Proof.TPM)
		if err != nil {
			return nil, err
		}
		pr.end = append(pr.end, t.Close)
		load = loader(t)
		if p.cfg.Proof.Measured {
			q := attest.New(t)
			pin, err := q.Pin(pr.nodeID, true)
			if err != nil {
				return nil, err
			}
			if pin, err = attest.Remember(filepath.Join(p.cfg.StateDir, "boots"), pin); err != nil {
				return nil, err
			}
			quoter, trust.TPM = q, &pin
		}
	}
	if err := pr.openKeys(p, load, &trust); err != nil {
		return nil, err
	}
	if err := pr.openLog(p, trust.Witnesses); err != nil {
		return nil, err
	}
	if err := notary.Prepare(p.cfg.CertificatesDir()); err != nil {
		return nil, err
	}
	pr.Notary, err = notary.New(notary.Config{Spool: spool, Append: app.Append, Keys: pr.keys, Log: pr.log, Trust: trust, Quoter: quoter, BootID: hex.EncodeToString(boot[:]),
		Dir: p.cfg.CertificatesDir(), Keep: p.cfg.Certificates.Keep, SpoolMax: p.cfg.Proof.SpoolMax, Renewed: pr.writePolicy, Logs: p.log})
	if err != nil {
		return nil, err
	}
	pr.look(p, trust)
	return pr, pr.openPolicy(p.cfg.DevPolicy())
}

// loader has keys of the TPM made and loaded.
func loader(t *tpm.TPM) keyring.TPM {
	return func(path string) (crypto.Signer, error) { return t.NewSigner(path) }
}

// openKeys opens the keyring. The node's own log is named by its id, unless the
// configuration has a name.
func (pr *prover) openKeys(p *process, load keyring.TPM, trust *notary.Trust) (err error) {
	o := keyring.Options{NodeIn: p.cfg.Proof.NodeKey, OperatorIn: p.cfg.Proof.OperatorKey, TPM: load}
	if p.cfg.LogDir() != "" {
		if o.LogName = p.cfg.Proof.Origin; o.LogName == "" {
			o.LogName = "vacate/" + pr.nodeID
		}
	}
	if pr.keys, err = keyring.Open(p.cfg.KeysDir(), o); err != nil {
		return err
	}
	for _, i := range pr.keys.Infos() {
		if i.Role == keyring.Log {
			trust.Log = "log " + i.Public
		}
	}
	return nil
}

// openLog makes ready the log that is kept here, or the way to one elsewhere.
func (pr *prover) openLog(p *process, witnesses []byte) error {
	if p.cfg.Proof.LogURL != "" {
		pr.where = p.cfg.Proof.LogURL
		pr.connectTo(pr.where)
		c, err := translog.NewClient(translog.ClientConfig{URL: pr.where, CertFile: p.cfg.Proof.ClientCert, KeyFile: p.cfg.Proof.ClientKey,
			CAFile: p.cfg.Proof.ClientCA})
		if err != nil {
			return err
		}
		pr.log, pr.end = c, append(pr.end, c.Close)
		return nil
	}
	if err := os.MkdirAll(pr.where, 0o700); err != nil {
		return fmt.Errorf("making the log's folder: %w", err)
	}
	for _, address := range witnessURLs(witnesses) {
		pr.connectTo(address)
	}
	cfg := translog.Config{Dir: pr.where, Origin: pr.keys.Log().Name(), Signer: pr.keys.Log(), Witnesses: witnesses, Log: p.log,
		WitnessTransport: &http.Transport{MaxIdleConnsPerHost: 2, IdleConnTimeout: time.Minute, TLSHandshakeTimeout: 5 * time.Second}}
	if err := cfg.Validate(); err != nil { // what another try will not mend
		return err
	}
	l := &lateLog{open: func(ctx context.Context) (*translog.Log, error) { return translog.Open(ctx, cfg) }}
	pr.log, pr.end = l, append(pr.end, l.Close)
	return nil
}

// witnessURLs are the addresses of the witnesses in lines of a policy.
func witnessURLs(policy []byte) (out []string) {
	for line := range strings.Lines(string(policy)) {
		if f := strings.Fields(line); len(f) == 4 && f[0] == "witness" {
			out = append(out, f[3])
		}
	}
	return out
}

// connectTo makes an address one that control may connect to.
func (pr *prover) connectTo(address string) {
	u, err := url.Parse(address)
	if err != nil {
		return // who uses it says so
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443"}[u.Scheme]
	}
	if port == "" {
		port = "80"
	}
	add := func(n uint16) {
		if !slices.Contains(pr.ports, n) {
			pr.ports = append(pr.ports, n)
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err == nil {
		add(uint16(n))
	}
	if net.ParseIP(u.Hostname()) == nil {
		add(53) // names are looked up over TCP: datagrams would pass by Landlock
	}
}

// beforeNetwork does what Go does once and what a confined process cannot: which
// address families there are, and the host's certificate authorities. From then on
// names are looked up over TCP.
func (pr *prover) beforeNetwork() {
	if len(pr.ports) == 0 {
		return
	}
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close() //nolint:errcheck // it was only tried
	}
	x509.SystemCertPool() //nolint:errcheck // it is read once and kept; who connects over TLS says what is wrong
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", address)
	}}
}

// look notes what annexes say of this host and its configuration.
func (pr *prover) look(p *process, trust notary.Trust) {
	pr.annex = annex.Config{Version: version.String(), DrainDeadline: p.cfg.DrainDeadline, RuntimeSecret: secret.Enabled(),
		NodeKey: p.cfg.Proof.NodeKey, TPM: p.cfg.Proof.Measured, Danger: p.cfg.DangerInForce(), EraseBy: true,
		Log: pr.origin(), Witnesses: len(witnessURLs(trust.Witnesses)), Quorum: quorumOf(trust.Witnesses)}
	pr.host = annex.ReadHost(os.DirFS("/"), pr.annex)
}

// origin is the name of the log.
func (pr *prover) origin() string {
	if s := pr.keys.Log(); s != nil {
		return s.Name()
	}
	policy, err := proof.ParsePolicy(pr.Notary.Policy())
	if err != nil || len(policy.Logs()) == 0 {
		return ""
	}
	return policy.Logs()[0].Origin
}

func quorumOf(policy []byte) string {
	for line := range strings.Lines(string(policy)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "quorum" {
			return f[1]
		}
	}
	return ""
}

// openPolicy writes the policy of --dev, and keeps its file: a confined control can
// write there no other way.
func (pr *prover) openPolicy(path string) (err error) {
	if path == "" {
		return nil
	}
	if pr.policy, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return fmt.Errorf("writing the policy: %w", err)
	}
	pr.end = append(pr.end, pr.policy.Close)
	return pr.writePolicy(pr.Notary.Policy())
}

// writePolicy brings the file of --dev up to date.
func (pr *prover) writePolicy(b []byte) error {
	if pr.policy == nil {
		return nil
	}
	have := make([]byte, len(b)+1)
	if n, _ := pr.policy.ReadAt(have, 0); bytes.Equal(have[:n], b) {
		return nil
	}
	_, err := pr.policy.WriteAt(b, 0)
	if err = errors.Join(err, pr.policy.Truncate(int64(len(b))), pr.policy.Sync()); err != nil {
		return fmt.Errorf("writing the policy: %w", err)
	}
	return nil
}

// close gives everything up, what was opened last first.
func (pr *prover) close() error {
	if pr == nil {
		return nil
	}
	var err error
	for _, end := range slices.Backward(pr.end) {
		err = errors.Join(err, end())
	}
	return err
}

// logDir is the folder of the log that is kept here; empty where it is elsewhere.
func (pr *prover) logDir() string {
	if _, here := pr.log.(*lateLog); !here {
		return ""
	}
	return pr.where
}
