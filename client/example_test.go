package client_test

import (
	"context"
	"fmt"
	"log/slog"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
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
