package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"google.golang.org/protobuf/types/known/timestamppb"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/node"
)

// drives answers DriveService.
type drives struct{ s *Server }

// Enroll implements DriveService. A caller that goes away does not stop it.
func (h drives) Enroll(ctx context.Context, req *vacatev1.DriveServiceEnrollRequest) (*vacatev1.DriveServiceEnrollResponse, error) {
	if req.GetConfirm() != "" && !req.GetForce() {
		return nil, &node.Error{Kind: node.Invalid, Object: req.GetPath(), Text: "a confirmation was given without force", Next: "give both, or neither"}
	}
	e, err := h.s.cfg.Node.Enroll(context.WithoutCancel(ctx), node.EnrollRequest{
		Path: req.GetPath(), Plan: req.GetPlan(), Force: req.GetForce(), Confirm: req.GetConfirm()})
	if err != nil {
		return nil, err
	}
	return &vacatev1.DriveServiceEnrollResponse{Drive: driveMessage(e.Drive), Findings: findingMessages(e.Findings), Enrolled: e.Enrolled}, nil
}

// List implements DriveService.
func (h drives) List(ctx context.Context, _ *vacatev1.DriveServiceListRequest) (*vacatev1.DriveServiceListResponse, error) {
	res := &vacatev1.DriveServiceListResponse{}
	for _, d := range h.s.cfg.Node.Drives(ctx) {
		res.Drives = append(res.Drives, driveMessage(d))
	}
	return res, nil
}

// Get implements DriveService.
func (h drives) Get(ctx context.Context, req *vacatev1.DriveServiceGetRequest) (*vacatev1.DriveServiceGetResponse, error) {
	d, err := h.s.cfg.Node.Drive(ctx, req.GetDrive())
	if err != nil {
		return nil, err
	}
	return &vacatev1.DriveServiceGetResponse{Drive: driveMessage(d)}, nil
}

// nodes answers NodeService.
type nodes struct{ s *Server }

// Status implements NodeService.
func (h nodes) Status(ctx context.Context, _ *vacatev1.NodeServiceStatusRequest) (*vacatev1.NodeServiceStatusResponse, error) {
	st := h.s.cfg.Node.Status()
	res := &vacatev1.NodeServiceStatusResponse{
		Version: h.s.cfg.Processes.Control, KeeperVersion: h.s.cfg.Processes.Keeper, LastUpgrade: h.s.upgradeOutcome(),
		Binary: h.s.cfg.Processes.Binary, NodeId: st.NodeID, StartedAt: timestamppb.New(st.StartedAt), Ready: st.Ready, ReadyWhy: st.ReadyWhy,
		Pid: int32(os.Getpid()), Leases: map[string]uint32{}, Drives: uint32(st.Drives), CapacityBytes: st.CapacityBytes, FreeBytes: st.FreeBytes,
		Warnings: append(st.Warnings, h.s.cfg.Warnings...), DangerZone: h.s.cfg.DangerZone,
	}
	hello, count := h.s.devices().Status(ctx)
	res.Devices = &vacatev1.Devices{Kind: hello.Kind, Why: hello.Why, Count: uint32(count)}
	for state, n := range st.Leases {
		res.Leases[string(state)] = uint32(n)
	}
	// The engine is shown if it answers now.
	if stats, err := h.s.cfg.Node.Stats(ctx); err == nil {
		e := st.Engine
		res.Engine = &vacatev1.Engine{Pid: int32(e.PID), Id: e.EngineID, KeeperId: e.KeeperID, BootId: e.BootID, KeyStore: e.KeyStore,
			Buffers: e.Buffers, Cipher: e.Cipher, MaxConnections: uint32(e.MaxConns), MaxLeases: uint32(e.Slots),
			Version: e.Version, Generation: e.Generation, Sandbox: e.Sandbox}
		if e.Shares != "" {
			res.Warnings = append(res.Warnings, "tenants' shares of keys are refused: "+e.Shares)
		}
		res.Connections = uint32(stats.Connections)
	}
	return res, nil
}

// Stop implements NodeService. A caller that goes away does not stop it.
func (h nodes) Stop(ctx context.Context, req *vacatev1.NodeServiceStopRequest) (*vacatev1.NodeServiceStopResponse, error) {
	res := &vacatev1.NodeServiceStopResponse{}
	if req.GetPlan() {
		for _, l := range h.s.cfg.Node.List(false) {
			if !l.State.Ended() {
				res.Leases = append(res.Leases, l.ID)
			}
		}
		return res, nil
	}
	closed, err := h.s.cfg.Node.Stop(context.WithoutCancel(ctx), req.GetErase())
	if err != nil {
		return nil, err
	}
	for _, l := range closed {
		res.Leases = append(res.Leases, l.ID)
	}
	res.Stopping = true
	h.s.cfg.End()
	return res, nil
}

// Upgrade implements NodeService. A caller that goes away does not stop it.
func (h nodes) Upgrade(context.Context, *vacatev1.NodeServiceUpgradeRequest) (*vacatev1.NodeServiceUpgradeResponse, error) {
	if h.s.cfg.Upgrade == nil {
		return nil, &node.Error{Kind: node.Refused, Text: "this daemon cannot be upgraded while it runs", Next: "stop it, and start the new one"}
	}
	if err := h.s.cfg.Upgrade(); err != nil {
		h.s.upgradeRefused(err)
		return nil, upgradeError(err, h.s.cfg.Processes.Binary)
	}
	return &vacatev1.NodeServiceUpgradeResponse{}, nil
}

// upgradeOutcome is how the last upgrade ended, as far as this process knows.
func (s *Server) upgradeOutcome() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lastUpgrade
}

// upgradeRefused notes an upgrade that ended before it began: the keeper, which
// tells of all others, starts no new control for it.
func (s *Server) upgradeRefused(err error) {
	if !errors.Is(err, syscall.ENOEXEC) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastUpgrade = "failed: the new program does not start; nothing was changed"
}

// upgradeError is the keeper's answer, for people.
func upgradeError(err error, binary string) error {
	switch {
	case errors.Is(err, syscall.ENOEXEC):
		return &node.Error{Kind: node.Internal, Object: binary,
			Text: fmt.Sprintf("the new program at %s does not start; nothing was changed", binary),
			Next: fmt.Sprintf("the daemon's log says why; try `%s version` and `%s serve --check-config`, and put back a program and a configuration that work",
				binary, binary)}
	case errors.Is(err, syscall.EBUSY):
		return &node.Error{Kind: node.Unavailable, Object: binary, Text: "an upgrade is under way", Next: "see how it ends with `vacate status`"}
	}
	return &node.Error{Kind: node.Internal, Object: binary, Text: "the keeper did not begin the upgrade", Err: err,
		Next: "see `vacate status` and the daemon's log"}
}
