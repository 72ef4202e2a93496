package notary

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vacate/internal/keyring"
	"vacate/internal/lease"
	"vacate/proof"
	"vacate/proof/prooftest"
)

// A world is a notary with a journal and a log in memory, and its folders.
type world struct {
	t     *testing.T
	dir   string
	spool *spool
	log   *treeLog
	keys  *keyring.Keyring
	n     *Notary
	now   time.Time
	stop  func()

	renewed string // the newest policy that the notary told of

	quoter *machine         // nil: records are not quoted
	boot   string           // "": that of the records
	ak     *proof.PublicKey // that the policy pins; nil: the quoter's
}

func newWorld(t *testing.T, witnessed bool) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), spool: newSpool(t), now: time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)}
	w.log = &treeLog{clock: func() time.Time { return w.now }}
	if witnessed {
		seed := sha256.Sum256([]byte("witness"))
		w.log.witness = ed25519.NewKeyFromSeed(seed[:])
	}
	if err := Prepare(filepath.Join(w.dir, "certificates")); err != nil {
		t.Fatal(err)
	}
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

// start makes the notary anew, as after a crash.
func (w *world) start() {
	w.t.Helper()
	if w.stop != nil {
		w.stop()
	}
	var err error
	if w.keys, err = keyring.Open(filepath.Join(w.dir, "keys"), keyring.Options{LogName: origin, Clock: func() time.Time { return w.now }}); err != nil {
		w.t.Fatal(err)
	}
	w.log.signer = w.keys.Log()
	trust := Trust{Log: "log " + w.keys.Infos()[2].Public}
	if w.log.witness != nil {
		trust.Witnesses = w.log.policyLines()
	}
	c := Config{Spool: w.spool, Append: w.spool.append, Keys: w.keys, Log: w.log, Trust: trust,
		Dir: filepath.Join(w.dir, "certificates"), Clock: func() time.Time { return w.now }, SpoolMax: 8,
		Renewed: func(policy []byte) error { w.renewed = string(policy); return nil },
		Logs:    slog.New(slog.NewTextHandler(w.t.Output(), nil))}
	if w.quoter != nil {
		w.measure(&c)
	}
	if w.n, err = New(c); err != nil {
		w.t.Fatal(err)
	}
	w.stop = func() {}
}

// measure has records quoted.
func (w *world) measure(c *Config) {
	ak, err := proof.NewPublicKey(prooftest.AK().Public())
	if err != nil {
		w.t.Fatal(err)
	}
	if w.ak != nil {
		ak = *w.ak
	}
	c.Quoter, c.BootID, c.Trust.TPM = w.quoter, cmp.Or(w.boot, bootID), &proof.PinnedTPM{Node: nodeID, AK: ak}
}

// run has the notary work until the test ends.
func (w *world) run() {
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan struct{})
	n := w.n
	go func() { n.Run(ctx); close(done) }()
	w.stop = func() { cancel(); <-done }
}

// pass does what the loops do, once, in their order.
func (w *world) pass() error {
	ctx := w.t.Context()
	for _, work := range []func(context.Context) (time.Duration, error){w.n.sign, w.n.send, w.n.look, w.n.tidy} {
		if _, err := work(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) mustPass() {
	w.t.Helper()
	if err := w.pass(); err != nil {
		w.t.Fatal(err)
	}
}

func leaseID(i int) string { return strings.Repeat("a", 15) + string(rune('a'+i)) }

func (w *world) space(i int) []proof.Space {
	return []proof.Space{{Drive: strings.Repeat("d", 32), Extents: []proof.Range{{First: uint32(i), Count: 1}}}}
}

// open writes the OPEN of lease i.
func (w *world) open(i int, eraseBy time.Time) {
	w.t.Helper()
	id := leaseID(i)
	salt, key := bytes.Repeat([]byte{1}, proof.KeySaltLen), bytes.Repeat([]byte{byte(i)}, proof.KeyLen)
	tenantSalt := bytes.Repeat([]byte{2}, proof.SaltLen)
	r := proof.Record{Type: proof.OPEN, LeaseID: id, Bytes: 1 << 20, Space: w.space(i), Cipher: proof.CipherXTS, KeyBits: proof.XTSBits,
		KeyMode: proof.ModeNode, KeyCommit: proof.KeyCommit(id, salt, key), TenantCommit: proof.TenantCommit(id, tenantSalt, "acme"),
		Beacon: w.n.Beacon(), Events: []proof.Event{{Type: proof.EventKeyGenerated, MonotonicNs: 1, BootID: bootID}}}
	if !eraseBy.IsZero() {
		r.EraseBy = proof.FormatTime(eraseBy)
	}
	if _, err := w.spool.append(r); err != nil {
		w.t.Fatal(err)
	}
	w.spool.leases[id] = lease.Lease{ID: id, Tenant: "acme", Proof: lease.Proof{KeySalt: hex.EncodeToString(salt), TenantSalt: hex.EncodeToString(tenantSalt)}}
}

// close writes the CLOSE of lease i.
func (w *world) close(i int) {
	w.t.Helper()
	id := leaseID(i)
	opened, err := proof.ParsePayload(w.spool.payloads[w.spool.of[id][0]-1])
	if err != nil {
		w.t.Fatal(err)
	}
	_, err = w.spool.append(proof.Record{Type: proof.CLOSE, LeaseID: id, OpenSeq: opened.NodeSeq, Bytes: 1 << 20, Space: w.space(i),
		Cipher: opened.Cipher, KeyBits: opened.KeyBits, KeyMode: opened.KeyMode, KeyCommit: opened.KeyCommit, TenantCommit: opened.TenantCommit,
		EraseBy: opened.EraseBy, Beacon: w.n.Beacon(), Result: proof.ResultOK, Drained: true, Events: []proof.Event{
			{Type: proof.EventGateClosed, MonotonicNs: 2, BootID: bootID}, {Type: proof.EventKeyDestroyed, MonotonicNs: 3, BootID: bootID}}})
	if err != nil {
		w.t.Fatal(err)
	}
	l := w.spool.leases[id]
	l.ClosedAt = w.now
	w.spool.leases[id] = l
}

// certificate checks what there is of lease i, as an auditor would, and returns its
// records.
func (w *world) certificate(i int, policy []byte) []proof.Record {
	w.t.Helper()
	b, err := w.n.Certificate(w.t.Context(), leaseID(i), false)
	if err != nil {
		w.t.Fatal(err)
	}
	if res, err := proof.Verify(b, policy, proof.Options{}); err != nil || res.LeaseID != leaseID(i) {
		w.t.Errorf("verifying the certificate of lease %d: %v", i, err)
	}
	bundle, err := proof.ParseBundle(b)
	if err != nil {
		w.t.Fatal(err)
	}
	records, err := bundle.Parsed()
	if err != nil {
		w.t.Fatal(err)
	}
	return records
}

// enrol writes the ENROL of the drive of all leases.
func (w *world) enrol() {
	w.t.Helper()
	r := proof.Record{Type: proof.ENROL, Bytes: 1 << 30, Space: []proof.Space{{Drive: strings.Repeat("d", 32), Extents: []proof.Range{{First: 0, Count: 1024}}}}}
	if _, err := w.spool.append(r); err != nil {
		w.t.Fatal(err)
	}
}
