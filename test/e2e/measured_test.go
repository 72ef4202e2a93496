package e2e

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/internal/tpm/tpmtest"
	"vacate/proof"
	"vacate/test/daemon"
)

// TestMeasured: with a TPM the node's key is not in a file, and a certificate says
// which boot made its records. After another boot the policy of before still
// holds, since nothing else was started.
func TestMeasured(t *testing.T) {
	m := tpmtest.Start(t)
	o := daemon.Options{Env: []string{"VACATE_PROOF__TPM=" + m.Path(), "VACATE_PROOF__MEASURED=true", "VACATE_PROOF__NODE_KEY=tpm"}}
	d := start(t, o)
	policy := read(t, filepath.Join(d.Dir, "policy"))
	if !strings.Contains(string(policy), "\ntpm ") || !strings.Contains(string(policy), " p256:") {
		t.Fatalf("the policy pins no TPM, or no key of it:\n%s", policy)
	}
	check(t, d, policy)

	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	<-d.Done()
	m.Reboot()
	d = startIn(t, d.Bin, d.Dir, o)
	check(t, d, policy)

	// The key is in no file: what is there is noise to another TPM.
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	<-d.Done()
	o.Env[0] = "VACATE_PROOF__TPM=" + tpmtest.Start(t).Path()
	if other, err := daemon.Start(d.Bin, d.Dir, o); err == nil {
		other.Kill()
		t.Error("the daemon started with another TPM than that of its key")
	} else if !strings.Contains(err.Error(), "only with the TPM that made it") {
		t.Errorf("refused, and not for the TPM: %v", err)
	}
}

// check opens and closes a lease, and verifies its certificate.
func check(t *testing.T, d *daemon.Daemon, policy []byte) {
	t.Helper()
	api := client.Dial(filepath.Join(d.Dir, "vacate.sock"))
	defer api.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	opened, err := api.Leases.Open(ctx, &vacatev1.LeaseServiceOpenRequest{SizeBytes: 16 << 20, Tenant: "acme"})
	if err != nil {
		t.Fatal(err)
	}
	id := opened.GetLease().GetId()
	if _, err := api.Leases.Close(ctx, &vacatev1.LeaseServiceCloseRequest{Id: id}); err != nil {
		t.Fatal(err)
	}
	got, err := api.Certificates.Get(ctx, &vacatev1.CertificateServiceGetRequest{LeaseId: id, Wait: true})
	if err != nil {
		t.Fatal(err)
	}
	res, err := proof.Verify(got.GetBundle(), policy, proof.Options{})
	if err != nil {
		t.Fatalf("%v\n%s", err, got.GetBundle())
	}
	if !slices.ContainsFunc(res.Claims, func(c proof.Claim) bool { return c.Name == proof.ClaimMeasured }) {
		t.Errorf("not measured: %+v, %q", res.Claims, res.NotProven)
	}
	fact := func(f proof.Named) bool { return strings.Contains(f.Name, "resets") && f.Value == "none" }
	if !slices.ContainsFunc(res.Facts, fact) {
		t.Errorf("facts %+v", res.Facts)
	}
}
