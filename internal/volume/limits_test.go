package volume_test

import (
	"testing"

	"vacate/internal/volume"
)

func TestLimitsAreKept(t *testing.T) {
	first := volume.Limits{IOPS: 100, IOPSBurst: 10}
	v := volume.New(newRAM(1<<20), volume.Config{Limits: first})
	if got := v.Limits(); got != first {
		t.Errorf("%+v, want %+v", got, first)
	}
	second := volume.Limits{Bytes: 1 << 30}
	v.SetLimits(second)
	if got := v.Limits(); got != second {
		t.Errorf("%+v, want %+v", got, second)
	}
}

func TestLimitsValidate(t *testing.T) {
	for _, tt := range []struct {
		l    volume.Limits
		good bool
	}{
		{volume.Limits{}, true},
		{volume.Limits{IOPS: 1}, true},
		{volume.Limits{IOPS: 1, IOPSBurst: 5, Bytes: 1, BytesBurst: 7}, true},
		{volume.Limits{IOPSBurst: 5}, false},
		{volume.Limits{IOPS: 1, BytesBurst: 5}, false},
	} {
		if err := tt.l.Validate(); (err == nil) != tt.good {
			t.Errorf("%+v: %v", tt.l, err)
		}
		if err := (volume.Config{Limits: tt.l}).Validate(); (err == nil) != tt.good {
			t.Errorf("as a Config %+v: %v", tt.l, err)
		}
	}
}
