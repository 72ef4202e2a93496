// Package wire is how a test's host and the init program of its virtual machine
// speak: JSON, a message a line, over a serial port. The host sends requests; the
// guest sends a reply to each, and events in between.
package wire

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// PortName is the name of the virtio serial port.
const PortName = "vacate.test"

// SerialPrefix is what the serial numbers of the guest's drives start with; the
// guest gives each drive the name /dev/REST.
const SerialPrefix = "vacate-"

// A Request asks the guest to do something.
type Request struct {
	ID   int             `json:"id"` // at least 1, never repeated
	Do   string          `json:"do"`
	Body json.RawMessage `json:"body,omitempty"`
}

// A Message is a reply, or an event.
type Message struct {
	Re   int             `json:"re,omitempty"`  // the request that it answers; 0: an event
	Err  string          `json:"err,omitempty"` // why the request was not done
	Kind string          `json:"kind,omitempty"`
	Body json.RawMessage `json:"body,omitempty"`
}

// Up is the body of the event "up", the guest's first.
type Up struct {
	Release string `json:"release"` // of the kernel
	BootID  string `json:"bootId"`
}

// Mount is the body of the request "mount": an ext4 file system.
type Mount struct {
	Device string `json:"device"`
	Dir    string `json:"dir"`
}

// Serve is the body of the request "serve", which starts the daemon and waits
// until it is ready.
type Serve struct {
	StateDir string   `json:"stateDir"`
	Env      []string `json:"env,omitempty"`
}

// Drive is the body of the request "drive": a file is written, and then it is
// waited for the drive of that name, which may be another device than before.
type Drive struct {
	Name string `json:"name"`
	File string `json:"file"` // "": none
	Text string `json:"text"`
}

// Run is the body of the request "run": a command line of vacate.
type Run struct {
	Args []string `json:"args"`
}

// Ran is its reply.
type Ran struct {
	Code   int    `json:"code"`
	Stdout string `json:"stdout"`
	Stderr string `json:"stderr"`
}

// Keys is the reply to the request "keys": the slots of the keys' memory that
// hold anything, read through the keeper's own descriptor.
type Keys struct {
	Slots  [][]byte `json:"slots"`
	Secret bool     `json:"secret"` // it is memfd_secret(2)
}

// Check is the body of the request "check": one lease over all that is free on
// the drive must read zeros, and then what is written to it.
type Check struct {
	Drive  string `json:"drive"`
	Canary Canary `json:"canary"`
}

// Canary says which canaries a lease's client writes.
type Canary struct {
	Hunt uint64 `json:"hunt"`
	Tag  uint64 `json:"tag"` // no two leases of a hunt have the same
}

// Break is the body of the request "break": a lease is opened, written and flushed,
// and read again and again while its drive is broken by writing to a file of sysfs.
type Break struct {
	Drive  string `json:"drive"`
	Canary Canary `json:"canary"`
	// File is beneath the folder of the drive's NVMe controller.
	File string `json:"file"`
	Text string `json:"text"`
	// Dead: there is no engine while it is broken; the next one takes the lease
	// over.
	Dead bool `json:"dead"`
	// Held: control is held until the reader has its answer.
	Held bool `json:"held"`
}

// BreakFlushes is how often a lease is flushed before its drive is broken.
const BreakFlushes = 50

// Broken is its reply.
type Broken struct {
	Lease string `json:"lease"`
	Reads int    `json:"reads"` // that succeeded, with what was written
	Errno int    `json:"errno"` // of the first that did not; 0: its connection ended
	Text  string `json:"text"`
	// Later is what a read, a write and a flush after that got, with Held.
	Later []int `json:"later"`
}

// Load is the body of the request "load", which goes on until the machine ends:
// tenants open leases, write, read and close.
type Load struct {
	Drive   string `json:"drive"`
	Hunt    uint64 `json:"hunt"`
	Seed    uint64 `json:"seed"`
	Boot    uint64 `json:"boot"`    // the first part of every tag
	Tenants int    `json:"tenants"` // at once, each with a few leases
}

// A LeaseEvent is the body of the load's events, each sent before what it names
// if it ends in "ing", and after it if not: opening, opened, writing, closing,
// closed, gone (the opening failed). "wrong" says what must not be.
type LeaseEvent struct {
	Tag    uint64 `json:"tag"`
	Tenant string `json:"tenant,omitempty"`
	Lease  string `json:"lease,omitempty"`
	State  string `json:"state,omitempty"`
	Keys   *Keys  `json:"keys,omitempty"` // opened: what the keys' memory holds now
	// writing: canaries of one version go to these sectors of 512 bytes
	Sector  int64  `json:"sector,omitempty"`
	Count   int64  `json:"count,omitempty"`
	Version uint32 `json:"version,omitempty"`
	Text    string `json:"text,omitempty"`
}

// maxLine is the longest message in bytes: all 1024 slots of keys fit.
const maxLine = 4 << 20

// A Conn is one end. Send may be called from any goroutine, Receive from one.
type Conn struct {
	mu sync.Mutex // held while a line is written
	w  io.Writer
	r  *bufio.Scanner
}

// NewConn speaks over rw.
func NewConn(rw io.ReadWriter) *Conn {
	r := bufio.NewScanner(rw)
	r.Buffer(make([]byte, 64<<10), maxLine)
	return &Conn{w: rw, r: r}
}

// Send sends a Request or a Message.
func (c *Conn) Send(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding a message: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err = c.w.Write(append(b, '\n'))
	return err
}

// Begin ends the line that an earlier life of the machine may have begun.
func (c *Conn) Begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.w.Write([]byte("\n\n"))
	return err
}

// Receive decodes the next line into v. Its error is io.EOF at the end; the last
// line of a peer that died, or began anew, may be cut short, and is then left out.
func (c *Conn) Receive(v any) error {
	for {
		if !c.r.Scan() {
			if err := c.r.Err(); err != nil {
				return err
			}
			return io.EOF
		}
		if len(c.r.Bytes()) == 0 {
			continue
		}
		err := json.Unmarshal(c.r.Bytes(), v)
		if err == nil {
			return nil
		}
		switch more := c.r.Scan(); {
		case !more && c.r.Err() == nil: // nothing comes after it
			return io.EOF
		case !more || len(c.r.Bytes()) > 0: // and not the peer's Begin
			return fmt.Errorf("decoding a message: %w", err)
		}
	}
}

// Body encodes the body of a message.
func Body(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("wire: %T does not encode: %v", v, err))
	}
	return b
}
