package e2e

import (
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/internal/translog/witness"
	"vacate/proof"
	"vacate/test/daemon"
)

// withinClose is how long after a close the certificate may take, with a witness on
// the same machine.
const withinClose = 3 * time.Second

// read returns a file.
func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// logKey is the log's key in the policy that --dev leaves.
func logKey(t *testing.T, d *daemon.Daemon) string {
	t.Helper()
	for line := range strings.Lines(string(read(t, filepath.Join(d.Dir, "policy")))) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "log" {
			return f[1]
		}
	}
	t.Fatal("the policy names no log")
	return ""
}

// startWitnessed starts a daemon whose log a witness cosigns, which the test runs.
func startWitnessed(t *testing.T) *daemon.Daemon {
	t.Helper()
	d := start(t, daemon.Options{})
	key := logKey(t, d)
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	<-d.Done()
	w, err := witness.New(witness.Config{Dir: filepath.Join(shortDir(t), "w"), Name: "witness.test/1", Logs: []string{key}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() }) //nolint:errcheck // nothing is left to say
	srv := httptest.NewServer(w.Handler())
	t.Cleanup(srv.Close)
	policy := filepath.Join(shortDir(t), "witnesses")
	text := fmt.Sprintf("witness w %s %s\nquorum w\n", w.VerifierKey(), srv.URL)
	if err := os.WriteFile(policy, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return startIn(t, d.Bin, d.Dir, daemon.Options{Env: []string{"VACATE_PROOF__WITNESS_POLICY=" + policy}})
}

// TestCertificateSoon: a lease's certificate is there within seconds of its close,
// and says what the policy, pinned before, lets anyone check offline.
func TestCertificateSoon(t *testing.T) {
	for _, witnessed := range []bool{false, true} {
		t.Run(fmt.Sprintf("witnessed %v", witnessed), func(t *testing.T) {
			var d *daemon.Daemon
			if witnessed {
				d = startWitnessed(t)
			} else {
				d = start(t, daemon.Options{})
			}
			policy := read(t, filepath.Join(d.Dir, "policy"))
			api := client.Dial(filepath.Join(d.Dir, "vacate.sock"))
			defer api.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			var took []time.Duration
			for range 5 {
				opened, err := api.Leases.Open(ctx, &vacatev1.LeaseServiceOpenRequest{SizeBytes: 16 << 20, Tenant: "acme"})
				if err != nil {
					t.Fatal(err)
				}
				id := opened.GetLease().GetId()
				receipt, err := proof.ParseReceipt(opened.GetReceipt())
				if err != nil {
					t.Fatalf("receipt: %v (%s)", err, opened.GetReceiptWhy())
				}
				if _, err := api.Leases.Close(ctx, &vacatev1.LeaseServiceCloseRequest{Id: id}); err != nil {
					t.Fatal(err)
				}
				closed := time.Now()
				got, err := api.Certificates.Get(ctx, &vacatev1.CertificateServiceGetRequest{LeaseId: id, Wait: true})
				if err != nil {
					t.Fatal(err)
				}
				took = append(took, time.Since(closed))
				res, err := proof.Verify(got.GetBundle(), policy, proof.Options{Opened: receipt})
				if err != nil {
					t.Fatalf("%v\n%s", err, got.GetBundle())
				}
				if res.LeaseID != id || res.Result != proof.ResultOK || !res.Opened {
					t.Errorf("verified lease %s, %s, opened %v", res.LeaseID, res.Result, res.Opened)
				}
				claimed := slices.ContainsFunc(res.Claims, func(c proof.Claim) bool { return c.Name == proof.ClaimWitnessed })
				if claimed != witnessed {
					t.Errorf("claim %s: %v", proof.ClaimWitnessed, claimed)
				}
			}
			t.Logf("certificates were there %v after the close", took)
			slices.Sort(took) // a busy machine may hold one up
			if most := took[len(took)-2]; most > withinClose {
				t.Errorf("all certificates but one took up to %v, more than %v", most, withinClose)
			}
		})
	}
}
