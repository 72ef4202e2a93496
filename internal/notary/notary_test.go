package notary

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vacate/internal/keyring"
	"vacate/proof"
)

func TestCertificate(t *testing.T) {
	for _, witnessed := range []bool{false, true} {
		t.Run(fmt.Sprintf("witnessed %v", witnessed), func(t *testing.T) {
			w := newWorld(t, witnessed)
			w.open(0, w.now.Add(time.Minute)) // without a beacon: there is none yet
			w.mustPass()
			if w.n.Beacon() == nil {
				t.Fatal("no beacon after the first checkpoint")
			}
			w.open(1, w.now.Add(-time.Minute))
			w.mustPass()
			w.close(0)
			w.close(1)
			w.mustPass()
			for i, beacons := range []bool{false, true} {
				got := w.certificate(i, w.n.Policy())
				if len(got) != 2 || got[0].Type != proof.OPEN || got[1].Type != proof.CLOSE || (got[0].Beacon != nil) != beacons {
					t.Errorf("the certificate of lease %d has %+v", i, got)
				}
				if _, final := w.n.State(leaseID(i)); !final {
					t.Errorf("the certificate of lease %d is not final", i)
				}
			}
			st, err := w.n.Status()
			if err != nil {
				t.Fatal(err)
			}
			if st.Deadlines != (Deadlines{Met: 1, Missed: 1}) || st.Certificates != 2 || st.Quorum != true || st.Witnessed != witnessed || st.Spool.Depth() != 0 {
				t.Errorf("status %+v", st)
			}
			w.start()
			if st, err = w.n.Status(); err != nil || st.Deadlines != (Deadlines{Met: 1, Missed: 1}) || st.Certificates != 2 {
				t.Errorf("after a restart, status %+v, %v", st, err)
			}
			left, err := filepath.Glob(filepath.Join(w.dir, "certificates", "work", "lease-*"))
			if err != nil || len(left) != 0 {
				t.Errorf("left of certificates that are written: %v, %v", left, err)
			}
		})
	}
}

// TestQuorumComes: NT3.
func TestQuorumComes(t *testing.T) {
	w := newWorld(t, true)
	w.log.away = true
	w.open(0, time.Time{})
	w.close(0)
	w.mustPass()
	if w.n.Beacon() != nil {
		t.Error("a checkpoint without quorum is a beacon")
	}
	without, err := w.n.Certificate(t.Context(), leaseID(0), false)
	if err != nil {
		t.Fatal(err)
	}
	var failed *proof.VerifyError
	if _, err := proof.Verify(without, w.n.Policy(), proof.Options{}); !errors.As(err, &failed) || failed.Step != proof.StepWitnessed {
		t.Errorf("a certificate without quorum: %v", err)
	}
	if _, final := w.n.State(leaseID(0)); final || w.spool.done[leaseID(0)] {
		t.Error("a certificate without quorum is final")
	}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := w.n.Certificate(short, leaseID(0), true); !errors.Is(err, ErrPending) {
		t.Errorf("waiting for the quorum: %v", err)
	}
	w.start()
	w.log.away = false
	w.mustPass()
	with, err := w.n.Certificate(t.Context(), leaseID(0), true)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(with, without) || !strings.Contains(string(with), witnessName) || strings.Contains(string(without), witnessName) {
		t.Error("the certificate was not replaced by one with the quorum")
	}
	if names, err := filepath.Glob(filepath.Join(w.dir, "certificates", "*.json")); err != nil || len(names) != 1 {
		t.Errorf("certificates: %v, %v", names, err)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "certificates", leaseID(0)+partialSuffix), without, 0o600); err != nil { // as a crash leaves it
		t.Fatal(err)
	}
	w.start()
	if st, err := w.n.Status(); err != nil || st.Certificates != 1 || st.NoQuorum != 0 {
		t.Errorf("after a crash between the two: %+v, %v", st, err)
	}
}

// TestL6SentAfterLogged: no record counts as logged that the log does not have. A
// crash in between would lose it.
func TestL6SentAfterLogged(t *testing.T) {
	w := newWorld(t, false)
	w.open(0, time.Time{})
	w.log.broken = errors.New("no log")
	if err := w.pass(); err == nil {
		t.Fatal("sent to a log that is not there")
	}
	if len(w.spool.placed) != 0 {
		t.Errorf("%d records count as logged, and the log has none", len(w.spool.placed))
	}
	w.log.broken = nil
	w.start()
	w.mustPass()
	if len(w.log.leaves) != 1 || len(w.spool.placed) != 1 {
		t.Errorf("the log has %d records, the journal says %d", len(w.log.leaves), len(w.spool.placed))
	}
}

