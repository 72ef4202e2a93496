package vhostclient

import (
	"context"
	"fmt"
	"testing"
	"time"

	"vacate/internal/nbdclient"
)

func TestVerify(t *testing.T) {
	for i, v := range []*Verify{
		{},
		{Options: Options{Queues: 2, Regions: 7}},
		{Options: Options{Direct: true, NoEvent: true, QueueSize: 64}},
		{Options: Options{NoEvent: true}, Poll: true},
		{Options: Options{Direct: true, QueueSize: 256, MemSlots: true, Regions: 9}},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			v.Target, v.Lease, v.Seed = startQSD(t, 8<<20, 2), "qsd", uint64(i)
			v.Requests, v.Patience = 4000, time.Minute
			r, err := v.Run(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			// The daemon's cache may give a sector while it is written, in two parts or
			// in more; ours may not. When all is written it is whole.
			for _, w := range r.Wrong {
				if !w.Last && (w.Class == nbdclient.Torn || w.Class == nbdclient.Garbage) {
					r.WrongBytes -= sectorSize
				}
			}
			if err := r.Err(); err != nil {
				t.Fatal(err)
			}
			if r.Requests < 4000 || r.Verified != 8<<20 || r.Reads == 0 || r.Writes == 0 || r.Zeroes == 0 || r.Flushes == 0 {
				t.Errorf("%v", r.String())
			}
		})
	}
}
