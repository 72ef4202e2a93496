package server

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"connectrpc.com/connect"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/lease"
	"vacate/internal/node"
)

// A caller is who makes a call, and what it may do with it.
type caller struct {
	Peer
	role   Role
	access Access
}

type callerKey struct{}

// callerOf is the caller that the interceptor admitted.
func callerOf(ctx context.Context) caller {
	c, ok := ctx.Value(callerKey{}).(caller)
	if !ok {
		panic("server: a handler was reached past the interceptor")
	}
	return c
}

// sees tells whether a lease exists as far as the caller is concerned.
func (c caller) sees(l lease.Lease) bool {
	return c.access == All || c.access == Own && l.UID == c.UID
}

// An interceptor admits calls by role, turns errors into codes, and logs.
type interceptor struct{ s *Server }

func (i interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		start := time.Now()
		ctx, err := i.s.admit(ctx, req.Spec().Procedure)
		var res connect.AnyResponse
		if err == nil {
			res, err = next(ctx, req)
		}
		var out any
		if res != nil && err == nil {
			out = res.Any()
		}
		return res, i.s.answered(ctx, req.Spec().Procedure, start, req.Any(), out, err)
	}
}

func (i interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (i interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, c connect.StreamingHandlerConn) error {
		start := time.Now()
		ctx, err := i.s.admit(ctx, c.Spec().Procedure)
		if err == nil {
			err = next(ctx, c)
		}
		return i.s.answered(ctx, c.Spec().Procedure, start, nil, nil, err)
	}
}

// admit looks the call up in the table of roles.
func (s *Server) admit(ctx context.Context, procedure string) (context.Context, error) {
	p, ok := peerOf(ctx)
	if !ok {
		return ctx, &node.Error{Kind: Denied, Text: "the peer of this connection is unknown"}
	}
	c := caller{Peer: p, role: s.roleOf(p.UID)}
	c.access = accessTo(procedure, c.role)
	ctx = context.WithValue(ctx, callerKey{}, c)
	if c.access == No {
		return ctx, denied(c, procedure)
	}
	return ctx, nil
}

// answered logs a call that is over and returns its error as the client gets it.
func (s *Server) answered(ctx context.Context, procedure string, start time.Time, req, res any, err error) error {
	call := callName(procedure)
	code, took := "ok", time.Since(start)
	if err != nil {
		err = connectError(err)
		code = connect.CodeOf(err).String()
	}
	if s.cfg.Observe != nil {
		s.cfg.Observe(call, code, took)
	}
	level := slog.LevelDebug
	if mutating[procedure] {
		level = slog.LevelInfo
	}
	attrs := []slog.Attr{slog.String("call", call)}
	if c, ok := ctx.Value(callerKey{}).(caller); ok {
		attrs = append(attrs, slog.Uint64("uid", uint64(c.UID)), slog.Int("pid", int(c.PID)), slog.String("role", string(c.role)))
	}
	attrs = append(attrs, subject(req, res)...)
	attrs = append(attrs, slog.String("outcome", code), slog.Float64("duration_seconds", took.Seconds()))
	if err != nil {
		attrs = append(attrs, slog.String("error", messageOf(err)))
	}
	s.cfg.Log.LogAttrs(context.WithoutCancel(ctx), level, "call", attrs...)
	return err
}

