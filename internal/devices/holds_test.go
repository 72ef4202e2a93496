package devices

import (
	"context"
	"testing"
	"testing/synctest"
)

// TestHoldsNow: who must have a lease now has every other call give up, also one that
// has waited for longer.
func TestHoldsNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h holds
		first, release, err := h.take(t.Context(), "a", false)
		if err != nil {
			t.Fatal(err)
		}
		second := make(chan error, 1)
		go func() { // waits from before
			held, release, err := h.take(t.Context(), "a", false)
			if err == nil {
				<-held.Done() // it does something that takes for ever
				release()
			}
			second <- err
		}()
		synctest.Wait()
		now := make(chan struct{})
		go func() {
			held, release, err := h.take(t.Context(), "a", true)
			if err == nil && held.Err() == nil {
				close(now)
				release()
			}
		}()
		synctest.Wait()
		if first.Err() != context.Canceled {
			t.Error("who had it was not told to give up")
		}
		release()
		synctest.Wait()
		select {
		case <-now:
		default:
			t.Fatal("who must have it now waits behind another")
		}
		if err := <-second; err != nil {
			t.Error(err)
		}
		held, release, err := h.take(t.Context(), "a", false)
		if err != nil || held.Err() != nil {
			t.Errorf("afterwards it is had by nobody: %v, %v", err, held.Err())
		} else {
			release()
		}
		if len(h.all) != 0 {
			t.Errorf("%d leases are remembered", len(h.all))
		}
	})
}
