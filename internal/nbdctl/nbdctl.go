// Package nbdctl makes, mends and ends devices of the kernel's nbd driver over
// generic netlink: /dev/nbdN, whose requests go over sockets on which an NBD
// server's transmission phase was entered already.
//
// # Sockets that end
//
// When all sockets of a device are dead its requests wait, up to
// [Config.DeadConnTimeout], for [Control.Reconfigure] with new ones; [Watch] tells
// that one died. What had been sent over a socket that is dead is not sent again at
// once, but when the request's time is up ([Control.SetPatience]). The driver then
// does one of two things (drivers/block/nbd.c, nbd_xmit_timeout):
//
//   - With one connection and no timeout, it sends the request again if its socket was
//     replaced, and waits on if not.
//   - With several, or a timeout, it sends it again in any case, over another socket,
//     and shuts down the first. A write that a living server still has in its hands can
//     then land after a later write to the same place.
package nbdctl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
)

// What a caller branches on; an [*Error] or [Open]'s error wraps them.
var (
	ErrNoDriver     = errors.New("the kernel has no nbd driver: run `modprobe nbd`")
	ErrNoPermission = errors.New("making nbd devices needs CAP_SYS_ADMIN, outside of any user namespace")
	ErrTooOld       = errors.New("the kernel's nbd driver does not name a device's backend: Linux 5.14 is needed")
	ErrFull         = errors.New("the kernel has no nbd device left: remove some")
	ErrNoDevice     = errors.New("there is no such nbd device, or it is not connected")
)

// An Error is the kernel's answer to a command. It unwraps to its errno, and to a
// sentinel where there is one.
type Error struct {
	Op    string // connect, reconfigure, disconnect
	Index int    // −1: the driver was to choose it
	Err   error
	Why   error // a sentinel, or nil
}

func (e *Error) Error() string {
	name := "an nbd device"
	if e.Index >= 0 {
		name = nodeName(e.Index)
	}
	s := fmt.Sprintf("nbd: %s %s: %v", e.Op, name, e.Err)
	if e.Why != nil {
		s += ": " + e.Why.Error()
	}
	return s
}

// Unwrap returns what the error is made of.
func (e *Error) Unwrap() []error {
	if e.Why == nil {
		return []error{e.Err}
	}
	return []error{e.Err, e.Why}
}

// A Config is a device to be made.
type Config struct {
	Conns       []*os.File // sockets in transmission; the caller's, who may close them after Connect
	SizeBytes   int64
	BlockBytes  int    // logical and physical: 512 to a page's size
	ServerFlags uint16 // as the server told; with CAN_MULTI_CONN if there are several sockets
	// Timeout is what a request may take before its socket is given up, in whole
	// seconds; 0: for ever, with one connection (see the package).
	Timeout time.Duration
	// DeadConnTimeout is how long requests wait without a socket, in whole seconds; 0:
	// not at all.
	DeadConnTimeout time.Duration
	Backend         string // the device's mark, which [Control.List] returns; not empty
}

// Control speaks to the driver. Its methods may be called from any goroutine; the
// kernel carries out one command at a time.
type Control struct {
	conn   *genetlink.Conn
	family genetlink.Family
	sysfs  string // /sys/block
}

// Open finds the driver, which the kernel loads if it can. Its errors wrap
// ErrNoDriver and ErrNoPermission.
func Open() (*Control, error) {
	if err := admin("/proc/self/status"); err != nil {
		return nil, err
	}
	conn, err := genetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("nbd: opening generic netlink: %w", err)
	}
	c, err := newControl(conn, "/sys/block")
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return c, nil
}

func newControl(conn *genetlink.Conn, sysfs string) (*Control, error) {
	family, err := conn.GetFamily(familyName)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("nbd: %w", ErrNoDriver)
	case err != nil:
		return nil, fmt.Errorf("nbd: asking for the driver: %w", err)
	}
	return &Control{conn: conn, family: family, sysfs: sysfs}, nil
}

// admin reports whether the process has CAP_SYS_ADMIN: without, the first command
// would tell (netlink_capable), but leaves a line in the kernel's log.
func admin(status string) error {
	const sysAdmin = 21
	b, err := os.ReadFile(status)
	if err != nil {
		return fmt.Errorf("nbd: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			if err != nil {
				return fmt.Errorf("nbd: reading this process' capabilities: %w", err)
			}
			if caps>>sysAdmin&1 == 0 {
				return fmt.Errorf("nbd: %w", ErrNoPermission)
			}
			return nil
		}
	}
	return fmt.Errorf("nbd: %s does not tell this process' capabilities", status)
}

// Close gives up the connection to the driver. Devices stay.
func (c *Control) Close() error { return c.conn.Close() }

