package notary

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"vacate/internal/keyring"
	"vacate/internal/translog"
	"vacate/internal/translog/witness"
	"vacate/proof"
)

// TestRealLog brings records of many leases through a log in a folder, with a witness,
// and has each certificate verified as an auditor would.
func TestRealLog(t *testing.T) {
	w := newWorld(t, true)
	keys, err := keyring.Open(filepath.Join(w.dir, "keys"), keyring.Options{LogName: origin})
	if err != nil {
		t.Fatal(err)
	}
	key := keys.Infos()[2].Public
	wit, err := witness.New(witness.Config{Dir: filepath.Join(w.dir, "witness"), Name: "witness.test/1", Logs: []string{key}})
	if err != nil {
		t.Fatal(err)
	}
	defer wit.Close() //nolint:errcheck // nothing is left to say
	srv := httptest.NewServer(wit.Handler())
	defer srv.Close()
	lines := []byte("witness w " + wit.VerifierKey() + " " + srv.URL + "\nquorum w\n")
	logs := slog.New(slog.NewTextHandler(t.Output(), nil))
	log, err := translog.Open(t.Context(), translog.Config{Dir: filepath.Join(w.dir, "log"), Origin: origin, Signer: keys.Log(), Witnesses: lines, Log: logs})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close() //nolint:errcheck // likewise
	w.n, err = New(Config{Spool: w.spool, Append: w.spool.append, Keys: keys, Log: log, Trust: Trust{Log: "log " + key, Witnesses: lines},
		Dir: filepath.Join(w.dir, "certificates"), Logs: logs})
	if err != nil {
		t.Fatal(err)
	}
	w.run()
	defer func() { w.stop(); w.stop = func() {} }()
	// One lease is open while there is a beacon, the others as fast as they come.
	w.enrol()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := w.n.wait(ctx, func() (bool, error) { return w.n.Beacon() != nil, nil }); err != nil {
		t.Fatalf("waiting for a beacon: %v: %s", err, w.n.lastError())
	}
	const leases = 16
	begin := time.Now()
	for i := range leases {
		w.open(i, time.Time{})
	}
	for i := range leases {
		w.close(i)
	}
	closed := time.Now()
	for i := range leases {
		b, err := w.n.Certificate(ctx, leaseID(i), true)
		if err != nil {
			t.Fatal(err)
		}
		res, err := proof.Verify(b, w.n.Policy(), proof.Options{})
		if err != nil {
			t.Fatalf("lease %d: %v\n%s", i, err, b)
		}
		if len(res.Witnesses) != 1 || res.LeaseID != leaseID(i) {
			t.Errorf("lease %d: witnesses %v of lease %s", i, res.Witnesses, res.LeaseID)
		}
	}
	t.Logf("%d leases came and went in %v; all certificates were there %v later", leases, closed.Sub(begin), time.Since(closed))
}
