package nbd

import (
	"time"

	"vacate/internal/blk"
)

// Limits of ours. Each says what happens beyond it.
const (
	// maxRequest is the longest read or write, in bytes: told to clients as the
	// maximum block size, and what the specification lets a client assume that
	// did not ask. Beyond it: EINVAL.
	maxRequest = 32 << 20
	// maxPayload is the longest payload of a write, in bytes, that is read and
	// thrown away to keep the connection. Beyond it: the connection ends.
	maxPayload = 64 << 20

	// preferredBlock is the unit of encryption and of the block map: the
	// smallest write that needs no read first.
	preferredBlock = blk.BlockSize

	// rxSize and txSize are the two buffers of a connection, in bytes. Either
	// takes eight requests of 128 KiB, or four of MaxTransfer, and their headers.
	// Behind txSize there is room for smallReplies replies without data beside one
	// for each request in flight.
	rxSize       = 1<<20 + 4096
	txSize       = 1<<20 + 4096
	smallReplies = 64

	// batchData is how many bytes of replies with data are worth a submission,
	// though more requests are there, and how many are received at once: they are
	// still in the processor's cache when they are sent or written, and the client
	// goes on meanwhile. Twice as many made reads of 128 KiB a third slower.
	batchData = 256 << 10
	// batchRequests is how many requests are, for the same reasons: a client with
	// 32 in flight sends the next 16 while the others are carried out. Without it
	// client and server took turns.
	batchRequests = 16

	// smallReply is room for a reply without data: a simple reply, or an error
	// chunk with the longest of our texts.
	smallReply = 128
	// maxDescriptors is how many ranges one block status tells. Beyond it: the
	// client asks again from where the answer ended, as the specification says.
	maxDescriptors = 1024

	// maxOption is the longest data of an option, in bytes; maxOptions how many
	// options a client may send. Beyond either: the connection ends.
	maxOption  = 64 << 10
	maxOptions = 1000
	// maxName is the longest string that the specification allows, in bytes.
	maxName = 4096

	// smallMove is how many bytes may be moved to the front of the receive
	// buffer just to make the next recv longer.
	smallMove = 8 << 10

	// socketBuffer is the send buffer that is asked of the kernel, in bytes.
	socketBuffer = 1 << 20
)

// Defaults of Config.
const (
	defaultDepth            = 128
	maxDepth                = 1024
	defaultHandshakeTimeout = 10 * time.Second
	defaultHandshakes       = 16
)
