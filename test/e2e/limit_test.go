package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"vacate/internal/nbdclient"
	"vacate/test/daemon"
)

// A rate is what fio measured in a second.
type rate struct{ requests, bytes float64 }

// measure has fio use a volume for two seconds.
func measure(t *testing.T, l daemon.Lease, args ...string) rate {
	t.Helper()
	out := command(t, "fio", append([]string{"--name=limit", "--ioengine=nbd", "--uri=" + l.URI(), "--size=16M",
		"--time_based", "--runtime=2", "--group_reporting", "--output-format=json", "--aux-path=" + t.TempDir()}, args...)...)
	type direction struct {
		IOPS    float64 `json:"iops"`
		BWBytes float64 `json:"bw_bytes"`
	}
	var got struct {
		Jobs []struct {
			Read, Write direction
			Error       int
		}
	}
	_, report, _ := strings.Cut(out, "\n{") // before it fio says that it connects
	if err := json.Unmarshal([]byte("{"+report), &got); err != nil || len(got.Jobs) != 1 || got.Jobs[0].Error != 0 {
		t.Fatalf("fio: %v\n%s", err, out)
	}
	j := got.Jobs[0]
	return rate{j.Read.IOPS + j.Write.IOPS, j.Read.BWBytes + j.Write.BWBytes}
}

// near measures: a limit is never passed by more than a tenth, and reached but for a
// tenth in one of five tries, as a machine that is busy with other things may be slower.
func near(t *testing.T, what string, want float64, measured func() float64) {
	t.Helper()
	best := 0.0
	for try := 0; try < 5 && best < 0.9*want; try++ {
		got := measured()
		t.Logf("%s: %.0f, limit %.0f", what, got, want)
		if best = max(best, got); got > 1.1*want {
			t.Errorf("%s: %.0f, the limit is %.0f", what, got, want)
		}
	}
	if best < 0.9*want {
		t.Errorf("%s: %.0f at best, want %.0f but for a tenth", what, best, want)
	}
}

// requests has fio use a volume with these arguments, and counts them, bytesOf their bytes.
func requests(t *testing.T, l daemon.Lease, args ...string) func() float64 {
	return func() float64 { t.Helper(); return measure(t, l, args...).requests }
}

func bytesOf(t *testing.T, l daemon.Lease, args ...string) func() float64 {
	return func() float64 { t.Helper(); return measure(t, l, args...).bytes }
}

