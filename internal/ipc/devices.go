package ipc

// What control says to the process that makes block devices (package devices), and
// to the engine about them. A device under /dev is had in these steps:
//
//  1. device.make, of that process: a device that nobody serves yet, or one whose
//     server is gone. A ublk device's character device comes with the answer.
//  2. device.serve, of the engine, with that file: it takes the device's requests.
//     (Not for nbd, whose requests come over the lease's socket.)
//  3. device.start: now the kernel has it.
//
// Each may be asked again. When an engine has ended, control asks all three again of
// the next: requests wait meanwhile, and what was in flight is carried out again.

// Methods about devices.
const (
	MethodDeviceHello  = "device.hello"  // devices: Empty → DevicesHello
	MethodDeviceMake   = "device.make"   // devices: DeviceMakeRequest → DeviceMade + character device
	MethodDeviceStart  = "device.start"  // devices: DeviceStartRequest → Device
	MethodDeviceRemove = "device.remove" // devices: DeviceRemoveRequest → Empty
	MethodDeviceResize = "device.resize" // devices: DeviceResizeRequest → Empty
	MethodDeviceList   = "device.list"   // devices: Empty → DeviceList
	MethodDeviceServe  = "device.serve"  // engine: DeviceServeRequest + character device → Empty
	MethodDeviceServed = "device.served" // engine: LeaseRef → DeviceServed
)

// Kinds of devices: the kernel's driver.
const (
	DeviceUblk = "ublk"
	DeviceNBD  = "nbd"
)

// DevicesHello says what the process that makes devices can do.
type DevicesHello struct {
	Version string `json:"version"`
	PID     int    `json:"pid"`
	Kind    string `json:"kind"`          // what it would make now: DeviceUblk or DeviceNBD; "": none
	Why     string `json:"why,omitempty"` // for people: why no ublk, or nothing at all, and what to do
	Resize  bool   `json:"resize"`        // devices in use can be made larger
}

// DeviceMakeRequest asks for a lease's device.
type DeviceMakeRequest struct {
	Lease        string `json:"lease"`
	SizeBytes    int64  `json:"sizeBytes"`
	LogicalBlock int    `json:"logicalBlock"` // bytes: 512 or 4096
	UID          uint32 `json:"uid"`          // who may open it, besides root
	Socket       string `json:"socket"`       // of the lease's NBD export; "": it has none, and then no nbd device
}

// DeviceMade says what was made.
type DeviceMade struct {
	Kind   string `json:"kind"`
	Queues int    `json:"queues"` // of a ublk device
	Depth  int    `json:"depth"`
	MaxIO  int    `json:"maxIo"` // bytes, the longest read or write
}

// DeviceServeRequest gives an engine a ublk device to serve.
type DeviceServeRequest struct {
	Lease  string `json:"lease"`
	Queues int    `json:"queues"`
	Depth  int    `json:"depth"`
	MaxIO  int    `json:"maxIo"`
}

// DeviceServed says whether an engine serves a ublk device of a lease: steps 1 and 2 were
// done, by a control or with a devices process that may be gone, and 3 is due.
type DeviceServed struct {
	Served bool `json:"served"`
}

// DeviceStartRequest has the kernel use a device.
type DeviceStartRequest struct {
	Lease string `json:"lease"`
	PID   int    `json:"pid"` // of the engine that serves it
	// Served says that the engine has had it since before, so that the devices process
	// may know nothing of it. Then UID is who may open it, as in DeviceMakeRequest.
	Served bool   `json:"served,omitempty"`
	UID    uint32 `json:"uid,omitempty"`
}

// A Device is a lease's block device.
type Device struct {
	Lease     string `json:"lease"`
	Kind      string `json:"kind"`
	Path      string `json:"path"` // the link, /dev/vacate/ID
	Node      string `json:"node"` // what it leads to: /dev/ublkb0
	SizeBytes int64  `json:"sizeBytes"`
	Live      bool   `json:"live"` // it is served; false: it waits for the next engine
}

// DeviceList is all devices that this daemon's leases have.
type DeviceList struct {
	Devices []Device `json:"devices"`
}

// DeviceRemoveRequest takes a device away. One that is in use is refused
// (CodeBusy), unless Force is set: its users get errors.
type DeviceRemoveRequest struct {
	Lease string `json:"lease"`
	Force bool   `json:"force"`
}

// DeviceResizeRequest tells the kernel a device's new size. CodeUnsupported: it will
// see it when it is attached again.
type DeviceResizeRequest struct {
	Lease     string `json:"lease"`
	SizeBytes int64  `json:"sizeBytes"`
}
