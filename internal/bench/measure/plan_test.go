package measure

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vacate/internal/bench"
	"vacate/internal/drive"
)

func options(path string) bench.Options {
	return bench.Options{Path: path, Span: 16 << 20, Each: time.Second}
}

func TestPlanFolder(t *testing.T) {
	dir := t.TempDir()
	o := options(dir)
	o.Span += 4097 // is rounded down
	p, err := Plan(o)
	if err != nil {
		t.Fatal(err)
	}
	if p.Path != dir || p.Device || p.SpanBytes != 16<<20 || p.FreeBytes <= 0 || !strings.HasPrefix(p.Kind, "folder on ") || len(p.Refused()) > 0 {
		t.Errorf("plan %+v", p)
	}
	if p.AreaBytes < 2*p.SpanBytes+2*margin {
		t.Errorf("a file of %d bytes has no room for two times %d", p.AreaBytes, p.SpanBytes)
	}
	if want := 16 * time.Second; p.Takes < want || p.Takes > want+10*time.Second {
		t.Errorf("eight workloads of a second on each side take %v", p.Takes)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("a plan left %v (%v)", left, err)
	}
	o.Span = bench.MaxSpan
	if p, err = Plan(o); err != nil || len(p.Refused()) != 1 || p.Refused()[0].Code != "no-space" {
		t.Errorf("16 TiB: %+v, %v", p.Findings, err)
	}
	if _, err := Run(t.Context(), Config{Plan: p}); exit(err) != 4 {
		t.Errorf("a plan that is refused was run: %v", err)
	}
}

func TestPlanWrong(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		o    bench.Options
		code int
		text string
	}{
		{"missing", options(filepath.Join(dir, "none")), 3, "none"},
		{"a file", options(file), 2, "neither a folder nor a block device"},
		{"a character device", options("/dev/null"), 2, "neither a folder nor a block device"},
		{"too small", bench.Options{Path: dir, Span: 1 << 20, Each: time.Second}, 2, "16MiB"},
		{"too large", bench.Options{Path: dir, Span: 1 << 50, Each: time.Second}, 2, "16TiB"},
		{"too short", bench.Options{Path: dir, Span: 1 << 30, Each: time.Millisecond}, 2, "0.1 to 3600"},
		{"too long", bench.Options{Path: dir, Span: 1 << 30, Each: 2 * time.Hour}, 2, "0.1 to 3600"},
	} {
		if _, err := Plan(tt.o); exit(err) != tt.code || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v (exit code %d), want %d and %q", tt.name, err, exit(err), tt.code, tt.text)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file holds %q, %v", b, err)
	}
}

// exit is the exit code that err gives, 0 if none.
func exit(err error) int {
	var coded interface{ CommandExit() int }
	if errors.As(err, &coded) {
		return coded.CommandExit()
	}
	return 0
}

// TestPlain: this command has no --force, so it does not offer one.
func TestPlain(t *testing.T) {
	for _, tt := range []struct{ text, confirm, want string }{
		{`/dev/x holds an ext4 file system; to destroy that, use --force and type the serial number "S1"`, "S1", "/dev/x holds an ext4 file system"},
		{`/dev/x has a table; to destroy that, use --force and type the path "/dev/x"`, "/dev/x", "/dev/x has a table"},
		{"something else", "S1", "something else"},
	} {
		if got := plain(drive.Finding{Text: tt.text, Force: true}, tt.confirm); got != tt.want {
			t.Errorf("%q became %q", tt.text, got)
		}
	}
}

// TestArea: both sides fit, for every size of an extent that a drive may get.
func TestArea(t *testing.T) {
	for span := int64(bench.MinSpan); span < 1<<30; span += 7 << 20 {
		for ext := int64(1 << 20); ext <= extent; ext *= 2 {
			lease := (span + ext - 1) / ext * ext
			if end := margin + lease + span; end > area(span) {
				t.Fatalf("two times %d bytes with extents of %d end at %d, and the area has %d", span, ext, end, area(span))
			}
		}
	}
}

func TestSlices(t *testing.T) {
	for _, tt := range []struct {
		d time.Duration
		n int
	}{{100 * time.Millisecond, 3}, {3 * time.Second, 3}, {3500 * time.Millisecond, 4}, {time.Minute, 60}} {
		n, each := slicesOf(tt.d)
		if n != tt.n || each > time.Second || (time.Duration(n)*each-tt.d).Abs() > time.Microsecond {
			t.Errorf("%v: %d slices of %v", tt.d, n, each)
		}
	}
}

// TestSteps: what is told goes forward, from nothing to the end.
func TestSteps(t *testing.T) {
	p := bench.Plan{SpanBytes: 1 << 30, Each: time.Second}
	var got []bench.Event
	x := newTeller(&p, func(e bench.Event) { got = append(got, e) })
	for i := range x.steps {
		x.at(i, 0)
		x.at(i, 0.5)
	}
	var last time.Duration
	for _, e := range got {
		if e.Begin < last || e.End < e.Begin || e.End > e.Total || e.What == "" {
			t.Errorf("after %v: %+v", last, e)
		}
		last = e.Begin
	}
	if end := got[len(got)-1]; end.End != end.Total || got[0].Begin != 0 {
		t.Errorf("from %+v to %+v", got[0], end)
	}
	if what := got[2*stepRows].What; what != bench.Workloads()[0].String() {
		t.Errorf("the first workload's step is %q", what)
	}
}

func TestModelName(t *testing.T) {
	if got := modelName("processor\t: 0\nmodel\t\t: 143\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: Other\n"); got != "Some CPU @ 2 GHz" {
		t.Errorf("got %q", got)
	}
	if got := modelName("processor : 0\nBogoMIPS : 50.00\n"); got != "" {
		t.Errorf("got %q of a processor without a name", got)
	}
	if h := host(); h.Processor == "" || h.Cores < 1 || h.Kernel == "" {
		t.Errorf("host %+v", h)
	}
}

func TestProcessor(t *testing.T) {
	all, err := processor()
	if err != nil {
		t.Fatal(err)
	}
	used := 0
	for _, s := range all {
		if s.BytesPerSecond < 1e6 {
			t.Errorf("%s: %.0f bytes a second", s.Name, s.BytesPerSecond)
		}
		if s.Used {
			used++
		}
	}
	if used != 1 || len(all) != len(speeds()) {
		t.Errorf("%d of %d are used", used, len(all))
	}
	if _, err := cipherSpeed("rot13", time.Millisecond); err == nil {
		t.Error("an implementation that there is not has a speed")
	}
}
