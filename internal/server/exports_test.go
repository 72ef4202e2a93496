package server

import (
	"testing"

	"connectrpc.com/connect"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/lease"
)

// TestExports: what is asked for reaches the node, and what there is is shown.
func TestExports(t *testing.T) {
	d := start(t)
	c := d.as(uidOperator)
	for _, tt := range []struct {
		kinds  []string
		queues uint32
		ro     bool
		want   lease.Exports
		shown  []*vacatev1.Export
	}{
		{nil, 0, false, lease.Exports{}, []*vacatev1.Export{{Kind: "nbd"}}},
		{[]string{"nbd"}, 0, false, lease.Exports{}, []*vacatev1.Export{{Kind: "nbd"}}},
		{[]string{"vhost-user"}, 64, true, lease.Exports{NoNBD: true, VhostUser: true, Queues: 64, ReadOnly: true},
			[]*vacatev1.Export{{Kind: "vhost-user", Queues: 64, ReadOnly: true}}},
		{[]string{"vhost-user", "nbd"}, 2, false, lease.Exports{VhostUser: true, Queues: 2},
			[]*vacatev1.Export{{Kind: "nbd"}, {Kind: "vhost-user", Queues: 2}}},
		{nil, 3, true, lease.Exports{Queues: 3, ReadOnly: true}, []*vacatev1.Export{{Kind: "nbd"}}}, // the node refuses it
	} {
		res, err := c.Leases.Open(t.Context(), &vacatev1.LeaseServiceOpenRequest{SizeBytes: 4096, Exports: tt.kinds, Queues: tt.queues, ReadOnly: tt.ro})
		if err != nil {
			t.Fatal(err)
		}
		if got := d.node.opened[len(d.node.opened)-1].Exports; got != tt.want {
			t.Errorf("%v: the node was asked for %+v, want %+v", tt.kinds, got, tt.want)
		}
		got := res.GetLease().GetExports()
		if len(got) != len(tt.shown) {
			t.Fatalf("%v: shown %v", tt.kinds, got)
		}
		for i, e := range got {
			want := tt.shown[i]
			want.Socket = "/run/a b/leases/" + res.GetLease().GetId() + "/" + want.GetKind() + ".sock"
			if want.GetKind() == "nbd" {
				want.Uri = "nbd+unix:///?socket=/run/a%20b/leases/" + res.GetLease().GetId() + "/nbd.sock"
			}
			if e.String() != want.String() {
				t.Errorf("shown %v, want %v", e, want)
			}
		}
	}
	asked := len(d.node.opened)
	for _, req := range []*vacatev1.LeaseServiceOpenRequest{
		{Exports: []string{"ublk"}}, {Exports: []string{"nbd", "nbd"}}, {Exports: []string{""}},
		{Exports: []string{"vhost-user"}, Queues: 65}, {Exports: []string{"vhost-user"}, Queues: 1<<32 - 1},
	} {
		req.SizeBytes = 4096
		if _, err := c.Leases.Open(t.Context(), req); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%v: %v", req, err)
		}
	}
	if len(d.node.opened) != asked {
		t.Error("the node was asked for what makes no sense")
	}
}