// TestCrashes stops before each step and starts anew: NT1, and each record is in the
// log once.
func TestCrashes(t *testing.T) {
	w := newWorld(t, true)
	ctx := t.Context()
	w.open(0, time.Time{})
	steps := []func() error{
		func() error { _, err := w.n.sign(ctx); return err },
		func() error { // sent, and a crash before it was noted
			all, err := w.spool.Unsent(9)
			if err == nil {
				_, err = w.log.Add(ctx, []leaf{{NodeID: nodeID, NodeSeq: all[0].Seq, Envelope: all[0].Envelope}})
			}
			return err
		},
		func() error { _, err := w.n.send(ctx); return err },
		func() error { _, err := w.n.look(ctx); return err },
	}
	for round := range 2 {
		for i, step := range steps {
			if err := step(); err != nil {
				t.Fatalf("round %d, step %d: %v", round, i, err)
			}
			w.start()
		}
		if round == 0 {
			w.close(0)
		}
	}
	if got := w.certificate(0, w.n.Policy()); len(got) != 2 {
		t.Errorf("the certificate has %+v", got)
	}
	if len(w.log.leaves) != 2 {
		t.Errorf("the log has %d records, want 2", len(w.log.leaves))
	}
}

func TestRotationInTheMiddle(t *testing.T) {
	for _, crash := range []bool{false, true} {
		w := newWorld(t, true)
		w.open(0, time.Time{})
		w.mustPass()
		before := w.n.Policy()
		if crash { // the record is written, and the key is not active
			change, err := w.keys.Stage(keyring.Node)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.spool.append(proof.Record{Type: proof.KEYS, Keys: []proof.KeyChange{change}}); err != nil {
				t.Fatal(err)
			}
			w.start()
		} else if _, seq, err := w.n.Rotate(keyring.Node); err != nil || seq != 2 {
			t.Fatalf("Rotate = %d, %v", seq, err)
		}
		w.close(0)
		w.mustPass()
		got := w.certificate(0, before) // the tenant pinned the old key
		w.certificate(0, w.n.Policy())
		if len(got) != 3 || got[1].Type != proof.KEYS {
			t.Fatalf("the certificate has %+v", got)
		}
		old, next := got[1].Keys[0].Old, got[1].Keys[0].New
		for i, want := range [][]string{{old}, {old, next}, {next}} {
			e, err := proof.ParseEnvelope(w.spool.signed[i])
			if err != nil || len(e.Signatures) != len(want) {
				t.Fatalf("record %d: %v, %v", i+1, e.Signatures, err)
			}
			for _, text := range want {
				k, err := proof.ParsePublicKey(text)
				if err != nil {
					t.Fatal(err)
				}
				if err := e.VerifyKey(k); err != nil {
					t.Errorf("record %d: %v", i+1, err)
				}
			}
		}
		if after := string(w.n.Policy()); strings.Contains(string(before), next) || !strings.Contains(after, next) || !strings.Contains(after, old) {
			t.Errorf("policies: before\n%s\nafter\n%s", before, after)
		} else if w.renewed != after {
			t.Errorf("told of the policy\n%s\nwhich is\n%s", w.renewed, after)
		}
	}
}

func TestRotationDropped(t *testing.T) {
	w := newWorld(t, false)
	if _, err := w.keys.Stage(keyring.Node); err != nil {
		t.Fatal(err)
	}
	w.start() // the crash came before the record
	if len(w.keys.Staged()) != 0 || len(w.keys.Infos()) != 3 {
		t.Errorf("keys: %+v", w.keys.Infos())
	}
}

func TestReceipt(t *testing.T) {
	w := newWorld(t, false)
	w.open(0, time.Time{})
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := w.n.Receipt(short, leaseID(0)); !errors.Is(err, ErrNotSigned) {
		t.Errorf("a receipt before the signature: %v", err)
	}
	w.run()
	b, err := w.n.Receipt(t.Context(), leaseID(0))
	if err != nil {
		t.Fatal(err)
	}
	r, err := proof.ParseReceipt(b)
	if err != nil {
		t.Fatal(err)
	}
	if r.Tenant != "acme" || string(r.Envelope) != string(w.spool.signed[0]) {
		t.Errorf("receipt %+v", r)
	}
}

// TestLogAway: the spool fills up loudly, and drains.
func TestLogAway(t *testing.T) {
	w := newWorld(t, false)
	w.log.broken = errors.New("no route to the log")
	w.run()
	for i := range 4 {
		w.open(i, time.Time{})
		w.close(i)
	}
	if err := w.n.wait(t.Context(), func() (bool, error) { st, err := w.spool.SpoolStats(); return st.Signed == 8, err }); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	for err := w.n.Full(); !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "no route"); err = w.n.Full() {
		if time.Now().After(deadline) {
			t.Fatalf("Full = %v", err)
		}
		time.Sleep(time.Millisecond)
	}
	w.log.mu.Lock()
	w.log.broken = nil
	w.log.mu.Unlock()
	for i := range 4 {
		if _, err := w.n.Certificate(t.Context(), leaseID(i), true); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.n.Full(); err != nil {
		t.Error(err)
	}
}