// subject is what a call was about, for the log. A tenant's name and an
// idempotency key may be anything; slog quotes them.
func subject(req, res any) []slog.Attr {
	switch r := req.(type) {
	case *vacatev1.LeaseServiceOpenRequest:
		attrs := append([]slog.Attr{slog.String("tenant", r.GetTenant()), slog.Int64("size_bytes", r.GetSizeBytes())}, limitAttrs(r.GetLimits())...)
		if len(r.GetExports()) > 0 {
			attrs = append(attrs, slog.Any("exports", r.GetExports()), slog.Uint64("queues", uint64(r.GetQueues())), slog.Bool("read_only", r.GetReadOnly()))
		}
		if res, ok := res.(*vacatev1.LeaseServiceOpenResponse); ok {
			attrs = append(attrs, slog.String("lease_id", res.GetLease().GetId()))
		}
		if r.GetAttach() {
			attrs = append(attrs, slog.Bool("attach", true))
		}
		return attrs
	case *vacatev1.LeaseServiceLimitRequest:
		return append([]slog.Attr{slog.String("lease_id", r.GetId())}, limitAttrs(r.GetLimits())...)
	case *vacatev1.LeaseServiceResizeRequest:
		return []slog.Attr{slog.String("lease_id", r.GetId()), slog.Int64("size_bytes", r.GetSizeBytes()), slog.Bool("plan", r.GetPlan())}
	case *vacatev1.LeaseServiceCloseRequest:
		attrs := []slog.Attr{slog.String("lease_id", r.GetId())}
		if res, ok := res.(*vacatev1.LeaseServiceCloseResponse); ok {
			attrs = append(attrs, slog.String("state", stateName(res.GetLease().GetState())))
		}
		return attrs
	case *vacatev1.LeaseServiceAttachRequest:
		attrs := []slog.Attr{slog.String("lease_id", r.GetId())}
		if res, ok := res.(*vacatev1.LeaseServiceAttachResponse); ok {
			attrs = append(attrs, slog.String("device", res.GetLease().GetDevice()), slog.String("device_kind", res.GetLease().GetDeviceKind()))
		}
		return attrs
	case *vacatev1.LeaseServiceDetachRequest:
		return []slog.Attr{slog.String("lease_id", r.GetId())}
	case *vacatev1.DriveServiceEnrollRequest:
		return []slog.Attr{slog.String("drive", r.GetPath()), slog.Bool("plan", r.GetPlan()), slog.Bool("force", r.GetForce())}
	case *vacatev1.LeaseServicePrepareRequest:
		if res, ok := res.(*vacatev1.LeaseServicePrepareResponse); ok {
			return []slog.Attr{slog.String("lease_id", res.GetLeaseId())}
		}
	case *vacatev1.LeaseServiceReleaseKeyRequest:
		return []slog.Attr{slog.String("lease_id", r.GetId())}
	case *vacatev1.LeaseServiceRawBlocksRequest:
		return []slog.Attr{slog.String("lease_id", r.GetId()), slog.Int("blocks", len(r.GetBlocks()))}
	case *vacatev1.CertificateServiceGetRequest:
		return []slog.Attr{slog.String("lease_id", r.GetLeaseId())}
	case *vacatev1.CertificateServiceReceiptRequest:
		return []slog.Attr{slog.String("lease_id", r.GetLeaseId())}
	case *vacatev1.TenantServiceCloseRequest:
		attrs := []slog.Attr{slog.String("tenant", r.GetTenant()), slog.Bool("plan", r.GetPlan())}
		if res, ok := res.(*vacatev1.TenantServiceCloseResponse); ok {
			attrs = append(attrs, slog.Int("leases", len(res.GetLeases())), slog.Int("failures", len(res.GetFailures())))
		}
		return attrs
	case *vacatev1.TrustServiceRotateRequest:
		return []slog.Attr{slog.String("key_role", r.GetRole()), slog.Bool("plan", r.GetPlan())}
	case *vacatev1.NodeServiceStopRequest:
		return []slog.Attr{slog.Bool("erase", r.GetErase()), slog.Bool("plan", r.GetPlan())}
	}
	return nil
}

// limitAttrs are those of the limits that are set.
func limitAttrs(l *vacatev1.Limits) (attrs []slog.Attr) {
	for _, a := range []slog.Attr{slog.Uint64("iops", l.GetIops()), slog.Uint64("iops_burst", l.GetIopsBurst()),
		slog.Uint64("bandwidth_bytes", l.GetBandwidthBytes()), slog.Uint64("bandwidth_burst_bytes", l.GetBandwidthBurstBytes())} {
		if a.Value.Uint64() != 0 {
			attrs = append(attrs, a)
		}
	}
	return attrs
}

// callName is "Lease.Open" for "/vacate.v1.LeaseService/Open".
func callName(procedure string) string {
	name := strings.TrimPrefix(procedure, "/vacate.v1.")
	return strings.Replace(name, "Service/", ".", 1)
}

func stateName(s vacatev1.LeaseState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "LEASE_STATE_"))
}

// messageOf is an error's text without connect's code in front.
func messageOf(err error) string {
	var ce *connect.Error
	if errors.As(err, &ce) {
		return ce.Message()
	}
	return err.Error()
}
