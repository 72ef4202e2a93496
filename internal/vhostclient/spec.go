package vhostclient

// Messages of the frontend (vhost-user, "Front-end message types").
const (
	GetFeatures         = 1
	SetFeatures         = 2
	SetOwner            = 3
	ResetOwner          = 4
	SetMemTable         = 5
	SetLogBase          = 6
	SetLogFD            = 7
	SetVringNum         = 8
	SetVringAddr        = 9
	SetVringBase        = 10
	GetVringBase        = 11
	SetVringKick        = 12
	SetVringCall        = 13
	SetVringErr         = 14
	GetProtocolFeatures = 15
	SetProtocolFeatures = 16
	GetQueueNum         = 17
	SetVringEnable      = 18
	SetBackendReqFD     = 21
	GetConfig           = 24
	SetConfig           = 25
	GetInflightFD       = 31
	SetInflightFD       = 32
	ResetDevice         = 34
	GetMaxMemSlots      = 36
	AddMemReg           = 37
	RemMemReg           = 38
)

// backendConfigChange is the one message of the back channel that blk sends.
const backendConfigChange = 2

// Flags of a message's header.
const (
	flagVersion   = 1
	flagReply     = 1 << 2
	flagNeedReply = 1 << 3
)

// Protocol features, as bit numbers.
const (
	ProtocolMQ             = 0
	ProtocolLogShmFD       = 1
	ProtocolReplyAck       = 3
	ProtocolBackendReq     = 5
	ProtocolConfig         = 9
	ProtocolInflightShmFD  = 12
	ProtocolResetDevice    = 13
	ProtocolConfigMemSlots = 15
	ProtocolStatus         = 16
)

// Virtio features, as bit numbers: of a block device (virtio 1.2, 5.2.3), of
// every device (6), and vhost-user's own.
const (
	FeatureSizeMax     = 1
	FeatureSegMax      = 2
	FeatureGeometry    = 4
	FeatureReadOnly    = 5
	FeatureBlkSize     = 6
	FeatureFlush       = 9
	FeatureTopology    = 10
	FeatureConfigWCE   = 11
	FeatureMQ          = 12
	FeatureDiscard     = 13
	FeatureWriteZeroes = 14

	FeatureNotifyOnEmpty    = 24
	FeatureLogAll           = 26
	FeatureAnyLayout        = 27
	FeatureIndirect         = 28
	FeatureEventIdx         = 29
	FeatureProtocolFeatures = 30
	FeatureVersion1         = 32
	FeatureInOrder          = 35
	FeatureNotificationData = 38
)

// Types of a request (virtio 1.2, 5.2.6).
const (
	TypeIn          = 0
	TypeOut         = 1
	TypeFlush       = 4
	TypeGetID       = 8
	TypeDiscard     = 11
	TypeWriteZeroes = 13
)

// Its status.
const (
	StatusOK     = 0
	StatusIOErr  = 1
	StatusUnsupp = 2
	statusUnset  = 0xff // what stands there until the device has written
)

// Flags of a descriptor and of the rings (2.7.5 to 2.7.8).
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4

	usedNoNotify     = 1
	availNoInterrupt = 1
)

// sectorSize is the unit of offsets and of the capacity, in bytes, whatever the
// device's block size is (5.2.4).
const sectorSize = 512

// maxRegions is how many regions one SET_MEM_TABLE names
// (VHOST_MEMORY_BASELINE_NREGIONS).
const maxRegions = 8

var typeNames = map[uint32]string{
	TypeIn: "read", TypeOut: "write", TypeFlush: "flush", TypeGetID: "get id",
	TypeDiscard: "discard", TypeWriteZeroes: "write zeroes",
}

var messageNames = map[uint32]string{
	GetFeatures: "GET_FEATURES", SetFeatures: "SET_FEATURES", SetOwner: "SET_OWNER", ResetOwner: "RESET_OWNER",
	SetMemTable: "SET_MEM_TABLE", SetLogBase: "SET_LOG_BASE", SetLogFD: "SET_LOG_FD", SetVringNum: "SET_VRING_NUM",
	SetVringAddr: "SET_VRING_ADDR", SetVringBase: "SET_VRING_BASE", GetVringBase: "GET_VRING_BASE",
	SetVringKick: "SET_VRING_KICK", SetVringCall: "SET_VRING_CALL", SetVringErr: "SET_VRING_ERR",
	GetProtocolFeatures: "GET_PROTOCOL_FEATURES", SetProtocolFeatures: "SET_PROTOCOL_FEATURES",
	GetQueueNum: "GET_QUEUE_NUM", SetVringEnable: "SET_VRING_ENABLE", SetBackendReqFD: "SET_BACKEND_REQ_FD",
	GetConfig: "GET_CONFIG", SetConfig: "SET_CONFIG", GetInflightFD: "GET_INFLIGHT_FD", SetInflightFD: "SET_INFLIGHT_FD",
	ResetDevice: "RESET_DEVICE", GetMaxMemSlots: "GET_MAX_MEM_SLOTS", AddMemReg: "ADD_MEM_REG", RemMemReg: "REM_MEM_REG",
}
