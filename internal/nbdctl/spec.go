package nbdctl

// Names and numbers of the driver's generic netlink family: the kernel's
// include/uapi/linux/nbd-netlink.h.
const (
	familyName = "nbd"
	groupName  = "nbd_mc_group"

	cmdConnect     = 1
	cmdDisconnect  = 2
	cmdReconfigure = 3
	cmdLinkDead    = 4

	attrIndex           = 1  // u32
	attrSizeBytes       = 2  // u64
	attrBlockBytes      = 3  // u64
	attrTimeout         = 4  // u64, s
	attrServerFlags     = 5  // u64
	attrClientFlags     = 6  // u64
	attrSockets         = 7  // of sockItem, of sockFD
	attrDeadConnTimeout = 8  // u64, s
	attrBackend         = 10 // string; since Linux 5.14

	sockItem = 1
	sockFD   = 1 // u32
)
