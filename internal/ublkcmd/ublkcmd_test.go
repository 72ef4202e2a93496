package ublkcmd

import (
	"testing"
	"unsafe"
)

// TestLayout holds the sizes that the kernel checks, and the numbers of commands as
// the kernel's header has them (_IOWR('u', nr, struct …)).
func TestLayout(t *testing.T) {
	for what, sizes := range map[string][2]uintptr{
		"ctrl_cmd": {unsafe.Sizeof(Control{}), 32},
		"dev_info": {unsafe.Sizeof(DevInfo{}), 64},
		"basic":    {unsafe.Sizeof(Basic{}), 32},
		"discard":  {unsafe.Sizeof(Discard{}), 20},
		"io_desc":  {unsafe.Sizeof(Desc{}), 24},
		"io_cmd":   {unsafe.Sizeof(IO{}), 16},
	} {
		if sizes[0] != sizes[1] {
			t.Errorf("%s has %d bytes, want %d", what, sizes[0], sizes[1])
		}
	}
	for op, want := range map[Op]uint32{GetDevInfo: 0x80207502, AddDev: 0xc0207504, GetFeatures: 0x80207513, FetchReq: 0xc0107520, CommitAndFetchReq: 0xc0107521} {
		if uint32(op) != want {
			t.Errorf("command %#x, want %#x", uint32(op), want)
		}
	}
	if got := DescOffset(1, 4096); got != 98304 {
		t.Errorf("queue 1's descriptors lie at %d, want 98304", got)
	}
	if d := (Desc{OpFlags: OpWrite | ReqFUA}); d.Op() != OpWrite || d.Flags() != ReqFUA {
		t.Errorf("%+v: op %d, flags %#x", d, d.Op(), d.Flags())
	}
}
