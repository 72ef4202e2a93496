package lease

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The kinds of export. Each lends its name to its socket.
const (
	NBD       = "nbd"
	VhostUser = "vhost-user"
)

// MaxQueues is the most virtqueues of one vhost-user export.
const MaxQueues = 64

// Exports are the ways to reach a lease's volume. The zero Exports is NBD alone,
// as is what a journal says of leases that were opened before there was another.
type Exports struct {
	NoNBD     bool `json:"noNbd,omitempty"`
	VhostUser bool `json:"vhostUser,omitempty"`
	ReadOnly  bool `json:"readOnly,omitempty"` // of vhost-user
	Queues    int  `json:"queues,omitempty"`   // of vhost-user: 1 ≤ Queues ≤ MaxQueues; 0 without it
}

// ParseExports returns the exports of these kinds, each of them at most once;
// none means NBD. Queues and ReadOnly are left to the caller.
func ParseExports(kinds []string) (Exports, error) {
	if len(kinds) == 0 {
		return Exports{}, nil
	}
	x := Exports{NoNBD: true}
	for i, kind := range kinds {
		switch {
		case slices.Contains(kinds[:i], kind):
			return Exports{}, fmt.Errorf("the export %s is named twice", kind)
		case kind == NBD:
			x.NoNBD = false
		case kind == VhostUser:
			x.VhostUser = true
		default:
			return Exports{}, fmt.Errorf("there is no export %q: there are %s and %s", kind, NBD, VhostUser)
		}
	}
	return x, nil
}

// Check says what is wrong with the exports of a lease.
func (x Exports) Check() error {
	switch {
	case x.NoNBD && !x.VhostUser:
		return errors.New("a lease without an export cannot be reached")
	case !x.VhostUser && x.Queues != 0:
		return errors.New("queues are the vhost-user export's, and the lease has none")
	case !x.VhostUser && x.ReadOnly:
		return errors.New("only the vhost-user export can be read-only, and the lease has none")
	case x.VhostUser && (x.Queues < 1 || x.Queues > MaxQueues):
		return fmt.Errorf("a vhost-user export has 1 to %d queues, not %d", MaxQueues, x.Queues)
	}
	return nil
}

// Kinds are the kinds of the exports, NBD first: the order in which their sockets
// are handed over.
func (x Exports) Kinds() []string {
	var kinds []string
	if !x.NoNBD {
		kinds = append(kinds, NBD)
	}
	if x.VhostUser {
		kinds = append(kinds, VhostUser)
	}
	return kinds
}

// String is for people: "nbd, vhost-user".
func (x Exports) String() string { return strings.Join(x.Kinds(), ", ") }
