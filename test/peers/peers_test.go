package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// TestMain lets the test be the server that the row map starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "-stack" {
		main()
		return
	}
	m.Run()
}

// TestRows runs rows of all kinds in short, on real servers: the daemon, QEMU's and
// nbdkit's, fio. The figures mean nothing; that there are any means that no request
// failed.
func TestRows(t *testing.T) {
	docs := t.TempDir()
	o := options{
		only: "4k-reads,unwritten,disk-4k-writes,fsync,map,volumes,allocations,layers-writes,vhost-4k-writes,vhost-depth1-reads,vhost-unwritten,vhost-disk-4k-reads,vhost-idle", rounds: 1, span: 40 * time.Millisecond,
		disk: t.TempDir(), shm: "/dev/shm", size: 64 << 20, write: docs,
	}
	if err := run(o); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(docs, pageName))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Split(o.only, ",") {
		if !strings.Contains(string(page), "\n## "+name+"\n") {
			t.Errorf("the page has no row %s", name)
		}
		svg, err := os.ReadFile(filepath.Join(docs, plotFolder, name+".svg"))
		if err != nil {
			t.Error(err)
		}
		wellFormed(t, string(svg))
	}
}

func wellFormed(t *testing.T, svg string) {
	t.Helper()
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("%v in %s", err, svg)
		}
	}
}

// of makes a result of rates by contestant.
func of(r row, rates map[string][]float64) *result {
	res := &result{row: r}
	for name, all := range rates {
		var samples []sample
		for _, v := range all {
			samples = append(samples, sample{Rate: v, CPU: 1e6 / v, Least: 0.8})
		}
		res.names, res.plain, res.samples = append(res.names, name), append(res.plain, name == "b"), append(res.samples, samples)
	}
	return res
}

func TestBars(t *testing.T) {
	res := of(row{}, map[string][]float64{"a": {10, 30, 20}, "b": {10, 9, 10}, "c": {0.5}, "Vacate": {1}, "with the map": {100, 97}, "without a map": {100, 100}})
	for _, tt := range []struct {
		b                bar
		value            float64
		applies, reached bool
	}{
		{times(2, "a", "b"), 2, true, true},
		{times(2.1, "a", "b"), 2, true, false},
		{times(2, "a", "c", "b"), 2, true, true}, // the fastest counts
		{times(2, "a", "nobody"), 0, false, false},
		{times(2, "nobody", "a"), 0, false, false},
		{serverTime(1000), 1000, true, true},
		{serverTime(999), 1000, true, false},
		{slowest("a", 0.8), 0.8, true, true},
		{slowest("a", 0.9), 0.8, true, false},
		{noAllocations("c"), 0.5, true, false},
		{mapCost, 100 * (100.0/97 - 1) / 2, true, true},
	} {
		v := tt.b.judge(res)
		if v.Applies != tt.applies || v.Reached != tt.reached || tt.applies && (v.Value < tt.value-1e-9 || v.Value > tt.value+1e-9) {
			t.Errorf("%s: %+v, want %v", tt.b.what, v, tt.value)
		}
		if text := v.String() + v.cells(); strings.Contains(text, "%!") || strings.Contains(text, "NOT REACHED") != (tt.applies && !tt.reached) {
			t.Errorf("%s", text)
		}
	}
}

func TestSpread(t *testing.T) {
	for _, tt := range []struct{ all, want []float64 }{
		{nil, []float64{0, 0, 0}},
		{[]float64{3}, []float64{3, 3, 3}},
		{[]float64{3, 1, 2}, []float64{2, 1, 3}},
		{[]float64{4, 3, 1, 2}, []float64{2.5, 1, 4}},
	} {
		var samples []sample
		for _, v := range tt.all {
			samples = append(samples, sample{Rate: v})
		}
		if m, least, most := spread(samples, rate); m != tt.want[0] || least != tt.want[1] || most != tt.want[2] {
			t.Errorf("spread(%v) = %v, %v, %v, want %v", tt.all, m, least, most, tt.want)
		}
	}
}

// TestChoose: every row has a name of its own that can be chosen.
func TestChoose(t *testing.T) {
	for _, r := range rows {
		if got, err := choose(r.name); err != nil || len(got) != 1 || got[0].title != r.title {
			t.Errorf("choose(%s) = %v, %v", r.name, got, err)
		}
	}
	if _, err := choose("4k-reads,no-such-row"); err == nil {
		t.Error("a row that is not there was chosen")
	}
}

