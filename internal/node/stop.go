package node

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"vacate/internal/lease"
)

// Stop prepares the daemon's end: no lease is opened any more. With leases open
// it is refused, and everything stays as it is, unless erase is set: then all of
// them are closed, and returned as they stand. The caller then ends the process,
// with Shutdown; after an error it does not.
func (n *Node) Stop(ctx context.Context, erase bool) ([]lease.Lease, error) {
	n.mu.Lock()
	var open []lease.Lease
	for _, e := range sortedEntries(n.leases) {
		if !e.l.State.Ended() {
			open = append(open, e.view())
		}
	}
	if len(open) > 0 && !erase {
		n.mu.Unlock()
		return nil, stopRefused(open)
	}
	n.stopping = true
	n.mu.Unlock()

	closed := make([]lease.Lease, len(open))
	errs := make([]error, len(open))
	var wg sync.WaitGroup
	for i, l := range open {
		wg.Go(func() { closed[i], errs[i] = n.Close(ctx, l.ID) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			n.mu.Lock()
			n.stopping = false
			n.mu.Unlock()
			return closed, fmt.Errorf("closing lease %s before the end: %w", open[i].ID, err)
		}
	}
	return closed, nil
}

// stopRefused lists the leases that are open.
func stopRefused(open []lease.Lease) error {
	const shown = 20
	var names []string
	for _, l := range open[:min(len(open), shown)] {
		name := l.ID
		if l.Tenant != "" {
			name += " (" + l.Tenant + ")"
		}
		names = append(names, name)
	}
	if len(open) > shown {
		names = append(names, fmt.Sprintf("and %d more", len(open)-shown))
	}
	text, next := fmt.Sprintf("%d leases are open, and ending erases them", len(open)), "close them first, or stop with --erase"
	if len(open) == 1 {
		text, next = "1 lease is open, and ending erases it", "close it first, or stop with --erase"
	}
	return &Error{Kind: Refused, Text: text + ": " + strings.Join(names, ", "), Next: next}
}
