package lease

import "time"

// Proof is what a lease's records commit to, and what opens the commitments. Hex
// digits throughout; empty where there is none, as in leases that were opened
// before records were signed. Salts are for the tenant and its auditors: whoever
// has one can tell what was committed to.
type Proof struct {
	KeyMode   string `json:"keyMode,omitempty"`   // "node" or "split"; empty: nothing is committed to
	KeyCommit string `json:"keyCommit,omitempty"` // to the key
	KeySalt   string `json:"keySalt,omitempty"`   // 35 bytes

	TenantSalt string `json:"tenantSalt,omitempty"` // 32 bytes, as the others

	NodeCommit  string `json:"nodeCommit,omitempty"` // of a split key, to the node's half
	NodeSalt    string `json:"nodeSalt,omitempty"`
	ShareCommit string `json:"shareCommit,omitempty"` // to the tenant's half
	ShareSalt   string `json:"shareSalt,omitempty"`

	// KeyGeneratedNs is when the key came to be: CLOCK_BOOTTIME in nanoseconds on the
	// boot of the lease's origin; 0 is "not observed".
	KeyGeneratedNs int64 `json:"keyGeneratedNs,omitempty"`

	// EraseBy is when the key has to be destroyed at the latest, in whole seconds UTC:
	// what the OPEN record promises. Zero: nothing was promised.
	EraseBy time.Time `json:"eraseBy,omitzero"`

	// Released says that the key was, or may have been, given to the tenant: its
	// destruction here proves nothing of copies there.
	Released bool `json:"released,omitempty"`
}
