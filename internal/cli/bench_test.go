package cli

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vacate/internal/bench"
)

func benchReport() bench.Report {
	r := bench.Report{StartedAt: "2026-01-02T03:04:05.678Z", Each: 3 * time.Second,
		Host:  bench.Host{Processor: "Some CPU @ 2 GHz", Cores: 2, Kernel: "6.12.9", Version: "vacate v1.2.3"},
		Drive: bench.Drive{Path: "/srv", Kind: "folder on ext4", Model: "Fast\x1b[31m SSD", Engine: "io_uring", RawEngine: "io_uring", Direct: true, Flush: "none", SpanBytes: 1 << 30},
		Processor: []bench.Speed{
			{Name: "AES-256-XTS, vaes", Used: true, BytesPerSecond: 7.5e9},
			{Name: "AES-256-XTS, generic", BytesPerSecond: 0.15e9},
			{Name: "copy, in cache", BytesPerSecond: 35e9},
		}}
	for i, w := range bench.Workloads()[:6] {
		n := float64(10_000 * (i + 1))
		figure := func(n float64) bench.Figure {
			return bench.Figure{Requests: int64(3 * n), PerSecond: n, BytesPerSecond: n * float64(w.BlockBytes), P50Ns: int64(1e9 / n), P99Ns: int64(4e9 / n)}
		}
		r.Rows = append(r.Rows, bench.NewRow(w, figure(n), figure(n*(0.7+float64(i)/10))))
	}
	return r
}

// benchHooks plan p, and report r or err.
func benchHooks(p bench.Plan, r bench.Report, err error) Hooks {
	return Hooks{Bench: BenchHooks{
		Plan: func(o bench.Options) (bench.Plan, error) {
			p.Path, p.SpanBytes, p.Each = o.Path, o.Span, o.Each
			return p, nil
		},
		Run: func(_ context.Context, _ bench.Plan, tell func(bench.Event)) (bench.Report, error) {
			tell(bench.Event{What: "one", End: time.Second, Total: 4 * time.Second})
			tell(bench.Event{What: "one", Begin: time.Second / 2, End: time.Second, Total: 4 * time.Second})
			tell(bench.Event{What: "two", Begin: time.Second, End: 4 * time.Second, Total: 4 * time.Second})
			return r, err
		},
	}}
}

func TestBenchGolden(t *testing.T) {
	plan := bench.Plan{Kind: "folder on ext4", AreaBytes: 2 << 30, FreeBytes: 100 << 30, Takes: 55 * time.Second, Findings: []bench.Finding{}}
	device := plan
	device.Device, device.Kind, device.Model = true, "loop", "A\x1bB"
	refused := device
	refused.Findings = []bench.Finding{{Code: "note", Text: "worth knowing"}, {Code: "data", Text: "/dev/x holds data", Refuse: true}}
	failed := benchReport()
	failed.Rows[1].Volume.Errors, failed.Rows[1].Volume.FirstError = 3, "input/output error"
	failed.CountErrors()
	for _, tt := range []struct {
		name, args string
		hooks      Hooks
		code       int
	}{
		{"bench", "bench /srv", benchHooks(plan, benchReport(), nil), 0},
		{"bench-plan", "bench --plan --seconds 0.5 --size 4GiB /srv", benchHooks(plan, bench.Report{}, nil), 0},
		{"bench-plan-device", "bench --plan /dev/x", benchHooks(device, bench.Report{}, nil), 0},
		{"bench-plan-refused", "bench --plan /dev/x", benchHooks(refused, bench.Report{}, nil), 4},
		{"bench-failed", "bench", benchHooks(plan, failed, nil), 1},
	} {
		for _, format := range []string{"table", "json", "yaml"} {
			t.Run(tt.name+"/"+format, func(t *testing.T) {
				r := run(t, "/none", tt.hooks, append(strings.Fields(tt.args), "-o", format)...)
				if r.code != tt.code {
					t.Errorf("exit code %d, want %d: %s", r.code, tt.code, r.err)
				}
				if strings.ContainsRune(r.out+r.err, '\x1b') {
					t.Errorf("escape codes off a terminal: %q", r.out+r.err)
				}
				golden(t, tt.name+"."+format, r.out)
			})
		}
	}
}

