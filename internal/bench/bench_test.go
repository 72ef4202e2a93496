package bench

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

func TestUnits(t *testing.T) {
	for _, tt := range []struct{ got, want string }{
		{FormatRate(0), "0.00 B/s"},
		{FormatRate(999.4), "999 B/s"},
		{FormatRate(999.6), "1.00 kB/s"},
		{FormatRate(12.34e6), "12.3 MB/s"},
		{FormatRate(999.4e6), "999 MB/s"},
		{FormatRate(999.7e6), "1.00 GB/s"},
		{FormatRate(123.4e9), "123 GB/s"},
		{FormatCount(0), "0"},
		{FormatCount(412.4), "412"},
		{FormatCount(9994), "9994"},
		{FormatCount(9996), "10.0 k"},
		{FormatCount(999.4e3), "999 k"},
		{FormatCount(999.6e3), "1.00 M"},
		{FormatTime(0), "0 ns"},
		{FormatTime(999), "999 ns"},
		{FormatTime(1000), "1.00 µs"},
		{FormatTime(163_839), "164 µs"},
		{FormatTime(1_310_000), "1.31 ms"},
		{FormatTime(12_345_678_901), "12.3 s"},
		{FormatRatio(0), "–"},
		{FormatRatio(0.746), "0.75×"},
		{FormatRatio(12.34), "12.3×"},
		{FormatRatio(1234), "1234×"},
		{FormatLeft(0), "0 s"},
		{FormatLeft(100 * time.Millisecond), "1 s"},
		{FormatLeft(59*time.Second + time.Millisecond), "1 min 0 s"},
		{FormatLeft(125 * time.Second), "2 min 5 s"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
}

// TestWorkloads: every pair of size and operation is measured with one request in
// flight and with many, and no two rows have one name.
func TestWorkloads(t *testing.T) {
	seen := make(map[string]bool)
	for _, w := range Workloads() {
		if seen[w.String()] {
			t.Errorf("%v twice", w)
		}
		seen[w.String()] = true
	}
	for _, want := range []string{"4K random reads, depth 1", "4K random writes, depth 32", "128K sequential reads, depth 32", "128K sequential writes, depth 1"} {
		if !seen[want] {
			t.Errorf("%q is not measured", want)
		}
	}
	if len(seen) != 8 {
		t.Errorf("%d workloads, want 8", len(seen))
	}
}

func row(raw, volume float64) Row {
	return NewRow(Workloads()[0], Figure{BytesPerSecond: raw, Errors: 1}, Figure{BytesPerSecond: volume, Errors: 2})
}

func TestRow(t *testing.T) {
	for _, tt := range []struct{ raw, volume, ratio, rawPart, volumePart float64 }{
		{200, 100, 0.5, 1, 0.5},
		{100, 200, 2, 0.5, 1},
		{0, 100, 0, 0, 1},
		{100, 0, 0, 1, 0},
		{0, 0, 0, 0, 0},
	} {
		r := row(tt.raw, tt.volume)
		a, b := Parts(r)
		if r.Ratio != tt.ratio || a != tt.rawPart || b != tt.volumePart {
			t.Errorf("raw %v, volume %v: ratio %v, bars %v and %v", tt.raw, tt.volume, r.Ratio, a, b)
		}
	}
	r := Report{Rows: []Row{row(1, 1), row(1, 1)}}
	r.CountErrors()
	if r.CountErrors(); r.Errors != 6 {
		t.Errorf("%d errors counted, want 6", r.Errors)
	}
}

// TestSVG: the plot is well-formed whatever a drive calls itself, has two bars a
// row, none longer than the longest, and says what it must.
func TestSVG(t *testing.T) {
	r := Report{StartedAt: "2026-01-02T03:04:05.000Z", Host: Host{Processor: "CPU <1> & co", Cores: 2, Kernel: "6.12"},
		Drive: Drive{Path: "/dev/x\"<script>", Model: "A\x00B\x1b[31m\xff & <Z>"},
		Rows:  []Row{row(100, 50), row(0, 0)}, Processor: []Speed{{Name: "cipher", Used: true, BytesPerSecond: 7e9}, {Name: "none"}}}
	svg := SVG(r)
	bars, text := readSVG(t, svg)
	if bars != 2*len(r.Rows)+len(r.Processor) {
		t.Errorf("%d bars for %d rows and %d speeds", bars, len(r.Rows), len(r.Processor))
	}
	for _, want := range []string{"AB[31m & <Z>", "CPU <1> & co", "4K random reads, depth 1", "0.50×", "7.00 GB/s   used here", "2026-01-02"} {
		if !strings.Contains(text, want) {
			t.Errorf("the plot does not say %q", want)
		}
	}
	if strings.Contains(text, "requests failed") {
		t.Error("failures are told of although there were none")
	}
	if r.CountErrors(); r.Errors == 0 {
		t.Fatal("no errors to tell of")
	}
	if _, text := readSVG(t, SVG(r)); !strings.Contains(text, "6 requests failed") {
		t.Error("failures are not told of")
	}
	readSVG(t, SVG(Report{})) // of nothing
}

// readSVG counts the bars of a plot, which lie where bars begin, and collects its
// text.
func readSVG(t *testing.T, svg []byte) (bars int, text string) {
	t.Helper()
	dec := xml.NewDecoder(strings.NewReader(string(svg)))
	var all strings.Builder
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return bars, all.String()
		}
		if err != nil {
			t.Fatalf("the plot is not well-formed: %v\n%s", err, svg)
		}
		switch e := tok.(type) {
		case xml.CharData:
			all.Write(e)
		case xml.StartElement:
			if e.Name.Local == "script" {
				t.Error("a drive's name became a script")
			}
			a := make(map[string]string)
			for _, at := range e.Attr {
				a[at.Name.Local] = at.Value
			}
			if a["x"] == "230" && a["height"] == "15" {
				bars++
				if len(a["width"]) == 3 && a["width"] > "380" {
					t.Errorf("a bar is %s wide", a["width"])
				}
			}
		}
	}
}

// TestPlanRefused: what is worth knowing is no refusal.
func TestPlanRefused(t *testing.T) {
	p := Plan{Findings: []Finding{{Code: "note"}, {Code: "data", Refuse: true}}}
	if got := p.Refused(); len(got) != 1 || got[0].Code != "data" {
		t.Errorf("refused by %v", got)
	}
}
