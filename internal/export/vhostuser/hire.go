package vhostuser

import (
	"errors"
	"slices"
	"sync"
)

// hire makes the workers that rings lack which are about to run, all at once: each
// has to wait for a thread and for queues of the drives, and a guest waits for the
// last of them.
func (s *session) hire(starts []start) error {
	var lacking []int // a ring of each
	s.mu.Lock()
	for _, r := range starts {
		n := r.index % len(s.workers)
		same := func(ring int) bool { return ring%len(s.workers) == n }
		if s.workers[n] == nil && !slices.ContainsFunc(lacking, same) {
			lacking = append(lacking, r.index)
		}
	}
	s.mu.Unlock()
	errs := make([]error, len(lacking))
	var hired sync.WaitGroup
	for i, ring := range lacking {
		hired.Go(func() { _, errs[i] = s.needWorker(ring) })
	}
	hired.Wait()
	return errors.Join(errs...)
}
