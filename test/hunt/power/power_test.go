package power

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"vacate/internal/journal"
	"vacate/test/vm/canary"
	"vacate/test/vm/disk"
	"vacate/test/vm/wire"
)

func newDisk(t *testing.T) *disk.Disk {
	t.Helper()
	return disk.New(disk.NewSupply(), 1<<20)
}

// TestSearch: what must be on no disk is found wherever it lies, in the cache
// too, and nothing is found where nothing is.
func TestSearch(t *testing.T) {
	slot := make([]byte, 1024)
	rand.Read(slot[:500])
	slot[335] |= 1 // behind less than a needle of it a disk has 0
	odd := wire.LeaseEvent{Tag: 5, Sector: 10, Count: 3, Version: 7}
	noise := make([]byte, canary.SectorSize)
	canary.Fill(noise, 1, odd.Tag, 11, odd.Version)
	magic := canary.Magic(1)
	tests := []struct {
		name string
		off  int64
		p    []byte
		want string // part of the one find; none if empty
	}{
		{"nothing", 0, nil, ""},
		{"another hunt's canary", 512, func() []byte { m := canary.Magic(2); return m[:] }(), ""},
		{"a canary at an odd byte", 777, magic[:], "a canary in d's write cache at 0x309"},
		{"a canary across two sectors", 1020, magic[:], "a canary in d's write cache at 0x3fc"},
		{"a sector that looks like noise", 8192, noise, "sector 11, version 7, of lease 0x5"},
		{"a round key", 4099, slot[320:336], "byte 320 of key 0"},
		{"half a key in digits", 99, []byte(hex.EncodeToString(slot[32:64])), "hexadecimal"},
		{"less than a needle", 99, slot[320:335], ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFinder(1)
			f.keys(5, &wire.Keys{Slots: [][]byte{slot}})
			f.canaries(odd)
			d := newDisk(t)
			p := make([]byte, 16384)
			copy(p[tt.off:], tt.p)
			if err := d.Write(p, 0, false); err != nil {
				t.Fatal(err)
			}
			got, searched := f.search("d", d)
			if tt.want == "" && len(got) > 0 || tt.want != "" && (len(got) != 1 || !strings.Contains(got[0], tt.want)) {
				t.Errorf("found %q, want %q", got, tt.want)
			}
			if searched != d.Size()+16384 {
				t.Errorf("searched %d bytes", searched)
			}
		})
	}
}

// newTestBook is a book with one lease in each phase.
func newTestBook(t *testing.T) *book {
	t.Helper()
	b := newBook()
	tell := func(kind string, e wire.LeaseEvent) {
		if err := b.event(kind, e); err != nil {
			t.Fatal(err)
		}
	}
	for tag, last := range []string{"opening", "opened", "closing", "closed", "erased"} {
		e := wire.LeaseEvent{Tag: uint64(tag), Tenant: last, Lease: "id-" + last}
		for _, kind := range []string{"opening", "opened", "closing", "closed"} {
			if kind == "closed" {
				e.State = last
			}
			tell(kind, e)
			if kind == last {
				break
			}
		}
	}
	return b
}

// shown is what a node must show of newTestBook after a cut.
func shown() []view {
	lost := view{State: "lost", Result: "lost_boot", Space: "free", OpenSeq: 1, CloseSeq: 9}
	done := view{State: "closed", Result: "ok", Space: "free", OpenSeq: 1, CloseSeq: 9}
	var list []view
	for _, tenant := range []string{"opening", "opened", "closing", "closed", "erased"} {
		v := lost
		if tenant == "closed" || tenant == "erased" {
			v = done
		}
		v.ID, v.Tenant = "id-"+tenant, tenant
		list = append(list, v)
	}
	return list
}

