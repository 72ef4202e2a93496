package server

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"connectrpc.com/connect"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
)

func TestUpgrade(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		code connect.Code
		says []string // in the text, and what to do
	}{
		{"begun", nil, 0, nil},
		{"does not start", fmt.Errorf("asking: %w", syscall.ENOEXEC), connect.CodeInternal,
			[]string{"/usr/bin/vacate does not start", "nothing was changed", "log", "`/usr/bin/vacate version`", "`/usr/bin/vacate serve --check-config`"}},
		{"under way", fmt.Errorf("asking: %w", syscall.EBUSY), connect.CodeUnavailable, []string{"under way", "vacate status"}},
		{"keeper gone", errors.New("the keeper's link is down"), connect.CodeInternal, []string{"link is down", "vacate status"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := start(t, func(c *Config) { c.Upgrade = func() error { return tt.err } })
			_, err := d.as(uidOperator).Node.Upgrade(t.Context(), &vacatev1.NodeServiceUpgradeRequest{})
			if tt.err == nil {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			st, serr := d.as(uidOperator).Node.Status(t.Context(), &vacatev1.NodeServiceStatusRequest{})
			if serr != nil {
				t.Fatal(serr)
			}
			if refused := errors.Is(tt.err, syscall.ENOEXEC); strings.HasPrefix(st.GetLastUpgrade(), "failed: ") != refused {
				t.Errorf("status says of the last upgrade %q", st.GetLastUpgrade())
			}
			if connect.CodeOf(err) != tt.code {
				t.Errorf("code %v, want %v", connect.CodeOf(err), tt.code)
			}
			text := fmt.Sprint(err, " ", client.ProblemOf(err).GetNext())
			for _, want := range tt.says {
				if !strings.Contains(text, want) {
					t.Errorf("%q leaves out %q", text, want)
				}
			}
		})
	}
}

func TestProcesses(t *testing.T) {
	d := start(t)
	st, err := d.as(uidOperator).Node.Status(t.Context(), &vacatev1.NodeServiceStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if st.GetVersion() != "v1" || st.GetKeeperVersion() != "v0" || st.GetLastUpgrade() != "done" || st.GetBinary() != "/usr/bin/vacate" ||
		st.GetEngine().GetVersion() != "v9" || st.GetEngine().GetGeneration() != 2 {
		t.Errorf("%v", st)
	}
	s := Snapshot(t.Context(), d.node, Processes{Control: "v1", Keeper: "v0"})
	if s.Versions["control"] != "v1" || s.Versions["keeper"] != "v0" || s.Versions["engine"] != "v9" || s.Generation != 2 {
		t.Errorf("%+v", s)
	}
}
