package slow

import (
	"encoding/binary"
	"slices"
	"syscall"
)

// The protocol of FUSE, as far as one file without a folder needs it
// (include/uapi/linux/fuse.h, version 7.31).

var le = binary.LittleEndian

// Operations.
const (
	opForget      = 2
	opGetattr     = 3
	opSetattr     = 4
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatfs      = 17
	opRelease     = 18
	opFsync       = 20
	opFlush       = 25
	opInit        = 26
	opAccess      = 34
	opInterrupt   = 36
	opDestroy     = 38
	opBatchForget = 42
)

const (
	inHeader  = 40
	outHeader = 16

	mode     = syscall.S_IFREG | 0o600
	maxWrite = 1 << 20

	initAsyncRead = 1 << 0
	initBigWrites = 1 << 5
	initAsyncDIO  = 1 << 15 // direct I/O of io_uring goes on after its submission
	initMaxPages  = 1 << 22

	openDirect         = 1 << 0
	openParallelWrites = 1 << 6
)

// A request is what a reply needs of its header.
type request struct{ unique uint64 }

// answer carries out one request, or sees to it.
func (f *File) answer(b []byte) {
	if len(b) < inHeader {
		return
	}
	r := request{unique: le.Uint64(b[8:])}
	arg := b[inHeader:]
	switch le.Uint32(b[4:]) {
	case opInit:
		f.reply(r, initReply())
	case opGetattr, opSetattr:
		f.reply(r, f.attrReply())
	case opOpen:
		out := make([]byte, 16)
		le.PutUint32(out[8:], openDirect|openParallelWrites)
		f.reply(r, out)
	case opRead:
		f.read(r, int64(le.Uint64(arg[8:])), int(le.Uint32(arg[16:])))
	case opWrite:
		const header = 40
		f.write(r, int64(le.Uint64(arg[8:])), slices.Clone(arg[header:header+int(le.Uint32(arg[16:]))]))
	case opStatfs:
		out := make([]byte, 80)
		le.PutUint32(out[40:], 4096) // bsize
		le.PutUint32(out[48:], 4096) // frsize
		f.reply(r, out)
	case opFsync:
		if f.back.Sync() != nil {
			f.fail(r, syscall.EIO)
			return
		}
		f.reply(r, nil)
	case opRelease, opFlush, opAccess, opDestroy:
		f.reply(r, nil)
	case opForget, opBatchForget, opInterrupt: // they have no reply
	default:
		f.fail(r, syscall.ENOSYS)
	}
}

func (f *File) read(r request, off int64, n int) {
	f.replies.Go(func() {
		p := make([]byte, max(0, min(int64(n), f.size-off)))
		f.landing.RLock()
		_, err := f.back.ReadAt(p, off)
		f.landing.RUnlock()
		if err != nil {
			f.fail(r, syscall.EIO)
			return
		}
		f.reply(r, p)
	})
}

func initReply() []byte {
	out := make([]byte, 64)
	le.PutUint32(out, 7)
	le.PutUint32(out[4:], 31)
	le.PutUint32(out[12:], initAsyncRead|initBigWrites|initAsyncDIO|initMaxPages)
	le.PutUint16(out[16:], 4096) // requests in the background, at most
	le.PutUint16(out[18:], 4096) // … until it counts as congested
	le.PutUint32(out[20:], maxWrite)
	le.PutUint32(out[24:], 1) // nanoseconds
	le.PutUint16(out[28:], maxWrite/4096)
	return out
}

func (f *File) attrReply() []byte {
	out := make([]byte, 104) // valid for no time: 16 bytes of zeros
	a := out[16:]
	le.PutUint64(a, 1) // ino
	le.PutUint64(a[8:], uint64(f.size))
	le.PutUint64(a[16:], uint64(f.size/512))
	le.PutUint32(a[60:], mode)
	le.PutUint32(a[64:], 1) // nlink
	le.PutUint32(a[80:], 4096)
	return out
}

func wroteReply(n int) []byte {
	out := make([]byte, 8)
	le.PutUint32(out, uint32(n))
	return out
}

func (f *File) reply(r request, body []byte) { f.send(r, 0, body) }

func (f *File) fail(r request, errno syscall.Errno) { f.send(r, errno, nil) }

// send answers. Nobody may be there any more (ENOENT, ENODEV): then it is lost.
func (f *File) send(r request, errno syscall.Errno, body []byte) {
	b := make([]byte, outHeader, outHeader+len(body))
	b = append(b, body...)
	le.PutUint32(b, uint32(len(b)))
	le.PutUint32(b[4:], uint32(-int32(errno)))
	le.PutUint64(b[8:], r.unique)
	_, _ = syscall.Write(f.fuse, b)
}
