package vhostclient

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// heard is what QEMU 7.2 says of a disk with two queues when SeaBIOS starts it, and
// when the machine is reset: SeaBIOS uses the first queue only.
const heard = `GET_FEATURES GET_PROTOCOL_FEATURES SET_PROTOCOL_FEATURES GET_QUEUE_NUM GET_MAX_MEM_SLOTS SET_BACKEND_REQ_FD! SET_OWNER GET_FEATURES
SET_VRING_CALL/0 SET_VRING_ERR/0 SET_VRING_CALL/1 SET_VRING_ERR/1 GET_CONFIG
SET_FEATURES SET_VRING_CALL/0 SET_VRING_CALL/1 SET_FEATURES ADD_MEM_REG! SET_VRING_NUM/0 SET_VRING_BASE/0 SET_VRING_ADDR/0 SET_VRING_KICK/0
SET_VRING_ENABLE/0=1 SET_VRING_ENABLE/1=1`

const heardReset = `SET_VRING_ENABLE/0=0 SET_VRING_ENABLE/1=0 GET_VRING_BASE/0
SET_FEATURES SET_VRING_CALL/0 SET_VRING_CALL/1 SET_FEATURES SET_VRING_NUM/0 SET_VRING_BASE/0 SET_VRING_ADDR/0 SET_VRING_KICK/0
SET_VRING_ENABLE/0=1 SET_VRING_ENABLE/1=1`

func TestQEMU72(t *testing.T) {
	r, socket := record(t, startQSD(t, 8<<20, 2))
	cmd := exec.Command("qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35,memory-backend=m,accel=tcg", "-m", "64M",
		"-object", "memory-backend-memfd,id=m,size=64M,share=on", "-chardev", "socket,id=c,path="+socket,
		"-device", "vhost-user-blk-pci,chardev=c,num-queues=2", "-qmp", "stdio")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatalf("%v: install qemu-system-x86 (make test-packages)", err)
	}
	say := func(s string) {
		if _, err := in.Write([]byte(`{"execute":"` + s + "\"}\n")); err != nil {
			t.Error(err)
		}
	}
	defer func() {
		say("quit")
		late := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() }) // Wait says that it was
		defer late.Stop()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}()
	say("qmp_capabilities")
	want := strings.Fields(heard)
	r.wait(t, len(want))
	say("system_reset")
	want = append(want, strings.Fields(heardReset)...)
	if got := r.wait(t, len(want)); !slices.Equal(got, want) {
		t.Errorf("heard\n%s, want\n%s", strings.Join(got, " "), strings.Join(want, " "))
	}
}

// TestQEMU72Played: the table says what was heard, but that all of its rings are in
// use, and that the daemon has no region for requests in flight.
func TestQEMU72Played(t *testing.T) {
	r, socket := record(t, startQSD(t, 8<<20, 2))
	c := dialTest(t, socket, Options{Sequence: &QEMU72, Queues: 2, Regions: 1})
	if err := c.Restart(); err != nil {
		t.Fatal(err)
	}
	writeRead(t, c)
	second := func(s string) bool {
		return strings.HasSuffix(s, "/1") && !strings.HasPrefix(s, "SET_VRING_CALL") && !strings.HasPrefix(s, "SET_VRING_ERR")
	}
	got := slices.DeleteFunc(r.wait(t, 1), second)
	if want := strings.Fields(heard + " " + heardReset); !slices.Equal(got, want) {
		t.Errorf("played\n%s, want\n%s", strings.Join(got, " "), strings.Join(want, " "))
	}
}
