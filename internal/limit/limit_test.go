package limit

import (
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		in   Limits
		want []string // what the error says, line by line; none: it is right
	}{
		{in: Limits{}},
		{in: Limits{IOPS: 1}},
		{in: Limits{IOPS: MaxIOPS, IOPSBurst: MaxIOPS, Bytes: MaxBytes, BytesBurst: MaxBytes}},
		{in: Limits{Bytes: MinBytes, BytesBurst: MinBytes}},
		{in: Limits{IOPS: 5000, IOPSBurst: 1}}, // a burst below the rate evens requests out
		{Limits{IOPS: MaxIOPS + 1}, []string{"requests is over"}},
		{Limits{IOPS: 1, IOPSBurst: MaxIOPS + 1}, []string{"burst of 4294967296 requests"}},
		{Limits{Bytes: MinBytes - 1}, []string{"under one block"}},
		{Limits{Bytes: MaxBytes, BytesBurst: 1}, []string{"burst of 1 bytes is under one block"}},
		{Limits{Bytes: MaxBytes + 1, BytesBurst: MaxBytes + 1}, []string{"a bandwidth of", "burst of"}},
		{Limits{IOPSBurst: 1, BytesBurst: MinBytes}, []string{"without a limit", "without a bandwidth"}},
	} {
		err := tt.in.Check()
		var got []string
		if err != nil {
			got = strings.Split(err.Error(), "\n")
		}
		if len(got) != len(tt.want) {
			t.Errorf("%+v: %q, want %d faults", tt.in, got, len(tt.want))
			continue
		}
		for i, want := range tt.want {
			if !strings.Contains(got[i], want) {
				t.Errorf("%+v: %q, want %q in it", tt.in, got[i], want)
			}
		}
	}
}
