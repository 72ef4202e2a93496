package server

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/limit"
	"vacate/internal/node"
)

func TestLeaseLimits(t *testing.T) {
	var out bytes.Buffer
	d := start(t, func(c *Config) { c.Log = slog.New(slog.NewJSONHandler(&out, nil)) })
	c := d.as(uidOperator)
	all := &vacatev1.Limits{Iops: 500, IopsBurst: 3000, BandwidthBytes: 200 << 20, BandwidthBurstBytes: 1 << 30}
	want := limit.Limits{IOPS: 500, IOPSBurst: 3000, Bytes: 200 << 20, BytesBurst: 1 << 30}
	opened, err := c.Leases.Open(t.Context(), &vacatev1.LeaseServiceOpenRequest{SizeBytes: 4096, Limits: all})
	if err != nil || !proto.Equal(opened.GetLease().GetLimits(), all) || d.node.opened[0].Limits != want {
		t.Errorf("opened %v, %v; the node was asked for %+v", opened, err, d.node.opened)
	}
	limited, err := c.Leases.Limit(t.Context(), &vacatev1.LeaseServiceLimitRequest{Id: idOwn, Limits: all})
	if err != nil || limited.GetLease().GetId() != idOwn || !proto.Equal(limited.GetLease().GetLimits(), all) {
		t.Errorf("limited %v, %v", limited, err)
	}
	limited, err = c.Leases.Limit(t.Context(), &vacatev1.LeaseServiceLimitRequest{Id: idOwn})
	if err != nil || limited.GetLease().Limits != nil {
		t.Errorf("limits taken away: %v, %v", limited, err)
	}
	if got := d.node.limited; !slices.Equal(got, []limit.Limits{want, {}}) {
		t.Errorf("the node was asked for %+v", got)
	}
	d.node.fail = &node.Error{Kind: node.Refused, Text: "it is closing"}
	if _, err := c.Leases.Limit(t.Context(), &vacatev1.LeaseServiceLimitRequest{Id: idOwn}); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("refused: %v", err)
	}
	for _, id := range []string{"", "nonsense", "zzzzzzzzzzzzzzzz"} {
		if _, err := c.Leases.Limit(t.Context(), &vacatev1.LeaseServiceLimitRequest{Id: id}); connect.CodeOf(err) != connect.CodeNotFound {
			t.Errorf("limiting %q: %v", id, err)
		}
	}
	d.stop()
	d.wait()
	const line = `"call":"Lease.Limit","uid":40,"pid":99,"role":"operator","lease_id":"aaaaaaaaaaaaaaaa","iops":500,"iops_burst":3000,` +
		`"bandwidth_bytes":209715200,"bandwidth_burst_bytes":1073741824,"outcome":"ok"`
	if !strings.Contains(out.String(), line) {
		t.Errorf("the log says\n%swant a line with\n%s", out.String(), line)
	}
}
