package client_test

import (
	"context"
	"fmt"
	"log/slog"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/proof"
)

// A tenant moves in, works and moves out.
func Example() {
	ctx := context.Background()
	c := client.Dial(client.DefaultSocket)
	defer c.Close()

	res, err := c.Leases.Open(ctx, &vacatev1.LeaseServiceOpenRequest{SizeBytes: 10 << 30, Tenant: "acme"})
	if err != nil {
		slog.Error("opening a lease", "error", err, "next", client.ProblemOf(err).GetNext())
		return
	}
	lease := res.GetLease()
	fmt.Println("give this to any NBD client:", lease.GetExports()[0].GetUri())

	closed, err := c.Leases.Close(ctx, &vacatev1.LeaseServiceCloseRequest{Id: lease.GetId()})
	if err != nil {
		slog.Error("closing the lease", "error", err)
		return
	}
	e := closed.GetLease().GetErasure()
	fmt.Println("nanoseconds to the key's end:", e.GetGateToKeyDestroyedNs(), "read back:", e.GetReadBack())
}

// A tenant that left gets its certificate, and judges it by the policy that it
// pinned before, not by the daemon's word.
func Example_certificate() {
	ctx := context.Background()
	c := client.Dial(client.DefaultSocket)
	defer c.Close()

	pinned, err := c.Trust.Policy(ctx, &vacatev1.TrustServicePolicyRequest{}) // before the lease; then kept
	if err != nil {
		slog.Error("getting the policy", "error", err)
		return
	}
	got, err := c.Certificates.Get(ctx, &vacatev1.CertificateServiceGetRequest{LeaseId: "abcdefghijklmnop", Wait: true})
	if err != nil {
		slog.Error("getting the certificate", "error", err, "next", client.ProblemOf(err).GetNext())
		return
	}
	result, err := proof.Verify(got.GetBundle(), pinned.GetPolicy(), proof.Options{})
	if err != nil {
		fmt.Println("not valid:", err) // a *proof.VerifyError, which names the step
		return
	}
	for _, c := range result.Claims {
		fmt.Println(c.Name, "does not prove", c.DoesNotProve)
	}
}
