package vhostclient

// A Sequence is the order of a frontend's messages.
type Sequence struct {
	Name      string
	Features  uint64 // virtio features that it takes, with its guest (Linux)
	Protocol  uint64 // protocol features that it takes
	MemSlots  bool   // it takes CONFIGURE_MEM_SLOTS unasked
	MaxQueues int    // 0: no limit of its own
	QueueSize int    // its default

	ConfigOffset int // of GET_CONFIG
	ConfigSize   int // bytes; default 60
	InflightSize int // bytes of the inflight description; default 24

	Connect []Step // when it connects, before there is a guest
	Start   []Step // when the guest's driver is ready
	Stop    []Step // when the guest resets the device
}

func (s *Sequence) configSize() int {
	if s.ConfigSize == 0 {
		return 60
	}
	return s.ConfigSize
}

func (s *Sequence) inflightSize() int {
	if s.InflightSize == 0 {
		return 24
	}
	return s.InflightSize
}

// A Step is one message, or several in turn for each ring.
type Step struct {
	Message uint32
	Each    []Step // instead: these for the first ring, then for the second, …
	Needs   int    // only with this protocol feature
	Lacks   int    // only without it
	Ack     bool   // it asks for an acknowledgement where that was negotiated
	Arg     uint32 // of SetVringEnable
	Bare    bool   // of SetFeatures: without PROTOCOL_FEATURES
}

func bits(numbers ...int) (mask uint64) {
	for _, n := range numbers {
		mask |= 1 << n
	}
	return mask
}

// Plain is an order of this package's own: everything in the order of the
// specification, acknowledged.
var Plain = Sequence{
	Name: "plain",
	Features: bits(FeatureSizeMax, FeatureSegMax, FeatureGeometry, FeatureReadOnly, FeatureBlkSize, FeatureFlush, FeatureTopology,
		FeatureConfigWCE, FeatureMQ, FeatureDiscard, FeatureWriteZeroes, FeatureIndirect, FeatureEventIdx,
		FeatureProtocolFeatures, FeatureVersion1),
	Protocol: bits(ProtocolMQ, ProtocolReplyAck, ProtocolBackendReq, ProtocolConfig, ProtocolInflightShmFD,
		ProtocolResetDevice, ProtocolConfigMemSlots),
	Connect: []Step{
		{Message: SetOwner}, {Message: GetFeatures}, {Message: GetProtocolFeatures}, {Message: SetProtocolFeatures},
		{Message: GetQueueNum}, {Message: GetMaxMemSlots, Needs: ProtocolConfigMemSlots},
		{Message: SetBackendReqFD, Needs: ProtocolBackendReq, Ack: true},
		{Message: GetConfig, Needs: ProtocolConfig},
	},
	Start: []Step{
		{Message: SetFeatures, Ack: true},
		{Message: SetMemTable, Lacks: ProtocolConfigMemSlots, Ack: true},
		{Message: AddMemReg, Needs: ProtocolConfigMemSlots, Ack: true},
		{Message: GetInflightFD, Needs: ProtocolInflightShmFD}, {Message: SetInflightFD, Needs: ProtocolInflightShmFD, Ack: true},
		{Each: []Step{
			{Message: SetVringNum, Ack: true}, {Message: SetVringBase, Ack: true}, {Message: SetVringAddr, Ack: true},
			{Message: SetVringErr, Ack: true}, {Message: SetVringCall, Ack: true}, {Message: SetVringKick, Ack: true},
			{Message: SetVringEnable, Arg: 1, Ack: true},
		}},
	},
	Stop: []Step{{Message: SetVringEnable, Arg: 0, Ack: true}, {Message: GetVringBase}},
}
