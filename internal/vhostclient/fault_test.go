package vhostclient

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vacate/internal/nbdclient"
)

// TestVerifyFinds: what is changed behind the server's back is found, and named.
func TestVerifyFinds(t *testing.T) {
	const size = 4 << 20
	socket := startQSD(t, size, 1)
	disk := filepath.Join(filepath.Dir(socket), "disk")
	for _, tt := range []struct {
		name  string
		class nbdclient.Class
		harm  func(b []byte)
	}{
		{"garbage", nbdclient.Garbage, func(b []byte) { copy(b, strings.Repeat("harm", 128)) }},
		{"foreign", nbdclient.Foreign, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := &Verify{Target: socket, Lease: tt.name, Seed: 1, Requests: 200, Options: Options{QueueSize: 64}}
			if tt.harm == nil { // the disk is another's: what the last run left is there
				v.Lease = "another"
			} else {
				zero(t, disk, size)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan struct{})
			go func() {
				defer close(done)
				for tt.harm != nil && v.Snapshot().Verified == 0 && ctx.Err() == nil { // until the last pass
					f, err := os.OpenFile(disk, os.O_RDWR, 0)
					if err != nil {
						return
					}
					b := make([]byte, 512)
					tt.harm(b)
					_, _ = f.WriteAt(b, size-512) // the run tells
					_ = f.Close()                 // likewise
				}
			}()
			r, err := v.Run(context.Background())
			cancel()
			<-done
			if err != nil {
				t.Fatal(err)
			}
			if r.WrongByClass[tt.class] == 0 || r.Err() == nil {
				t.Errorf("nothing %v was found: %v", tt.class, r.String())
			}
		})
	}
}

func zero(t *testing.T, disk string, size int64) {
	t.Helper()
	for _, n := range []int64{0, size} {
		if err := os.Truncate(disk, n); err != nil {
			t.Fatal(err)
		}
	}
}

// TestVerifyHungUp: a server that hangs up has failed a frontend that cannot connect
// again, whatever it has answered until then.
func TestVerifyHungUp(t *testing.T) {
	_, socket, hangUp := recorded(t, startQSD(t, 4<<20, 1))
	v := &Verify{Target: socket, Lease: "l", Seed: 1, Pause: time.Millisecond, Duration: 20 * time.Second}
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		for v.Snapshot().Requests < 50 && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		hangUp()
	})
	_, err := v.Run(context.Background())
	cancel()
	done.Wait()
	if err == nil || !strings.Contains(err.Error(), "hung up") {
		t.Errorf("%v, want that the server has hung up", err)
	}
}

// TestVerifyBreaks: a session that would lose its requests is not begun.
func TestVerifyBreaks(t *testing.T) {
	socket := startQSD(t, 4<<20, 1)
	for _, o := range []Options{{}, {Inflight: true}} { // the daemon has no region for them
		if _, err := (&Verify{Target: socket, Breaks: time.Second, Options: o}).Run(context.Background()); err == nil {
			t.Errorf("with %+v it was begun", o)
		}
	}
}