// Connect makes a device on a number that the driver chooses, and returns it. The
// node may come a moment later. Errors wrap ErrFull, ErrNoPermission and ErrTooOld.
func (c *Control) Connect(cfg Config) (index int, err error) {
	data, err := encode(func(e *netlink.AttributeEncoder) {
		e.Uint64(attrSizeBytes, uint64(cfg.SizeBytes))
		e.Uint64(attrBlockBytes, uint64(cfg.BlockBytes))
		e.Uint64(attrTimeout, uint64(cfg.Timeout/time.Second))
		e.Uint64(attrDeadConnTimeout, uint64(cfg.DeadConnTimeout/time.Second))
		e.Uint64(attrServerFlags, uint64(cfg.ServerFlags))
		e.Uint64(attrClientFlags, 0)
		e.String(attrBackend, cfg.Backend)
		sockets(e, cfg.Conns)
	})
	if err != nil {
		return -1, fmt.Errorf("nbd: encoding a connect: %w", err)
	}
	// Not acknowledged: the reply, or an error, is all that comes.
	msgs, err := c.conn.Execute(c.message(cmdConnect, data), c.family.ID, netlink.Request)
	if err != nil {
		return -1, wrap("connect", -1, err)
	}
	if len(msgs) != 1 {
		return -1, fmt.Errorf("nbd: connect was answered with %d messages, not one", len(msgs))
	}
	if index, err = indexOf(msgs[0]); err != nil {
		return -1, err
	}
	if got, err := c.backend(index); err == nil && got == cfg.Backend {
		return index, nil
	}
	return -1, errors.Join(&Error{Op: "connect", Index: index, Err: errors.New("the device does not bear its mark"), Why: ErrTooOld}, c.Disconnect(index))
}

// A Change is what Reconfigure does to a device.
type Change struct {
	Backend   string     // the device's mark, which must be given
	Conns     []*os.File // each takes the place of a dead one; those left over are not used
	SizeBytes int64      // 0: stays
}

// Reconfigure changes a device. A change of size is seen by its users. Errors wrap
// ErrNoDevice.
func (c *Control) Reconfigure(index int, ch Change) error {
	data, err := encode(func(e *netlink.AttributeEncoder) {
		e.Uint32(attrIndex, uint32(index))
		e.String(attrBackend, ch.Backend)
		if ch.SizeBytes != 0 {
			e.Uint64(attrSizeBytes, uint64(ch.SizeBytes))
		}
		if len(ch.Conns) > 0 {
			sockets(e, ch.Conns)
		}
	})
	if err != nil {
		return fmt.Errorf("nbd: encoding a reconfigure: %w", err)
	}
	return c.command("reconfigure", cmdReconfigure, index, data)
}

// Disconnect ends a device: requests that wait fail, and it is free for others once
// nobody has it open. One that has ended already is no error.
func (c *Control) Disconnect(index int) error {
	data, err := encode(func(e *netlink.AttributeEncoder) { e.Uint32(attrIndex, uint32(index)) })
	if err != nil {
		return fmt.Errorf("nbd: encoding a disconnect: %w", err)
	}
	return c.command("disconnect", cmdDisconnect, index, data)
}

// command sends a command that is answered with an acknowledgement only.
func (c *Control) command(op string, cmd uint8, index int, data []byte) error {
	_, err := c.conn.Execute(c.message(cmd, data), c.family.ID, netlink.Request|netlink.Acknowledge)
	if err != nil {
		return wrap(op, index, err)
	}
	return nil
}

func (c *Control) message(cmd uint8, data []byte) genetlink.Message {
	return genetlink.Message{Header: genetlink.Header{Command: cmd, Version: c.family.Version}, Data: data}
}

func encode(fill func(*netlink.AttributeEncoder)) ([]byte, error) {
	e := netlink.NewAttributeEncoder()
	fill(e)
	return e.Encode()
}

func sockets(e *netlink.AttributeEncoder, conns []*os.File) {
	e.Nested(attrSockets, func(list *netlink.AttributeEncoder) error {
		for _, f := range conns {
			list.Nested(sockItem, func(item *netlink.AttributeEncoder) error {
				item.Uint32(sockFD, uint32(f.Fd()))
				return nil
			})
		}
		return nil
	})
}

func indexOf(m genetlink.Message) (int, error) {
	d, err := netlink.NewAttributeDecoder(m.Data)
	if err != nil {
		return -1, fmt.Errorf("nbd: decoding a message of the driver: %w", err)
	}
	index := -1
	for d.Next() {
		if d.Type() == attrIndex {
			index = int(d.Uint32())
		}
	}
	if err := d.Err(); err != nil {
		return -1, fmt.Errorf("nbd: decoding a message of the driver: %w", err)
	}
	if index < 0 {
		return -1, errors.New("nbd: a message of the driver names no device")
	}
	return index, nil
}

// wrap gives an errno of the driver its meaning.
func wrap(op string, index int, err error) error {
	e := &Error{Op: op, Index: index, Err: err}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		e.Err = errno
	}
	switch {
	case errno == syscall.EPERM:
		e.Why = ErrNoPermission
	case op == "connect" && (errno == syscall.ENOSPC || errno == syscall.EEXIST):
		e.Why = ErrFull
	case op != "connect" && errno == syscall.EINVAL:
		e.Why = ErrNoDevice
	}
	return e
}

func nodeName(index int) string { return "/dev/nbd" + strconv.Itoa(index) }

// Node is the path of a device's node.
func Node(index int) string { return nodeName(index) }

func (c *Control) file(index int, name string) string {
	return filepath.Join(c.sysfs, "nbd"+strconv.Itoa(index), name)
}
