//go:build vm

package devices

import (
	"errors"
	"testing"

	"vacate/internal/ublkcmd"
	"vacate/internal/ublkctl"
)

// The tests of this file need the kernel's driver, and are run in a machine of
// test/vm (TestDevices there).

// TestKernelCommands: what the kernel says to the control commands.
func TestKernelCommands(t *testing.T) {
	c, err := ublkctl.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	t.Logf("features: %+v", c.Features())
	if err := ublkctl.AtLeast(ublkMax); err != nil {
		t.Fatal(err)
	}
	var ids []int
	for range 70 {
		i, err := c.Add(ublkctl.Info{ID: -1, Queues: 2, Depth: 64, MaxIO: ublkMaxIO, Mark: 0x8000000100000002})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, i.ID)
	}
	id := ids[3]
	i, err := c.Info(id)
	if err != nil || i.ID != id || i.Mark != 0x8000000100000002 || i.Queues != 2 || i.Depth != 64 || i.MaxIO != ublkMaxIO || i.State != ublkcmd.StateDead {
		t.Errorf("info: %+v, %v", i, err)
	}
	t.Logf("info: %+v", i)
	want := ublkcmd.Params{Types: ublkcmd.ParamBasic | ublkcmd.ParamDiscard,
		Basic:   ublkcmd.Basic{Attrs: ublkcmd.AttrVolatileCache | ublkcmd.AttrFUA, LogicalShift: 9, PhysicalShift: 12, IOMinShift: 12, IOOptShift: 12, MaxSectors: ublkMaxIO / 512, DevSectors: 1 << 20},
		Discard: ublkcmd.Discard{Granularity: 4096, MaxDiscardSectors: discardMost, MaxWriteZeroesSectors: discardMost, MaxSegments: 1}}
	if err := c.SetParams(id, want); err != nil {
		t.Fatal(err)
	}
	got, err := c.Params(id)
	t.Logf("params: %+v, %v", got, err)
	want.Len, got.Types = got.Len, got.Types&want.Types // the kernel adds one of its own
	if err != nil || got != want {
		t.Errorf("params: %+v, want %+v", got, want)
	}
	f, err := c.OpenServer(id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.OpenServer(id); err == nil {
		t.Error("a character device was opened twice")
	} else {
		t.Log("opened twice:", err)
	}
	if err := c.BeginRecovery(id); err == nil {
		t.Error("a dead device is recovered")
	} else {
		t.Log("recovering a dead one:", err)
	}
	if err := c.Resize(id, 1<<20); !errors.Is(err, ublkctl.ErrTooOld) {
		t.Errorf("resize: %v", err)
	}
	if err := c.Stop(id); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err := c.Delete(id); err != nil { // while the server has it open
		t.Errorf("delete: %v", err)
	}
	l, err := c.List()
	if err != nil || len(l) != 69 {
		t.Errorf("list: %v, %v", l, err)
	}
	i, err = c.Info(id)
	t.Logf("deleted, and still open: %+v, %v", i, err)
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	for _, i := range ids {
		if i != id {
			if err := c.Delete(i); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := c.Info(id); !errors.Is(err, ublkctl.ErrNoDevice) {
		t.Errorf("info of a device that is gone: %v", err)
	}
	if err := c.Delete(12345); !errors.Is(err, ublkctl.ErrNoDevice) {
		t.Errorf("delete of none: %v", err)
	}
	if l, err := c.List(); err != nil || len(l) != 0 {
		t.Errorf("list: %v, %v", l, err)
	}
}