func TestParsers(t *testing.T) {
	got, err := parseFio([]byte(`{"jobs":[{"error":0,"read":{"total_ios":0},"write":{"total_ios":9,"iops":4.5,"clat_ns":{"percentile":{"50.000000":7,"99.900000":8}}}}]}`))
	if err != nil || got.Rate != 4.5 || got.P50 != 7 || got.P999 != 8 {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{``, `{}`, `{"jobs":[{"error":5,"read":{"total_ios":1,"iops":1}}]}`, `{"jobs":[{"error":0}]}`} {
		if _, err := parseFio([]byte(bad)); err == nil {
			t.Errorf("%s was taken for a result", bad)
		}
	}
	if got, err := parseOpenssl("+H:131072\n+F:25:AES-256-XTS:7600689616.49\n"); err != nil || got.Rate != 7600689616.49 {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "+F:25:AES-256-XTS:0\n", "+F:25:AES-256-XTS:x\n", "+H:1:2:3\n"} {
		if _, err := parseOpenssl(bad); err == nil {
			t.Errorf("%q was taken for a result", bad)
		}
	}
}

func TestStages(t *testing.T) {
	const script = `
	ffffffff820cc68a _copy_from_iter
	ffffffff820cc68a unix_stream_sendmsg
	ffffffff81e314b0 __x64_sys_sendto
	            bfae internal/runtime/syscall/linux.Syscall6
	          684eea vacate/internal/export/nbd.(*conn).flush

	ffffffff820cc68a unix_stream_sendmsg
	ffffffff81e314b0 __x64_sys_sendto
	          684eea vacate/internal/export/nbd.(*conn).flush

	ffffffff81e314b0 finish_task_switch.isra.0
	ffffffff81e314b0 __schedule
	ffffffff81e31750 __x64_sys_recvfrom

	          198289 vacate/internal/blk.(*Feeder).Run
	          67a6dc vacate/internal/blockmap.(*queue).Submit
	          68e05d vacate/internal/volume.(*queue).Submit

	          6925b3 vacate/internal/crypt.touchLoad
	          690eba vacate/internal/crypt.(*queue).Fill

	          6925b3 runtime.memclrNoHeapPointers
	          684eea vacate/internal/export/nbd.(*conn).flush

	           94e21 runtime.usleep.abi0

	ffffffff81e31750 asm_sysvec_apic_timer_interrupt
	          6925b3 vacate/internal/xts.decryptAVX512.abi0
`
	counts, total := parseStacks([]byte(script))
	for _, stage := range []string{stageCopy, stageSend, stageSwitch, stageMap, stageFetch, stageWipe, stageRuntime, stageKernel} {
		if counts[stage] != 1 {
			t.Errorf("%d stacks of %s, want 1", counts[stage], stage)
		}
	}
	if total != 8 || len(counts) != 8 {
		t.Errorf("%d stacks: %v", total, counts)
	}
	known := make(map[string]bool)
	for _, s := range stages {
		known[s] = true
	}
	for _, k := range append(kernelStages[:len(kernelStages):len(kernelStages)], userStages...) {
		if !known[k.stage] {
			t.Errorf("stage %q is on no line", k.stage)
		}
	}
}

// TestNotes: what a person wrote on the page is there after it was written again,
// and so is a row that was not measured this time.
func TestNotes(t *testing.T) {
	dir := t.TempDir()
	r := of(rows[0], map[string][]float64{"Vacate": {2e9}, "openssl": {1e9}})
	if err := writePage(dir, map[string]record{rows[0].name: r.keep("a <machine> & more", "abc", 1, time.Second)}); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, pageName)
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	const words = "The limit is $1 of **AES**.\n\nReally.\n"
	open := "<!-- note " + rows[0].name + " -->\n"
	if !strings.Contains(string(b), open+"<!-- /note -->\n") {
		t.Fatalf("no room for notes in %s", b)
	}
	if err := os.WriteFile(name, []byte(strings.Replace(string(b), open, open+words, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	r = of(rows[1], map[string][]float64{"Vacate": {2}})
	if err := writePage(dir, map[string]record{rows[1].name: r.keep("another", "abc", 1, time.Second)}); err != nil {
		t.Fatal(err)
	}
	if b, err = os.ReadFile(name); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{open + words + "<!-- /note -->\n", "## " + rows[0].name + "\n", "## " + rows[1].name + "\n", "a <machine> & more", "another", "does not apply"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the page lacks %q:\n%s", want, b)
		}
	}
	wellFormed(t, chart{title: "a < b & c", unit: `"x"`, lines: []chartLine{{label: "<&>", value: 1, most: 2, text: "1", plain: true}}}.svg())
}

// TestPin: what runs pinned runs there, and a process' threads are found.
func TestPin(t *testing.T) {
	c, err := findCores()
	if err != nil {
		t.Fatal(err)
	}
	err = c.onThread(&c.client, func() error {
		var now cpuSet
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SCHED_GETAFFINITY, 0, unsafe.Sizeof(now), uintptr(unsafe.Pointer(&now))); errno != 0 {
			return errno
		}
		if now != c.client || len(now.list()) != 1 {
			t.Errorf("pinned to %v, want %v", now.list(), c.client.list())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	before, err := cpuTime(os.Getpid())
	if err != nil || len(before) == 0 {
		t.Fatalf("%v, %v", before, err)
	}
	for start := time.Now(); time.Since(start) < 50*time.Millisecond; {
	}
	if ns, err := cpuSince(os.Getpid(), before); err != nil || ns <= 0 || ns > int64(time.Minute) {
		t.Errorf("%d ns after 50 ms of work, %v", ns, err)
	}
}
