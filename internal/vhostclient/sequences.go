package vhostclient

import "slices"

// A Sequence is the order of a frontend's messages.
type Sequence struct {
	Name      string
	Features  uint64 // virtio features that it takes, with its guest (Linux)
	Protocol  uint64 // protocol features that it takes
	MemSlots  bool   // it takes CONFIGURE_MEM_SLOTS unasked
	MaxQueues int    // 0: no limit of its own
	QueueSize int    // its default

	GuestBase    bool // taking a session up, it names the guest's available index as each ring's base
	ConfigOffset int  // of GET_CONFIG
	ConfigSize   int  // bytes; default 60
	InflightSize int  // bytes of the inflight description; default 24

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

func (s *Sequence) asksBases() bool {
	return slices.ContainsFunc(s.Stop, func(s Step) bool { return s.Message == GetVringBase })
}

// A Step is one message, or several in turn for each ring.
type Step struct {
	Message uint32
	Each    []Step // instead: these for the first ring, then for the second, …
	Needs   int    // only with this protocol feature
	Lacks   int    // only without it
	Ack     bool   // it asks for an acknowledgement where that was negotiated, be there a reply anyway
	Arg     uint32 // of SetVringEnable
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

// linux is what a guest's driver takes of what a monitor offers it.
var linux = bits(FeatureSizeMax, FeatureSegMax, FeatureGeometry, FeatureReadOnly, FeatureBlkSize, FeatureFlush, FeatureTopology,
	FeatureConfigWCE, FeatureMQ, FeatureDiscard, FeatureWriteZeroes, FeatureIndirect, FeatureEventIdx, FeatureVersion1)

// QEMU72 is QEMU 7.2, as it was heard (qemu_test.go), and with a region for requests
// in flight as hw/block/vhost-user-blk.c has it.
//
// It sets up the rings that the guest uses, but enables all; it disables them before
// it asks for their bases; it names features twice, and its own bit 30 among them; it
// asks for 57 bytes of config space.
var QEMU72 = qemu("QEMU 7.2", false)

// QEMU10 is QEMU 10 (hw/virtio/vhost-user.c): since 8.2 it waits until a ring is
// enabled.
var QEMU10 = qemu("QEMU 10", true)

func qemu(version string, ackEnable bool) Sequence {
	return Sequence{
		Name:     version,
		Features: linux | bits(FeatureProtocolFeatures),
		// Whatever it knows, also what it has no use for here.
		Protocol: bits(ProtocolMQ, ProtocolLogShmFD, 2, ProtocolReplyAck, 4, ProtocolBackendReq, 6, 7, 8, ProtocolConfig, 10, 11,
			ProtocolInflightShmFD, ProtocolResetDevice, 14, ProtocolConfigMemSlots),
		MemSlots:   true,
		QueueSize:  128,
		ConfigSize: 57,
		Connect: []Step{
			{Message: GetFeatures}, {Message: GetProtocolFeatures}, {Message: SetProtocolFeatures},
			{Message: GetQueueNum, Needs: ProtocolMQ}, {Message: GetMaxMemSlots, Needs: ProtocolConfigMemSlots},
			{Message: SetBackendReqFD, Needs: ProtocolBackendReq, Ack: true},
			{Message: SetOwner}, {Message: GetFeatures},
			{Each: []Step{{Message: SetVringCall}, {Message: SetVringErr}}},
			{Message: GetConfig},
		},
		Start: []Step{
			{Message: SetFeatures},
			{Message: GetInflightFD, Needs: ProtocolInflightShmFD}, {Message: SetInflightFD, Needs: ProtocolInflightShmFD},
			{Message: SetVringCall}, {Message: SetFeatures},
			{Message: SetMemTable, Lacks: ProtocolConfigMemSlots, Ack: true}, {Message: AddMemReg, Needs: ProtocolConfigMemSlots, Ack: true},
			{Each: []Step{{Message: SetVringNum}, {Message: SetVringBase}, {Message: SetVringAddr}, {Message: SetVringKick}}},
			{Message: SetVringEnable, Arg: 1, Ack: ackEnable},
		},
		Stop: []Step{{Message: SetVringEnable, Arg: 0, Ack: ackEnable}, {Message: GetVringBase}},
	}
}

// CloudHypervisor is Cloud Hypervisor before 2026 (virtio-devices/src/vhost_user):
// its config space begins at 0x100, it takes features that no disk should offer it,
// and everything after SET_PROTOCOL_FEATURES asks for an acknowledgement, also what
// has a reply. Its reset does not ask for the bases: it believes the guest's rings, and
// when it takes a session up it skips what is in flight, and what the server has not
// seen: what the server noted in flight and the used index are right nevertheless.
var CloudHypervisor = Sequence{
	Name:     "Cloud Hypervisor",
	Features: linux | bits(FeatureProtocolFeatures, FeatureInOrder, 36, FeatureNotificationData),
	Protocol: bits(ProtocolConfig, ProtocolMQ, ProtocolConfigMemSlots, ProtocolReplyAck, ProtocolInflightShmFD, ProtocolLogShmFD),
	MemSlots: true, QueueSize: 128,
	GuestBase:    true,
	ConfigOffset: 0x100,
	Connect: []Step{
		{Message: SetOwner}, {Message: GetFeatures}, {Message: GetProtocolFeatures}, {Message: SetProtocolFeatures},
		{Message: GetQueueNum, Needs: ProtocolMQ, Ack: true}, {Message: GetConfig, Ack: true},
	},
	Start: []Step{
		{Message: SetFeatures, Ack: true}, {Message: SetMemTable, Ack: true}, {Message: SetVringNum, Ack: true},
		{Message: GetInflightFD, Needs: ProtocolInflightShmFD, Ack: true}, {Message: SetInflightFD, Needs: ProtocolInflightShmFD, Ack: true},
		{Each: []Step{
			{Message: SetVringAddr, Ack: true}, {Message: SetVringBase, Ack: true},
			{Message: SetVringCall, Ack: true}, {Message: SetVringKick, Ack: true},
		}},
		{Message: SetVringEnable, Arg: 1, Ack: true},
	},
	Stop: []Step{{Message: SetVringEnable, Arg: 0, Ack: true}},
}

// CloudHypervisor26 is Cloud Hypervisor since 2026-01: the config space begins at 0.
var CloudHypervisor26 = func() Sequence {
	s := CloudHypervisor
	s.Name, s.ConfigOffset = "Cloud Hypervisor 2026", 0
	return s
}()

// Firecracker is Firecracker (src/vmm/src/devices/virtio/vhost_user.rs): one queue of
// 256, no protocol feature but CONFIG, and so no acknowledgements. It never resets.
var Firecracker = Sequence{
	Name:     "Firecracker",
	Features: bits(FeatureVersion1, FeatureEventIdx, FeatureReadOnly, FeatureFlush, FeatureProtocolFeatures),
	Protocol: bits(ProtocolConfig), MaxQueues: 1, QueueSize: 256,
	Connect: []Step{
		{Message: SetOwner}, {Message: GetFeatures}, {Message: GetProtocolFeatures}, {Message: SetProtocolFeatures},
		{Message: GetConfig, Needs: ProtocolConfig},
	},
	Start: []Step{
		{Message: SetFeatures}, {Message: SetMemTable}, {Message: SetVringNum},
		{Each: []Step{
			{Message: SetVringAddr}, {Message: SetVringBase}, {Message: SetVringCall},
			{Message: SetVringKick}, {Message: SetVringEnable, Arg: 1},
		}},
	},
}

// Sequences are the orders that a server must serve.
var Sequences = []*Sequence{&Plain, &QEMU72, &QEMU10, &CloudHypervisor, &CloudHypervisor26, &Firecracker}
