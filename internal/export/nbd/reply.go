package nbd

import "encoding/binary"

// The encoders of what the server sends. Each fills the front of b, and returns how
// much of it.

func putSimple(b []byte, cookie uint64, errno uint32) int {
	b = b[:simpleSize]
	binary.BigEndian.PutUint32(b, magicSimple)
	binary.BigEndian.PutUint32(b[4:], errno)
	binary.BigEndian.PutUint64(b[8:], cookie)
	return simpleSize
}

func putChunk(b []byte, flags, typ uint16, cookie uint64, length int) {
	b = b[:chunkSize]
	binary.BigEndian.PutUint32(b, magicStructured)
	binary.BigEndian.PutUint16(b[4:], flags)
	binary.BigEndian.PutUint16(b[6:], typ)
	binary.BigEndian.PutUint64(b[8:], cookie)
	binary.BigEndian.PutUint32(b[16:], uint32(length))
}

// putData writes what goes in front of length bytes of data read at off.
func putData(b []byte, flags uint16, cookie, off uint64, length int) int {
	b = b[:dataChunkSize]
	putChunk(b, flags, chunkOffsetData, cookie, 8+length)
	binary.BigEndian.PutUint64(b[chunkSize:], off)
	return dataChunkSize
}

// putHole writes a chunk that says that length bytes at off are a hole, which
// reads as zeros.
func putHole(b []byte, flags uint16, cookie, off uint64, length uint32) int {
	b = b[:holeChunkSize]
	putChunk(b, flags, chunkOffsetHole, cookie, 12)
	binary.BigEndian.PutUint64(b[chunkSize:], off)
	binary.BigEndian.PutUint32(b[chunkSize+8:], length)
	return holeChunkSize
}

// putError writes the last chunk of a reply that failed as a whole.
func putError(b []byte, cookie uint64, errno uint32, text string) int {
	putChunk(b, chunkDone, chunkError, cookie, 6+len(text))
	return chunkSize + putErrorText(b[chunkSize:], errno, text)
}

// putErrorAt writes the last chunk of a reply that failed at off.
func putErrorAt(b []byte, cookie, off uint64, errno uint32, text string) int {
	putChunk(b, chunkDone, chunkErrorOffset, cookie, 6+len(text)+8)
	n := chunkSize + putErrorText(b[chunkSize:], errno, text)
	binary.BigEndian.PutUint64(b[n:], off)
	return n + 8
}

func putErrorText(b []byte, errno uint32, text string) int {
	binary.BigEndian.PutUint32(b, errno)
	binary.BigEndian.PutUint16(b[4:], uint16(len(text)))
	return 6 + copy(b[6:], text)
}

// appendOptReply appends a reply to an option.
func appendOptReply(b []byte, option, typ uint32, data ...byte) []byte {
	b = binary.BigEndian.AppendUint64(b, magicOptReply)
	b = binary.BigEndian.AppendUint32(b, option)
	b = binary.BigEndian.AppendUint32(b, typ)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}