// TestUnproven: a certificate is never made of proofs that do not hold, as with a log
// whose tiles are damaged: it could not be replaced (NT4), and the journal would forget
// what it is made of.
func TestUnproven(t *testing.T) {
	w := newWorld(t, true)
	w.open(0, time.Time{})
	w.close(0)
	w.log.twisted = true
	if err := w.pass(); err == nil || !strings.Contains(err.Error(), "certificate of lease "+leaseID(0)) {
		t.Errorf("with proofs that do not hold: %v", err)
	}
	if size, _ := w.n.State(leaseID(0)); size != 0 || w.spool.done[leaseID(0)] {
		t.Errorf("a certificate of %d bytes was written, the journal may forget: %v", size, w.spool.done[leaseID(0)])
	}
	w.log.twisted = false
	w.mustPass()
	w.certificate(0, w.n.Policy())
}

// TestAnotherLog: a lease that was open while the node was given another log has no
// certificate, and does not hold up those of others.
func TestAnotherLog(t *testing.T) {
	w := newWorld(t, false)
	w.open(0, time.Time{})
	w.mustPass()
	w.log.hashes, w.log.leaves = nil, nil
	if _, err := w.log.Add(t.Context(), []leaf{{Envelope: []byte("another node's")}}); err != nil {
		t.Fatal(err)
	}
	work := filepath.Join(w.dir, "certificates", workDir)
	if err := os.RemoveAll(work); err != nil { // the beacons of the log before
		t.Fatal(err)
	}
	if err := os.Mkdir(work, 0o700); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.close(0)
	w.open(1, time.Time{})
	w.close(1)
	w.mustPass()
	if size, _ := w.n.State(leaseID(0)); size != 0 || !w.spool.done[leaseID(0)] {
		t.Errorf("a certificate over two logs has %d bytes, it is waited for: %v", size, !w.spool.done[leaseID(0)])
	}
	w.certificate(1, w.n.Policy())
}

func TestForkedLog(t *testing.T) {
	w := newWorld(t, false)
	w.open(0, time.Time{})
	w.open(1, time.Time{})
	w.mustPass()
	w.log.hashes, w.log.leaves = nil, nil // somebody put an empty folder in its place
	if _, err := w.log.Add(t.Context(), []leaf{{Envelope: []byte("another")}}); err != nil {
		t.Fatal(err)
	}
	if err := w.pass(); err == nil || !strings.Contains(err.Error(), "copy") {
		t.Errorf("a log that was put back: %v", err)
	}
	if _, err := w.log.Add(t.Context(), []leaf{{Envelope: []byte("and one")}, {Envelope: []byte("more")}}); err != nil {
		t.Fatal(err)
	}
	w.start()
	if err := w.pass(); err == nil || !strings.Contains(err.Error(), "changed what it had") {
		t.Errorf("a log with another past: %v", err)
	}
}

func TestExpiry(t *testing.T) {
	w := newWorld(t, false)
	w.open(0, w.now)
	w.close(0)
	w.mustPass()
	w.now = time.Now().Add(7 * 366 * 24 * time.Hour)
	w.mustPass()
	if _, err := w.n.Certificate(t.Context(), leaseID(0), false); !errors.Is(err, ErrPending) {
		t.Errorf("a certificate of seven years ago: %v", err)
	}
	left, err := os.ReadDir(filepath.Join(w.dir, "certificates"))
	if err != nil || len(left) != 1 {
		t.Errorf("left are %v, %v; want the work folder", left, err)
	}
}

// TestExpiryByWitnesses: a node's clock that is set years ahead loses no certificate
// while there are witnesses who know better.
func TestExpiryByWitnesses(t *testing.T) {
	w := newWorld(t, true)
	w.open(0, w.now)
	w.close(0)
	w.mustPass()
	opened := w.now
	w.log.clock = func() time.Time { return opened }
	w.now = time.Now().Add(7 * 366 * 24 * time.Hour)
	w.mustPass()
	if _, err := w.n.Certificate(t.Context(), leaseID(0), false); err != nil {
		t.Fatalf("with the clock ahead: %v", err)
	}
	w.log.clock = func() time.Time { return w.now }
	w.open(1, time.Time{}) // the log has something to sign again
	w.mustPass()
	w.mustPass()
	if _, err := w.n.Certificate(t.Context(), leaseID(0), false); !errors.Is(err, ErrPending) {
		t.Errorf("when seven years have passed: %v", err)
	}
}