// setLimits holds a lease to limits, and checks that it is shown so.
func setLimits(t *testing.T, d *daemon.Daemon, l daemon.Lease, limits string) {
	t.Helper()
	if out, err := d.Run("lease", "limit", l.ID, "--limit", limits); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// What is not used while nobody runs is lost but for the burst, so each burst here is
// a twentieth of a second or more: less than near lets pass in two seconds, and more
// than a busy machine makes a thread wait.

// TestLimits: what fio gets is what the lease was limited to, over all of its
// connections, before and after it was limited anew, and after engine and control
// were killed. A volume beside it has no part in that.
func TestLimits(t *testing.T) {
	d := start(t, daemon.Options{})
	l := open(t, d, "--size", "64MiB", "--limit", "iops=2000,iops-burst=200")
	free := open(t, d, "--size", "64MiB")

	near(t, "reads/s", 2000, requests(t, l, "--rw=randread", "--bs=4k", "--iodepth=16"))
	two := requests(t, l, "--rw=randrw", "--bs=4k", "--iodepth=16", "--numjobs=2")
	near(t, "reads and writes/s of two connections", 2000, func() float64 {
		got := two()
		if got > 1.1*2000 { // fio adds up what its jobs do in two seconds each, and they may begin apart
			got = two()
		}
		return got
	})
	beside := 0.0
	for try := 0; try < 5 && beside < 1.5*2000; try++ {
		beside = max(beside, measure(t, free, "--rw=randread", "--bs=4k", "--iodepth=16").requests)
	}
	if beside < 1.5*2000 {
		t.Errorf("the volume without limits: %.0f reads/s", beside)
	}

	setLimits(t, d, l, "bandwidth=16MiB,bandwidth-burst=1MiB")
	near(t, "bytes/s written", 16<<20, bytesOf(t, l, "--rw=write", "--bs=64k", "--iodepth=8"))

	setLimits(t, d, l, "iops=1000,iops-burst=100,bandwidth=8MiB,bandwidth-burst=512KiB")
	kill(t, d, "engine")
	if err := dialAgain(t, l).Close(); err != nil {
		t.Error(err)
	}
	kill(t, d, "control")
	near(t, "reads/s after a take-over", 1000, requests(t, l, "--rw=randread", "--bs=4k", "--iodepth=16"))
	near(t, "bytes/s after a take-over", 8<<20, bytesOf(t, l, "--rw=randread", "--bs=32k", "--iodepth=16"))
	var shown struct {
		Limits struct{ IOPS, IOPSBurst, BandwidthBytes, BandwidthBurstBytes int }
	}
	eventually(t, "control to return", func() error { return d.JSON(&shown, "lease", "show", l.ID) })
	if s := shown.Limits; s.IOPS != 1000 || s.IOPSBurst != 100 || s.BandwidthBytes != 8<<20 || s.BandwidthBurstBytes != 512<<10 {
		t.Errorf("shown as %+v", s)
	}
}

// TestLimitWhileInUse: limits that are set reach requests that wait already; a
// burst is there after a pause, and no more than it; none of it costs an error.
func TestLimitWhileInUse(t *testing.T) {
	d := start(t, daemon.Options{})
	l := open(t, d, "--size", "64MiB", "--limit", "iops=100,iops-burst=1")
	c, err := nbdclient.Dial(l.URI(), nbdclient.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	use := func(requests int64) time.Duration {
		t.Helper()
		r, err := nbdclient.Load{Pattern: nbdclient.RandomWrite, Requests: requests, Depth: 32}.Run(c)
		if err != nil || r.Errors != 0 || r.Requests != requests {
			t.Fatalf("%v: %v", r, err)
		}
		return r.Elapsed
	}

	// 5,000 requests would take 50 seconds.
	freed := make(chan error, 1)
	time.AfterFunc(300*time.Millisecond, func() {
		_, err := d.Run("lease", "limit", l.ID, "--limit", "none")
		freed <- err
	})
	if took := use(5000); took > 30*time.Second {
		t.Errorf("a load that was freed took %v", took)
	}
	must(t, <-freed)

	// What comes after a burst counts from its beginning: a busy machine takes its
	// time for the burst, and is owed requests for that.
	began := time.Now()
	setLimits(t, d, l, "iops=200,iops-burst=2000")
	if took := use(2000); took > 8*time.Second { // 10 s without
		t.Errorf("a burst of 2000 requests took %v", took)
	}
	use(400)
	if took := time.Since(began); took < 1800*time.Millisecond || took > 30*time.Second {
		t.Errorf("2400 requests, 2000 at once and 200 a second, took %v", took)
	}
	time.Sleep(5 * time.Second)                  // 1000 requests more
	if took := use(1000); took > 4*time.Second { // 5 s without
		t.Errorf("what was saved up took %v", took)
	}
	// A lease whose requests wait is closed like any other.
	setLimits(t, d, l, "iops=1,iops-burst=1")
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if r, err := (nbdclient.Load{Requests: 1000, Depth: 32}).Run(c); err == nil && r.Errors == 0 {
			t.Errorf("1000 requests at 1 a second are done: %v", r)
		}
	}()
	time.Sleep(200 * time.Millisecond)
	began = time.Now()
	if _, err := d.Run("lease", "close", l.ID); err != nil {
		t.Error(err)
	}
	<-ended
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("closing with requests that wait took %v", took)
	}
}
