package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vacate/internal/ipc"
	"vacate/internal/secret"
	"vacate/internal/volatile"
)

// all are the methods that the engine knows, with a request each.
func all(path, uuid string) map[string]any {
	return map[string]any{
		ipc.MethodHello:      ipc.Empty{},
		ipc.MethodInspect:    ipc.InspectRequest{Path: path},
		ipc.MethodEnroll:     ipc.EnrollRequest{Path: path, Node: nodeID, UUID: uuid, Epoch: 1, Force: true, Confirm: path},
		ipc.MethodDriveOpen:  ipc.DriveOpenRequest{Path: path, Node: nodeID, UUID: uuid, Epoch: 1, NewEpoch: 1},
		ipc.MethodLeaseOpen:  request(0, uuid, 0),
		ipc.MethodLeaseDrain: ipc.LeaseRef{Lease: leaseID(1)},
		ipc.MethodLeaseList:  ipc.Empty{},
		ipc.MethodStats:      ipc.Empty{},
		ipc.MethodLeaseClose: ipc.LeaseRef{Lease: leaseID(0)},
		ipc.MethodDriveClose: ipc.DriveCloseRequest{UUID: uuid},
	}
}

func TestHello(t *testing.T) {
	h := newHost(t, func(c *Config) { c.Hello = ipc.Hello{Version: "v1", EngineID: "e"} })
	v, err := h.Handle(t.Context(), ipc.MethodHello, []byte("{}"), nil)
	hello, ok := v.(ipc.Hello)
	want := ipc.Hello{Version: "v1", EngineID: "e", Slots: volatile.Slots, MaxConns: 8, KeyStore: h.keys.Kind(), Shares: secret.Why()}
	if err != nil || !ok || hello != want {
		t.Errorf("hello: %+v, %v, want %+v", v, err, want)
	}
}

// TestHandleGarbage: what is no request is refused as such, and a descriptor
// that came with it is closed.
func TestHandleGarbage(t *testing.T) {
	h := newHost(t)
	for _, method := range []string{"", "Hello", "lease.open ", "lease", "\x00", strings.Repeat("x", 1<<16)} {
		_, err := h.Handle(t.Context(), method, []byte("{}"), nil)
		wantCode(t, err, ipc.CodeInvalid)
	}
	before := files(t)
	for method := range all(h.dir, "") {
		switch method {
		case ipc.MethodHello, ipc.MethodLeaseList, ipc.MethodStats:
			continue // they take nothing
		}
		for _, body := range []string{"", "null null", "[]", "{", `{"nobody":1}`, `{"path":1,"lease":1,"uuid":1}`, "\xff\xfe", `"` + strings.Repeat("x", 1<<16)} {
			f, err := os.Open(os.DevNull)
			check(t, err)
			if _, err = h.Handle(t.Context(), method, []byte(body), only(f)); err == nil {
				t.Errorf("%s of %.20q succeeds", method, body)
			}
			wantCode(t, err, ipc.CodeInvalid)
			if err := f.Close(); !errors.Is(err, os.ErrClosed) {
				t.Errorf("%s of %.20q left its descriptor open: %v", method, body, err)
			}
		}
	}
	if n := files(t); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

// tame keeps a request to files of the test's own: this may run as root, on a
// machine with disks.
func tame(h *host, method string, body []byte) []byte {
	here := func(p *string) { *p = filepath.Join(h.dir, fmt.Sprintf("drive%d", len(*p)%3)) }
	var changed any
	switch method {
	case ipc.MethodInspect:
		var r ipc.InspectRequest
		if ipc.Decode(body, &r) == nil {
			here(&r.Path)
			changed = r
		}
	case ipc.MethodEnroll:
		var r ipc.EnrollRequest
		if ipc.Decode(body, &r) == nil {
			here(&r.Path)
			changed = r
		}
	case ipc.MethodDriveOpen:
		var r ipc.DriveOpenRequest
		if ipc.Decode(body, &r) == nil {
			here(&r.Path)
			changed = r
		}
	}
	if changed == nil {
		return body // not decoded there either, so no path is touched
	}
	tamed, err := json.Marshal(changed)
	check(h.t, err)
	return tamed
}

// FuzzHandle: whatever control sends, the engine answers with a value or with an
// error, and can be emptied afterwards: no key, no map, no drive stays.
func FuzzHandle(f *testing.F) {
	h := newHost(f)
	path, uuid := h.enrolled(h.dir)
	for method, req := range all(path, uuid) {
		body, err := json.Marshal(req)
		check(f, err)
		f.Add(method, body, true)
		f.Add(method, body[:len(body)/2], false)
	}
	f.Add("nothing", []byte(`{"slot":-1}`), true)
	f.Add(ipc.MethodLeaseOpen, []byte(`{"lease":"aaaaaaaaaaaaaaaa","slot":1,"sizeBytes":4611686018427387904,"logicalBlock":512,"pieces":[{"drive":"","first":4294967295,"count":4294967295}]}`), true)
	f.Fuzz(func(t *testing.T, method string, body []byte, withListener bool) {
		h.t = t
		_, err := h.openDriveAt(path, uuid, 1, 1)
		check(t, err)
		var file *os.File
		if withListener {
			file, _ = h.listen()
		}
		v, err := h.Handle(t.Context(), method, tame(h, method, body), only(file))
		if (v == nil) == (err == nil) {
			t.Errorf("%q: value %v and error %v", method, v, err)
		}
		if _, err := json.Marshal(v); err != nil {
			t.Errorf("%q: the answer cannot be sent: %v", method, err)
		}
		if file != nil && !errors.Is(file.Close(), os.ErrClosed) {
			t.Errorf("%q left its descriptor open", method)
		}
		h.closeAll()
		h.wantNothing(0, 0)
	})
}
