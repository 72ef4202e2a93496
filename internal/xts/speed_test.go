package xts

import (
	"bytes"
	"testing"
	"time"
)

// TestSpeedOf: every implementation has a speed and encrypts the buffer, and
// nothing else is measured as if it were one.
func TestSpeedOf(t *testing.T) {
	for _, name := range Implementations() {
		buf := make([]byte, 3*speedUnit+100)
		if got := SpeedOf(name, buf, time.Millisecond); got < 1e5 {
			t.Errorf("SpeedOf(%q) = %v bytes a second", name, got)
		}
		if bytes.Equal(buf[2*speedUnit:3*speedUnit], make([]byte, speedUnit)) {
			t.Errorf("SpeedOf(%q) did not encrypt the last unit", name)
		}
		if !bytes.Equal(buf[3*speedUnit:], make([]byte, 100)) {
			t.Errorf("SpeedOf(%q) wrote behind the last unit", name)
		}
		if got := SpeedOf(name, buf[:speedUnit-1], time.Millisecond); got != 0 {
			t.Errorf("SpeedOf(%q) without a whole unit = %v, want 0", name, got)
		}
	}
	if got := SpeedOf("rot13", make([]byte, speedUnit), time.Millisecond); got != 0 {
		t.Errorf("SpeedOf of no implementation = %v, want 0", got)
	}
}
