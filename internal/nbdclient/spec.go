package nbdclient

// Constants of the NBD specification (doc/proto.md), written down a second
// time: were they shared with the server, a wrong one would agree with itself.
const (
	initMagic       = 0x4e42444d41474943
	optionMagic     = 0x49484156454f5054
	optReplyMagic   = 0x0003e889045565a9
	requestMagic    = 0x25609513
	simpleMagic     = 0x67446698
	structuredMagic = 0x668e33ef

	fixedNewstyle = 1
	noZeroes      = 2

	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optGo              = 7
	optStructuredReply = 8
	optSetMetaContext  = 10

	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4
	repError       = 1 << 31
	repErrUnsup    = 1<<31 + 1

	infoExport    = 0
	infoBlockSize = 3

	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdCache       = 5
	cmdWriteZeroes = 6
	cmdBlockStatus = 7

	chunkDone        = 1
	chunkNone        = 0
	chunkOffsetData  = 1
	chunkOffsetHole  = 2
	chunkBlockStatus = 5
	chunkErrors      = 1 << 15
	chunkErrorOffset = 1<<15 + 2
)

// Transmission flags, as [Client.Flags] returns them.
const (
	HasFlags        = 1 << 0
	ReadOnly        = 1 << 1
	SendFlush       = 1 << 2
	SendFUA         = 1 << 3
	SendTrim        = 1 << 5
	SendWriteZeroes = 1 << 6
	SendDF          = 1 << 7
	CanMultiConn    = 1 << 8
	SendCache       = 1 << 10
	SendFastZero    = 1 << 11
)

// Flags of commands.
const (
	FUA      = 1 << 0
	NoHole   = 1 << 1
	DF       = 1 << 2
	ReqOne   = 1 << 3
	FastZero = 1 << 4
)

// Flags of an [Extent] in base:allocation.
const (
	Hole = 1 << 0
	Zero = 1 << 1
)

var commandNames = map[uint16]string{
	cmdRead: "read", cmdWrite: "write", cmdFlush: "flush", cmdTrim: "trim",
	cmdCache: "cache", cmdWriteZeroes: "write zeroes", cmdBlockStatus: "block status",
}