func TestBenchErrors(t *testing.T) {
	refused := bench.Plan{Device: true, Findings: []bench.Finding{{Code: "data", Text: "/dev/x holds data", Refuse: true}, {Code: "held", Text: "it is held", Refuse: true}}}
	ran := false
	never := benchHooks(refused, bench.Report{}, nil)
	never.Bench.Run = func(context.Context, bench.Plan, func(bench.Event)) (bench.Report, error) {
		ran = true
		return bench.Report{}, nil
	}
	failed := benchReport()
	failed.Rows[2].Raw.Errors, failed.Rows[2].Raw.FirstError = 3, "input/output error"
	failed.CountErrors()
	for _, tt := range []struct {
		args  string
		hooks Hooks
		code  int
		want  []string
	}{
		{"bench /dev/x", never, ExitRefused, []string{"nothing was changed", "/dev/x holds data", "it is held", "next: give a folder"}},
		{"bench a b", never, ExitUsage, []string{"at most one folder or device"}},
		{"bench --size 10G", never, ExitUsage, []string{"--size", "10GiB"}},
		{"bench --seconds x", never, ExitUsage, []string{"--seconds"}},
		{"bench --svg /none/such/x.svg", never, ExitUsage, []string{"there is no folder /none/such"}},
		{"bench", benchHooks(bench.Plan{}, failed, nil), ExitFailed, []string{"3 requests failed: 4K random reads, depth 32, raw: input/output error", "kernel's log"}},
		{"bench", benchHooks(bench.Plan{}, bench.Report{}, errors.New("the drive is gone")), ExitFailed, []string{"error: the drive is gone"}},
		{"bench", Hooks{}, ExitFailed, []string{"without the benchmark"}},
	} {
		r := run(t, "/none", tt.hooks, strings.Fields(tt.args)...)
		if r.code != tt.code {
			t.Errorf("%s: exit code %d, want %d: %s", tt.args, r.code, tt.code, r.err)
		}
		for _, want := range tt.want {
			if !strings.Contains(r.err, want) {
				t.Errorf("%s: %q does not say %q", tt.args, r.err, want)
			}
		}
	}
	if ran {
		t.Error("what was refused was run")
	}
}

// TestBenchSVG: the plot is written beside what is printed.
func TestBenchSVG(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.svg")
	r := run(t, "/none", benchHooks(bench.Plan{}, benchReport(), nil), "bench", "--svg", file)
	if r.code != 0 || !strings.Contains(r.out, "RATIO") {
		t.Errorf("exit code %d: %s%s", r.code, r.out, r.err)
	}
	if b, err := os.ReadFile(file); err != nil || !strings.HasPrefix(string(b), "<svg ") {
		t.Errorf("the plot is %.40q, %v", b, err)
	}
}

// TestBenchProgress: off a terminal there is a line a step, with the time left,
// and not on standard output.
func TestBenchProgress(t *testing.T) {
	r := run(t, "/none", benchHooks(bench.Plan{}, benchReport(), nil), "bench", "-o", "json")
	if want := "  0 %  one, about 4 s left\n 25 %  two, about 3 s left\n"; r.err != want {
		t.Errorf("standard error is %q, want %q", r.err, want)
	}
}

// TestBar: a bar is never longer than it may be, and grows by eighths.
func TestBar(t *testing.T) {
	for _, tt := range []struct {
		part float64
		want string
	}{{0, ""}, {0.01, ""}, {0.03, "▏"}, {0.25, "█"}, {0.5, "██"}, {0.53, "██▏"}, {0.99, "████"}, {1, "████"}} {
		if got := bar(tt.part, 4); got != tt.want {
			t.Errorf("bar(%v) = %q, want %q", tt.part, got, tt.want)
		}
	}
}

// TestProgressTerminal: the line shows how the planned time passes within a step,
// does not pass its end, and is taken away whole.
func TestProgressTerminal(t *testing.T) {
	var out strings.Builder
	now := time.Unix(100, 0)
	p := &progress{w: &out, terminal: true, now: func() time.Time { return now }, done: make(chan struct{}), gone: make(chan struct{})}
	p.draw()
	if out.String() != "" {
		t.Errorf("before the first step it shows %q", out.String())
	}
	p.step(bench.Event{What: "a long name", Begin: time.Second, End: 3 * time.Second, Total: 4 * time.Second})
	for _, tt := range []struct {
		after time.Duration
		want  string
	}{
		{0, "\r██████░░░░░░░░░░░░░░░░░░  25 %  3 s left  a long name"},
		{time.Second, "\r████████████░░░░░░░░░░░░  50 %  2 s left  a long name"},
		{time.Hour, "\r██████████████████░░░░░░  75 %  1 s left  a long name"},
	} {
		out.Reset()
		now = time.Unix(100, 0).Add(tt.after)
		if p.draw(); out.String() != tt.want {
			t.Errorf("after %v: %q, want %q", tt.after, out.String(), tt.want)
		}
	}
	out.Reset()
	p.step(bench.Event{What: "a long name", Begin: 2 * time.Second, End: 3 * time.Second, Total: 4 * time.Second})
	if p.draw(); !strings.Contains(out.String(), " 75 %") {
		t.Errorf("it goes back: %q", out.String())
	}
	out.Reset()
	p.step(bench.Event{What: "short", Begin: 3 * time.Second, End: 4 * time.Second, Total: 4 * time.Second})
	if p.draw(); !strings.HasSuffix(out.String(), "short      ") {
		t.Errorf("a shorter line leaves a part of the one before: %q", out.String())
	}
	out.Reset()
	go p.run()
	p.end()
	if s := out.String(); strings.Trim(s, "\r ") != "" || len(s) < 40 {
		t.Errorf("at the end it writes %q", s)
	}
}
