package lease

import (
	"slices"
	"strings"
	"testing"
)

func TestParseExports(t *testing.T) {
	for _, tt := range []struct {
		kinds string
		want  Exports
		says  string // of the error
	}{
		{"", Exports{}, ""},
		{"nbd", Exports{}, ""},
		{"vhost-user", Exports{NoNBD: true, VhostUser: true}, ""},
		{"nbd vhost-user", Exports{VhostUser: true}, ""},
		{"vhost-user nbd", Exports{VhostUser: true}, ""},
		{"nbd nbd", Exports{}, "twice"},
		{"vhost-user nbd vhost-user", Exports{}, "twice"},
		{"ublk", Exports{}, `"ublk"`},
		{"NBD", Exports{}, `"NBD"`},
	} {
		got, err := ParseExports(strings.Fields(tt.kinds))
		if tt.says == "" && (err != nil || got != tt.want) || tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("ParseExports(%q) = %+v, %v", tt.kinds, got, err)
		}
		if err != nil {
			continue
		}
		if got.VhostUser {
			got.Queues = 1
		}
		if err := got.Check(); err != nil {
			t.Errorf("%q: %v", tt.kinds, err)
		}
		want := strings.Fields(tt.kinds)
		if slices.Sort(want); len(want) == 0 {
			want = []string{NBD}
		}
		if !slices.Equal(got.Kinds(), want) || got.String() != strings.Join(want, ", ") {
			t.Errorf("%q: kinds %v", tt.kinds, got)
		}
	}
	if _, err := ParseExports([]string{""}); err == nil {
		t.Error("an export without a name")
	}
}

func TestCheckExports(t *testing.T) {
	for _, tt := range []struct {
		x    Exports
		says string
	}{
		{Exports{}, ""},
		{Exports{VhostUser: true, Queues: 1}, ""},
		{Exports{NoNBD: true, VhostUser: true, Queues: 64, ReadOnly: true}, ""},
		{Exports{NoNBD: true}, "reached"},
		{Exports{Queues: 1}, "queues"},
		{Exports{ReadOnly: true}, "read-only"},
		{Exports{VhostUser: true}, "1 to 64"},
		{Exports{VhostUser: true, Queues: 65}, "1 to 64"},
		{Exports{VhostUser: true, Queues: -1}, "1 to 64"},
	} {
		err := tt.x.Check()
		if tt.says == "" && err != nil || tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("%+v: %v", tt.x, err)
		}
	}
}
