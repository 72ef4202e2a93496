package engine

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"

	"vacate/internal/ipc"
	"vacate/internal/mem"
	"vacate/internal/nbdclient"
	"vacate/internal/volatile"
	"vacate/internal/xts"
)

// keyNeedles are the key in a slot and parts of its schedule.
func keyNeedles(slot []byte) map[string][]byte {
	slot = bytes.Clone(slot)
	n := make(map[string][]byte)
	for at := 0; at < xts.KeySize; at += 16 {
		n[fmt.Sprintf("key[%d:]", at)] = slot[at : at+16]
	}
	for at := xts.KeySize; at+16 <= xts.KeySize+xts.ScheduleSize; at += 7 * 16 { // of each of its three parts
		n[fmt.Sprintf("schedule[%d:]", at-xts.KeySize)] = slot[at : at+16]
	}
	return n
}

// TestL5KeyIsOverwritten: after a close the key and its schedule are nowhere: not
// in the whole of the keys' memory, not in the engine's. Before it, the same
// search finds all of it in its slot, and nowhere else (law L2). The bug
// plant.KeyNotWiped makes this fail.
func TestL5KeyIsOverwritten(t *testing.T) {
	p := startProcess(t)
	_, uuid := p.drive()
	req := request(7, uuid, 0)
	c, _ := dial(t, p.open(req), nbdclient.Options{NoBlockSize: true})
	for i := range int64(16) {
		buf := make([]byte, 100_000)
		check(t, errors.Join(c.WriteFlags(buf, i*777, 0), c.ReadFlags(buf, i*777, 0)))
	}
	needles := keyNeedles(p.keys.Slot(req.Slot))
	inKeys := func() []string {
		var all [][]byte
		for i := range volatile.Slots {
			all = append(all, p.keys.Slot(i))
		}
		found, err := searchIn(bytes.NewReader(bytes.Join(all, nil)), "the keys", needles)
		check(t, err)
		return found
	}
	if mem.IsZero(p.keys.Slot(req.Slot)) {
		t.Fatal("no key in the slot: the search would find anything")
	}
	if found := inKeys(); len(found) != len(needles) {
		t.Fatalf("control: the search finds %d of %d parts in the keys' memory: %q", len(found), len(needles), found)
	}
	if found := p.search(needles); len(found) > 0 {
		t.Errorf("L2: while the lease is open the key lies outside its slot: %q", found)
	}
	var er ipc.Erasure
	p.call(ipc.MethodLeaseClose, ipc.LeaseRef{Lease: req.Lease}, &er, nil)
	if found := inKeys(); len(found) > 0 || !er.ReadBack {
		t.Errorf("L5: after the close, %+v, the key is still there: %q", er, found)
	}
	if found := p.search(needles); len(found) > 0 {
		t.Errorf("L5: after the close the engine holds: %q", found)
	}
}

// TestL3NoPlaintextStays: when requests of every kind have been answered, no
// buffer of the engine holds anything of them, while the connection is up or
// after; nor does the drive. While a request is under way, the same search
// finds it. The bugs plant.BufferNotCleared and plant.CipherNull make this fail.
func TestL3NoPlaintextStays(t *testing.T) {
	p := startProcess(t)
	path, uuid := p.drive()
	req := request(7, uuid, 0)
	socket := p.open(req)
	marker := make([]byte, 16)
	_, err := rand.Read(marker)
	check(t, err)
	needles := map[string][]byte{"plaintext": marker}
	clean := func(when string) {
		t.Helper()
		if found := p.search(needles); len(found) > 0 {
			t.Errorf("L3: %s the engine holds: %q", when, found)
		}
	}
	canary := bytes.Repeat(marker, 4<<20/len(marker))
	for name, o := range map[string]nbdclient.Options{
		"structured replies": {NoBlockSize: true}, "simple replies": {NoBlockSize: true, SimpleReplies: true},
	} {
		c, _ := dial(t, socket, o)
		for _, n := range []int{1, 512, 4096, 5000, 128 << 10, 256 << 10, 3 << 20} {
			for _, off := range []int64{0, 511} {
				buf := canary[:n]
				check(t, c.WriteFlags(buf, off, nbdclient.FUA))
				check(t, c.ReadFlags(make([]byte, n), off, 0))
				check(t, errors.Join(c.Zero(off+100, 50, 0), c.Trim(off+200, 50, 0))) // read, change, write
			}
		}
		if err := c.WriteFlags(canary[:300_000], c.Size()-4096, 0); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("writing over the end: %v", err)
		}
		check(t, c.WriteFlags(canary[:1<<20], 0, 0))
		_, err := nbdclient.Load{Pattern: nbdclient.RandomRead, Span: 1 << 20, Requests: 500}.Run(c)
		check(t, errors.Join(err, c.Flush()))
		clean("with an idle client and " + name + ",")
		check(t, c.Close())
	}

	c, conn := dial(t, socket, nbdclient.Options{NoBlockSize: true, SimpleReplies: true})
	finish := halfWrite(t, conn, canary[:128<<10])
	eventually(t, "control: the search to find half a request", func() bool { return len(p.search(needles)) > 0 })
	finish()
	check(t, c.Flush())
	clean("after a request that came in two halves")

	halfWrite(t, conn, canary[:128<<10])
	eventually(t, "control: the search to find half a request", func() bool { return len(p.search(needles)) > 0 })
	p.call(ipc.MethodLeaseClose, ipc.LeaseRef{Lease: req.Lease}, new(ipc.Erasure), nil)
	p.call(ipc.MethodLeaseDrain, ipc.LeaseRef{Lease: req.Lease}, new(ipc.Empty), nil)
	clean("after the close")
	found, err := searchIn(bytes.NewReader(readAll(t, path)), "the drive", needles)
	check(t, err)
	if len(found) > 0 {
		t.Errorf("L3: %q", found)
	}
}

// halfWrite sends a write request but for its last byte; finish sends that, and
// takes the reply.
func halfWrite(t *testing.T, conn net.Conn, payload []byte) (finish func()) {
	t.Helper()
	b := make([]byte, 28, 28+len(payload))
	binary.BigEndian.PutUint32(b, 0x25609513) // NBD_REQUEST_MAGIC
	binary.BigEndian.PutUint16(b[6:], 1)      // NBD_CMD_WRITE
	binary.BigEndian.PutUint32(b[24:], uint32(len(payload)))
	b = append(b, payload...)
	_, err := conn.Write(b[:len(b)-1])
	check(t, err)
	return func() {
		t.Helper()
		_, err := conn.Write(b[len(b)-1:])
		check(t, err)
		reply := make([]byte, 16)
		_, err = io.ReadFull(conn, reply)
		check(t, err)
		if errno := binary.BigEndian.Uint32(reply[4:]); errno != 0 {
			t.Errorf("the write was answered with error %d", errno)
		}
	}
}
