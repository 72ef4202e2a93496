package server

import (
	"slices"

	"vacate/api/vacate/v1/vacatev1connect"
)

// A Role is what a uid is to the daemon. A uid has exactly one.
type Role string

// The roles, from most to least.
const (
	Operator Role = "operator" // root, the daemon's own uid, and those configured
	Auditor  Role = "auditor"  // configured: sees everything, changes nothing
	Tenant   Role = "tenant"   // everybody else: its own leases
)

// Access is what a role may do with a call.
type Access string

// The kinds of access.
const (
	All Access = "all" // on every object
	Own Access = "own" // on leases whose uid is the caller's; others do not exist for it
	No  Access = "no"
)

// access is the table of role × call. docs/roles.md shows it, and a test
// compares each cell. A call that is not in it is refused to everyone.
var access = map[string]map[Role]Access{
	vacatev1connect.LeaseServiceOpenProcedure:          {Operator: All, Auditor: No, Tenant: No},
	vacatev1connect.LeaseServiceListProcedure:          {Operator: All, Auditor: All, Tenant: Own},
	vacatev1connect.LeaseServiceGetProcedure:           {Operator: All, Auditor: All, Tenant: Own},
	vacatev1connect.LeaseServiceLimitProcedure:         {Operator: All, Auditor: No, Tenant: No},
	vacatev1connect.LeaseServiceResizeProcedure:        {Operator: All, Auditor: No, Tenant: No},
	vacatev1connect.LeaseServiceCloseProcedure:         {Operator: All, Auditor: No, Tenant: Own},
	vacatev1connect.LeaseServiceAttachProcedure:        {Operator: All, Auditor: No, Tenant: Own},
	vacatev1connect.LeaseServiceDetachProcedure:        {Operator: All, Auditor: No, Tenant: Own},
	vacatev1connect.LeaseServiceWatchProcedure:         {Operator: All, Auditor: All, Tenant: Own},
	vacatev1connect.LeaseServicePrepareProcedure:       {Operator: All, Auditor: No, Tenant: No},
	vacatev1connect.LeaseServiceReleaseKeyProcedure:    {Operator: Own, Auditor: No, Tenant: Own},
	vacatev1connect.LeaseServiceRawBlocksProcedure:     {Operator: Own, Auditor: No, Tenant: Own},
	vacatev1connect.DriveServiceEnrollProcedure:        {Operator: All, Auditor: No, Tenant: No},
	vacatev1connect.DriveServiceListProcedure:          {Operator: All, Auditor: All, Tenant: No},
	vacatev1connect.DriveServiceGetProcedure:           {Operator: All, Auditor: All, Tenant: No},
	vacatev1connect.NodeServiceStatusProcedure:         {Operator: All, Auditor: All, Tenant: No},
	vacatev1connect.NodeServiceStopProcedure:           {Operator: All, Auditor: No, Tenant: No},
	vacatev1connect.NodeServiceUpgradeProcedure:        {Operator: All, Auditor: No, Tenant: No},
	vacatev1connect.CertificateServiceGetProcedure:     {Operator: All, Auditor: All, Tenant: Own},
	vacatev1connect.CertificateServiceListProcedure:    {Operator: All, Auditor: All, Tenant: Own},
	vacatev1connect.CertificateServiceReceiptProcedure: {Operator: All, Auditor: All, Tenant: Own},
	vacatev1connect.TenantServiceCloseProcedure:        {Operator: All, Auditor: No, Tenant: Own},
	vacatev1connect.TrustServicePolicyProcedure:        {Operator: All, Auditor: All, Tenant: All},
	vacatev1connect.TrustServiceKeysProcedure:          {Operator: All, Auditor: All, Tenant: No},
	vacatev1connect.TrustServiceRotateProcedure:        {Operator: All, Auditor: No, Tenant: No},
	vacatev1connect.TrustServiceStatementProcedure:     {Operator: All, Auditor: All, Tenant: All},
	vacatev1connect.LogServiceStatusProcedure:          {Operator: All, Auditor: All, Tenant: All},
	vacatev1connect.LogServiceRecordsProcedure:         {Operator: All, Auditor: All, Tenant: All},
}

// mutating are the calls that change something: each leaves a line in the log.
var mutating = map[string]bool{
	vacatev1connect.LeaseServiceOpenProcedure:       true,
	vacatev1connect.LeaseServiceLimitProcedure:      true,
	vacatev1connect.LeaseServiceResizeProcedure:     true,
	vacatev1connect.LeaseServiceCloseProcedure:      true,
	vacatev1connect.LeaseServiceAttachProcedure:     true,
	vacatev1connect.LeaseServiceDetachProcedure:     true,
	vacatev1connect.DriveServiceEnrollProcedure:     true,
	vacatev1connect.NodeServiceStopProcedure:        true,
	vacatev1connect.NodeServiceUpgradeProcedure:     true,
	vacatev1connect.LeaseServicePrepareProcedure:    true,
	vacatev1connect.LeaseServiceReleaseKeyProcedure: true,
	vacatev1connect.TenantServiceCloseProcedure:     true,
	vacatev1connect.TrustServiceRotateProcedure:     true,
}

// roleOf is the role of a uid.
func (s *Server) roleOf(uid uint32) Role {
	switch {
	case uid == 0 || uid == s.cfg.UID || slices.Contains(s.cfg.Operators, uid):
		return Operator
	case slices.Contains(s.cfg.Auditors, uid):
		return Auditor
	default:
		return Tenant
	}
}

// accessTo is what a role may do with a call.
func accessTo(procedure string, r Role) Access {
	if a, ok := access[procedure][r]; ok {
		return a
	}
	return No
}
