package metrics

import (
	"context"
	"flag"
	"io"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"vacate/internal/ipc"
)

var update = flag.Bool("update", false, "write the golden files")

func full() Snapshot {
	return Snapshot{
		Ready: true, Generation: 3, Versions: map[string]string{"keeper": "v1", "engine": "v2", "control": "v2"}, Leases: map[string]int{"open": 1, "lost": 0},
		Drives: []Drive{{UUID: "d1", Path: "/dev/x", Up: true, Size: 100, Free: 60, Leased: 30, Quarantine: 10}},
		Proof: &Proof{Spool: 1, SpoolMax: 2, Age: 3 * time.Second, Size: 4, Quorum: true, Failing: false, Signed: 5, Sent: 6, Certified: 7,
			Certificates: 8, NoQuorum: 9, Due: 10, Met: 11, Missed: 12, Pending: 13},
		Engine: &ipc.Stats{Connections: 2, Refused: 3,
			Leases: []ipc.LeaseStats{{Lease: "l1", Connections: 2, Reads: 4, Writes: 5, Discards: 6, Flushes: 7, ReadBytes: 8, WriteBytes: 9, Errors: 10, Written: 11, Queues: 12, BrokenQueues: 13, Expelled: 14}},
			Drives: []ipc.DriveStats{{UUID: "d1", Reads: 1, Writes: 2, ReadBytes: 3, WriteBytes: 4, Flushes: 5, Errors: 6}}},
	}
}

// scrape returns the lines of our own metrics, without the ones of the runtime.
func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	b, err := io.ReadAll(w.Result().Body)
	if err != nil || w.Code != 200 {
		t.Fatalf("scraping: %d, %v\n%s", w.Code, err, b)
	}
	var own strings.Builder
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(strings.TrimPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE "), "vacate_") {
			own.WriteString(line)
		}
	}
	return own.String()
}

func TestScrape(t *testing.T) {
	m := New(Config{PerLease: true, Snapshot: func(context.Context) Snapshot { return full() }})
	m.Erased(300 * time.Microsecond)
	m.Committed(2 * time.Millisecond)
	m.Called("Lease.Open", "ok", 2*time.Millisecond)
	got := scrape(t, m)
	const golden = "testdata/scrape.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("scrape differs from %s (run with -update to accept):\n%s", golden, got)
	}
}

// TestDocumented compares docs/metrics.md with what is exported.
func TestDocumented(t *testing.T) {
	m := New(Config{PerLease: true, Snapshot: func(context.Context) Snapshot { return full() }})
	m.Erased(time.Millisecond)
	m.Called("Lease.Open", "ok", time.Millisecond)
	exported := map[string]string{}
	for line := range strings.Lines(scrape(t, m)) {
		if f := strings.Fields(line); f[1] == "TYPE" {
			exported[f[2]] = f[3]
		}
	}
	b, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	units := []string{"_total", "_bytes", "_seconds", "_info", "_records"}
	counts := []string{"vacate_ready", "vacate_engine_up", "vacate_drive_up", "vacate_leases", "vacate_connections", "vacate_lease_connections", "vacate_lease_queues",
		"vacate_log_quorum", "vacate_log_failing", "vacate_certificates", "vacate_certificates_without_quorum", "vacate_certificates_due",
		"vacate_deadlines_met", "vacate_deadlines_missed", "vacate_deadlines_pending"}
	for line := range strings.Lines(string(b)) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 || !strings.HasPrefix(strings.TrimSpace(cells[1]), "`vacate_") {
			continue
		}
		name := strings.Trim(strings.TrimSpace(cells[1]), "`")
		if got := strings.TrimSpace(cells[2]); got != exported[name] {
			t.Errorf("%s is documented as a %s, exported as a %q", name, got, exported[name])
		}
		if !slices.ContainsFunc(units, func(u string) bool { return strings.HasSuffix(name, u) }) && !slices.Contains(counts, name) {
			t.Errorf("%s does not end in its unit", name)
		}
		delete(exported, name)
	}
	for name := range exported {
		t.Errorf("docs/metrics.md does not list %s", name)
	}
}

func TestWithoutEngine(t *testing.T) {
	s := full()
	s.Engine, s.Ready = nil, false
	got := scrape(t, New(Config{Snapshot: func(context.Context) Snapshot { return s }}))
	for _, want := range []string{"vacate_engine_up 0\n", "vacate_ready 0\n", "vacate_drive_free_bytes{drive=\"/dev/x\",uuid=\"d1\"} 60\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("scrape leaves out %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "vacate_connections") {
		t.Error("counters are exported that nobody counted")
	}
}

func TestPerLeaseOff(t *testing.T) {
	got := scrape(t, New(Config{Snapshot: func(context.Context) Snapshot { return full() }}))
	if strings.Contains(got, "vacate_lease_") {
		t.Errorf("series of leases are exported:\n%s", got)
	}
}
