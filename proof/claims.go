package proof

// The claims of a certificate, weakest first. Each is independent of the others.
const (
	ClaimAsserted     = "asserted"
	ClaimWitnessed    = "witnessed"
	ClaimKeyCommitted = "key_committed"
	ClaimMeasured     = "measured"
	ClaimTenantShare  = "tenant_share"
	ClaimAudited      = "ciphertext_audited"
	ClaimDevicePurged = "device_purged"
	ClaimScanned      = "scanned"
)

// ClaimNames are all claims, in the order in which they are printed.
var ClaimNames = []string{ClaimAsserted, ClaimWitnessed, ClaimKeyCommitted, ClaimMeasured, ClaimTenantShare,
	ClaimAudited, ClaimDevicePurged, ClaimScanned}

// nodeClaims can stand in a record. The others are about what happens to it
// afterwards.
var nodeClaims = map[string]bool{ClaimAsserted: true, ClaimKeyCommitted: true, ClaimMeasured: true,
	ClaimTenantShare: true, ClaimDevicePurged: true, ClaimScanned: true}
