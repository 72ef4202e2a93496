package notary

import (
	"testing"
	"time"
)

// TestForgottenLease: the journal remembers a thousand leases that ended; where the log
// was away for longer, the certificates of the others are made all the same.
func TestForgottenLease(t *testing.T) {
	w := newWorld(t, false)
	w.open(0, w.now.Add(time.Minute))
	w.close(0)
	w.spool.mu.Lock()
	delete(w.spool.leases, leaseID(0))
	w.spool.mu.Unlock()
	w.mustPass()
	st, err := w.n.Status()
	if _, final := w.n.State(leaseID(0)); err != nil || !final || st.Spool.Due != 0 || st.Counts.Certified != 1 || st.Deadlines != (Deadlines{}) {
		t.Errorf("status %+v, %v; final %v", st, err, final)
	}
}
