package vhostuser

import (
	"net"
	"sync"
	"testing"

	"vacate/internal/sys"
	"vacate/internal/volatile"
)

// FuzzHandlers gives handlers any payload, with and without descriptors, in a
// session that has some of everything. What they make of the record is one, and
// nothing of the session changes.
func FuzzHandlers(f *testing.F) {
	for r, form := range forms {
		f.Add(r, make([]byte, form.min), uint8(form.fds))
		f.Add(r, make([]byte, form.max), uint8(0))
	}
	f.Add(uint32(reqSetMemTable), append(u64(1), u64s(0, 1<<20, guestAt, 0)...), uint8(1))
	f.Add(uint32(reqAddMemReg), append(u64(0), u64s(1<<30, 4096, guestAt+1<<30, 4096)...), uint8(1))
	f.Add(uint32(reqSetConfig), append(le.AppendUint32(state(32, 1), 0), 0), uint8(0))
	f.Add(uint32(reqSetInflightFD), append(u64s(1<<16, 0), 2, 0, 128, 0), uint8(1))
	made := sync.OnceValues(func() (*volatile.Session, error) {
		file, err := volatile.CreateSession(2, 64)
		if err != nil {
			return nil, err
		}
		return volatile.OpenSession(file)
	})
	f.Fuzz(func(t *testing.T, request uint32, payload []byte, fds uint8) {
		file, err := made()
		if err != nil {
			t.Fatal(err)
		}
		cfg := Config{Export: disk{1 << 30}, Queues: 2}
		cfg.setDefaults()
		s := &session{server: &Server{cfg: cfg, geometry: disk{1 << 30}.Geometry(), file: file}, fd: -1}
		s.rec.Conn = 2
		s.rec.Held.Add(2)
		s.rec.Removed = volatile.SessionRegion{Guest: 1, Size: 2, User: 3}
		s.rec.Rings[0] = volatile.SessionRing{Size: 128, Running: true, Started: true, Enabled: true, Addressed: true}
		before := s.rec

		m := message{request: request, payload: payload}
		for range fds % 10 {
			guest, err := sys.Memfd("guest", 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			fd, err := sys.Detach(guest)
			if err != nil {
				t.Fatal(err)
			}
			m.files = append(m.files, fd)
		}
		defer m.close()
		c := s.begin()
		defer c.drop()
		if err = m.check(); err == nil {
			err = handlers[request](s, c, &m)
		}
		if err == nil {
			_, err = s.memory(c)
		}
		if s.rec != before {
			t.Error("a handler has changed the session")
		}
		if err != nil {
			return
		}
		if c.stopped != nil {
			c.stopped()
		}
		if err := file.Commit(&c.rec); err != nil {
			t.Errorf("%s makes a record that is none: %v", requestName(request), err)
		}
		if (c.reply != nil) != forms[request].reply {
			t.Errorf("%s has the reply % x", requestName(request), c.reply)
		}
	})
}

// FuzzStream sends any bytes, cut anywhere, with a descriptor at one of the cuts. The
// server goes on to serve.
func FuzzStream(f *testing.F) {
	hello := append(raw(reqGetFeatures, flagsVersion, nil), raw(reqSetProtocolFeatures, flagsVersion, u64(protoOffered))...)
	f.Add(hello, uint8(12), uint8(1), false)
	f.Add(append(hello, raw(reqSetVringKick, flagsVersion|flagsNeedReply, u64(0))...), uint8(32), uint8(2), true)
	f.Add(raw(reqSetMemTable, flagsVersion, append(u64(1), u64s(0, 1<<20, guestAt, 0)...)), uint8(7), uint8(0), true)
	f.Add(raw(reqSetConfig, flagsVersion, make([]byte, 13)), uint8(1), uint8(0), false)
	w := newWorldFor(f)
	f.Fuzz(func(t *testing.T, stream []byte, cut, with uint8, file bool) {
		c, err := net.Dial("unix", w.path)
		if err != nil {
			t.Fatal(err)
		}
		peer := &frontend{t: t, conn: c.(*net.UnixConn)}
		event, err := sys.NewEvent()
		if err != nil {
			t.Fatal(err)
		}
		for i := uint8(0); len(stream) > 0; i++ {
			n := min(max(int(cut), 1), len(stream))
			var files []int
			if file && i == with {
				files = []int{event}
			}
			if peer.trySend(stream[:n], files) != nil {
				break // it has hung up
			}
			stream = stream[n:]
		}
		_ = sys.CloseFD(event)
		_ = c.Close() // the server may have hung up
		next, err := net.Dial("unix", w.path)
		if err != nil {
			t.Fatal(err)
		}
		peer = &frontend{t: t, conn: next.(*net.UnixConn)}
		peer.ask(reqGetQueueNum, nil)
		_ = next.Close()
	})
}
