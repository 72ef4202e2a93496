package vhostuser

import "fmt"

// Requests of a frontend (vhost-user: Front-end message types).
const (
	reqGetFeatures         = 1
	reqSetFeatures         = 2
	reqSetOwner            = 3
	reqResetOwner          = 4
	reqSetMemTable         = 5
	reqSetLogBase          = 6
	reqSetLogFD            = 7
	reqSetVringNum         = 8
	reqSetVringAddr        = 9
	reqSetVringBase        = 10
	reqGetVringBase        = 11
	reqSetVringKick        = 12
	reqSetVringCall        = 13
	reqSetVringErr         = 14
	reqGetProtocolFeatures = 15
	reqSetProtocolFeatures = 16
	reqGetQueueNum         = 17
	reqSetVringEnable      = 18
	reqSetBackendReqFD     = 21
	reqGetConfig           = 24
	reqSetConfig           = 25
	reqGetInflightFD       = 31
	reqSetInflightFD       = 32
	reqResetDevice         = 34
	reqGetMaxMemSlots      = 36
	reqAddMemReg           = 37
	reqRemMemReg           = 38
)

// backendConfigChange is the one request of ours (Back-end message types).
const backendConfigChange = 2

// Flags of a message: the version, and two bits.
const (
	flagsVersion   = 1
	flagsMask      = 3
	flagsReply     = 1 << 2
	flagsNeedReply = 1 << 3
)

// featureProtocol is VHOST_USER_F_PROTOCOL_FEATURES, beside the features of virtio.
const featureProtocol = 1 << 30

// Protocol features.
const (
	protoMQ          = 1 << 0
	protoLogShmFD    = 1 << 1
	protoReplyAck    = 1 << 3
	protoBackendReq  = 1 << 5
	protoConfig      = 1 << 9
	protoInflight    = 1 << 12
	protoResetDevice = 1 << 13
	protoMemSlots    = 1 << 15

	protoOffered = protoMQ | protoLogShmFD | protoReplyAck | protoBackendReq | protoConfig |
		protoInflight | protoResetDevice | protoMemSlots
)

// Sizes in bytes, and other numbers of the specification.
const (
	headerSize   = 12
	regionSize   = 32  // guest address, size, user address, offset
	maxTable     = 8   // regions of SET_MEM_TABLE
	configHeader = 12  // offset, size, flags
	maxConfig    = 256 // of the config space
	vringNoFD    = 1 << 8
	vringIndex   = 0xff
	vringLog     = 1 << 0 // VHOST_VRING_F_LOG

	// maxPayload is the longest payload of a request that is served.
	maxPayload = configHeader + maxConfig
)

// Flags of SET_CONFIG.
const configMigration = 1

// A form is what a request must look like: lengths in bytes, and descriptors.
type form struct {
	name     string
	min, max int // of the payload
	fds      int // at most; exactly, unless anyFDs
	anyFDs   bool
	reply    bool // it has a reply of its own
}

// forms has every request that is served.
var forms = map[uint32]form{
	reqGetFeatures:         {name: "GET_FEATURES", reply: true},
	reqSetFeatures:         {name: "SET_FEATURES", min: 8, max: 8},
	reqSetOwner:            {name: "SET_OWNER"},
	reqResetOwner:          {name: "RESET_OWNER"},
	reqSetMemTable:         {name: "SET_MEM_TABLE", min: 8, max: 8 + maxTable*regionSize, fds: maxTable, anyFDs: true},
	reqSetLogBase:          {name: "SET_LOG_BASE", min: 16, max: 16, fds: 1, reply: true},
	reqSetLogFD:            {name: "SET_LOG_FD", max: 8, fds: 1},
	reqSetVringNum:         {name: "SET_VRING_NUM", min: 8, max: 8},
	reqSetVringAddr:        {name: "SET_VRING_ADDR", min: 40, max: 40},
	reqSetVringBase:        {name: "SET_VRING_BASE", min: 8, max: 8},
	reqGetVringBase:        {name: "GET_VRING_BASE", min: 8, max: 8, reply: true},
	reqSetVringKick:        {name: "SET_VRING_KICK", min: 8, max: 8, fds: 1, anyFDs: true},
	reqSetVringCall:        {name: "SET_VRING_CALL", min: 8, max: 8, fds: 1, anyFDs: true},
	reqSetVringErr:         {name: "SET_VRING_ERR", min: 8, max: 8, fds: 1, anyFDs: true},
	reqGetProtocolFeatures: {name: "GET_PROTOCOL_FEATURES", reply: true},
	reqSetProtocolFeatures: {name: "SET_PROTOCOL_FEATURES", min: 8, max: 8},
	reqGetQueueNum:         {name: "GET_QUEUE_NUM", reply: true},
	reqSetVringEnable:      {name: "SET_VRING_ENABLE", min: 8, max: 8},
	reqSetBackendReqFD:     {name: "SET_BACKEND_REQ_FD", max: 8, fds: 1},
	reqGetConfig:           {name: "GET_CONFIG", min: configHeader, max: maxPayload, reply: true},
	reqSetConfig:           {name: "SET_CONFIG", min: configHeader, max: maxPayload},
	reqGetInflightFD:       {name: "GET_INFLIGHT_FD", min: 20, max: 24, reply: true},
	reqSetInflightFD:       {name: "SET_INFLIGHT_FD", min: 20, max: 24, fds: 1},
	reqResetDevice:         {name: "RESET_DEVICE"},
	reqGetMaxMemSlots:      {name: "GET_MAX_MEM_SLOTS", reply: true},
	reqAddMemReg:           {name: "ADD_MEM_REG", min: 8 + regionSize, max: 8 + regionSize, fds: 1},
	reqRemMemReg:           {name: "REM_MEM_REG", min: 8 + regionSize, max: 8 + regionSize, fds: 1, anyFDs: true},
}

func requestName(request uint32) string {
	if f, ok := forms[request]; ok {
		return f.name
	}
	return fmt.Sprintf("request %d", request)
}