func TestBook(t *testing.T) {
	tests := []struct {
		name      string
		change    func(list []view) []view
		wrong     string // part of the one finding; none if empty
		unsettled string
	}{
		{"as it must be", func(l []view) []view { return l }, "", ""},
		{"an opening never came to be", func(l []view) []view { return l[1:] }, "", ""},
		{"a closing was done", func(l []view) []view { l[2].State, l[2].Result = "closed", "ok"; return l }, "", ""},
		{"an open lease vanished", func(l []view) []view { return append(l[:1], l[2:]...) }, `"opened" is not there`, ""},
		{"an open lease is closed", func(l []view) []view { l[1].State, l[1].Result = "closed", "ok"; return l }, "want lost", ""},
		{"lost by another cause", func(l []view) []view { l[1].Result = "lost_keeper"; return l }, "want lost", ""},
		{"a closed lease is lost", func(l []view) []view { l[3].State, l[3].Result = "lost", "lost_boot"; return l }, "is now lost", ""},
		{"a lease is still open", func(l []view) []view { l[1].State = "open"; return l }, "", "still open"},
		{"space is not free", func(l []view) []view { l[1].Space = "cleaning"; return l }, "", "cleaning"},
		{"no CLOSE record", func(l []view) []view { l[1].CloseSeq = 0; return l }, "CLOSE record 0", ""},
		{"another id", func(l []view) []view { l[1].ID = "x"; return l }, "another id", ""},
		{"a stranger", func(l []view) []view { return append(l, view{Tenant: "x"}) }, "never asked for", ""},
		{"twice", func(l []view) []view { return append(l, l[1]) }, "two leases", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			wrong, unsettled := newTestBook(t).check(tt.change(shown()))
			for what, c := range map[string]struct {
				got  []string
				want string
			}{"wrong": {wrong, tt.wrong}, "unsettled": {unsettled, tt.unsettled}} {
				if c.want == "" && len(c.got) > 0 || c.want != "" && (len(c.got) != 1 || !strings.Contains(c.got[0], c.want)) {
					t.Errorf("%s: %q, want %q", what, c.got, c.want)
				}
			}
		})
	}
}

// TestBookStays: what was shown once must be shown ever after.
func TestBookStays(t *testing.T) {
	b := newTestBook(t)
	list := shown()[1:]
	b.settle(list)
	if wrong, unsettled := b.check(list); len(wrong)+len(unsettled) > 0 {
		t.Errorf("the same again: %q, %q", wrong, unsettled)
	}
	list[0].CloseSeq++
	if wrong, _ := b.check(list); len(wrong) != 1 {
		t.Errorf("another CLOSE record: %q", wrong)
	}
	list = shown() // with the lease that was not there the first time
	if wrong, _ := b.check(list); len(wrong) != 1 || !strings.Contains(wrong[0], "never asked for") {
		t.Errorf("a lease that came later: %q", wrong)
	}
}

// TestDecide: the same seed decides the same, and every moment is drawn.
func TestDecide(t *testing.T) {
	seen := map[string]int{}
	for cut := 1; cut <= 500; cut++ {
		a, b := decide(draw(3, cut), cut), decide(draw(3, cut), cut)
		if !reflect.DeepEqual(a, b) {
			t.Fatalf("cut %d: %v and %v", cut, a, b)
		}
		seen[a.during]++
		seen[fmt.Sprintf("on %q", a.disk)]++
		if a.disk != "" && a.at < 1 || a.tenants < 1 {
			t.Errorf("cut %d: %+v", cut, a)
		}
	}
	for _, want := range []string{duringStart, duringEnrol, duringCheck, duringLoad, `on ""`, `on "state"`, `on "data"`} {
		if seen[want] == 0 {
			t.Errorf("%s is never drawn: %v", want, seen)
		}
	}
}

// TestAuditRecords: a gap in the records is a finding.
func TestAuditRecords(t *testing.T) {
	j, err := journal.Open(journal.Options{Dir: t.TempDir() + "/state", NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	d := journal.Drive{UUID: strings.Repeat("a1", 16), Path: "/dev/x", ExtentBytes: 1 << 20, Extents: 10}
	if err := j.AddDrive(d); err != nil {
		t.Fatal(err)
	}
	if err := j.FinishDrive(d, journal.Testimony{}); err != nil {
		t.Fatal(err)
	}
	if n, err := auditRecords(j.Records); err != nil || n != 1 {
		t.Errorf("audited %d records: %v", n, err)
	}
	gap := func(after uint64, limit int) ([]journal.Stored, error) {
		part, err := j.Records(after, limit)
		if after == 0 && len(part) > 0 {
			part = append(part, part[0])
		}
		return part, err
	}
	var f *finding
	if _, err := auditRecords(gap); !errors.As(err, &f) {
		t.Errorf("a record that stands there twice: %v", err)
	}
}

// TestVerdict: a planted bug turns the result around; a failure of the hunt itself
// is one in both cases.
func TestVerdict(t *testing.T) {
	own := errors.New("no kernel")
	for _, tt := range []struct {
		plant string
		err   error
		fails bool
	}{
		{"", nil, false}, {"", &finding{"x"}, true}, {"", own, true},
		{lyingDisk, nil, true}, {lyingDisk, &finding{"x"}, false}, {lyingDisk, own, true},
	} {
		h := &hunt{o: options{plant: tt.plant}}
		if err := h.verdict(1, tt.err); (err != nil) != tt.fails {
			t.Errorf("plant %q, %v: verdict %v", tt.plant, tt.err, err)
		}
	}
}
