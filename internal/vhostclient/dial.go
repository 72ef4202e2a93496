package vhostclient

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
)

// Options say how to connect. The zero value is one queue of 128 with everything
// that the server offers.
type Options struct {
	Queues    int  // default 1, at most what the server has
	QueueSize int  // default 128; a power of two
	Direct    bool // no indirect descriptors
	NoEvent   bool // no event index: flags
	NoCall    bool // no call descriptor: whoever uses the rings must poll
	Inflight  bool // a region for requests in flight, so that a broken session can be taken up: see Reconnect
	MemSlots  bool // add regions one by one
	Memory    int  // bytes for data, beside the rings'; default 64 MiB
	Regions   int  // of the memory; default 2

	Features uint64        // virtio features not to take, as a mask
	Sequence *Sequence     // default [Plain]
	Timeout  time.Duration // of a message and its reply; default 30 s
}

func (o *Options) setDefaults() error {
	if o.Sequence == nil {
		o.Sequence = &Plain
	}
	for _, d := range []struct {
		field *int
		value int
	}{{&o.Queues, 1}, {&o.QueueSize, o.Sequence.QueueSize}, {&o.QueueSize, 128}, {&o.Memory, 64 << 20}, {&o.Regions, 2}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	most := maxRegions
	if o.MemSlots {
		most = 32
	}
	switch {
	case o.QueueSize < 4 || o.QueueSize > 1024 || o.QueueSize&(o.QueueSize-1) != 0:
		return fmt.Errorf("vhost-user: queues of %d: must be a power of two from 4 to 1024", o.QueueSize)
	case o.Regions < 1 || o.Regions > most:
		return fmt.Errorf("vhost-user: memory in %d regions: must be 1 to %d", o.Regions, most)
	case o.Sequence.MaxQueues != 0 && o.Queues > o.Sequence.MaxQueues:
		return fmt.Errorf("vhost-user: %d queues: %s has at most %d", o.Queues, o.Sequence.Name, o.Sequence.MaxQueues)
	}
	return nil
}

// A Client is a session with running rings. ReadAt and its like use the first
// queue, one request after another, and may be called from any goroutine; whoever
// uses the queues otherwise does so alone.
type Client struct {
	Conn   *Conn
	Memory *Memory
	Queues []*Queue

	Features, Protocol uint64 // as negotiated

	path     string
	o        Options
	offered  uint64 // virtio features, and protocol features, of the server
	protocol uint64
	maxQueue uint64
	maxSlots uint64
	bases    []uint16
	told     bool // the server knows the memory
	inflight *os.File
	info     []byte // of inflight, as its reply had it
	back     *net.UnixConn
	backDone chan struct{}
	changes  chan struct{}

	configMu sync.Mutex
	config   []byte

	mu     sync.Mutex // held for a whole request of the first queue
	buf    []byte
	broken error

	loadBuf []byte // of a [Load]
}

// SocketPath returns the path of a target, which is one, or a URI "unix:path" or
// "vhost-user+unix:///?socket=path".
func SocketPath(target string) (string, error) {
	if rest, ok := strings.CutPrefix(target, "unix:"); ok {
		return rest, nil
	}
	if !strings.Contains(target, "://") {
		return target, nil
	}
	u, err := url.Parse(target)
	if err != nil {
		return "", err
	}
	if path := u.Query().Get("socket"); path != "" {
		return path, nil
	}
	return "", fmt.Errorf("no socket in %s", target)
}

// Dial connects to target, negotiates, and starts the rings.
func Dial(target string, o Options) (*Client, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	path, err := SocketPath(target)
	if err != nil {
		return nil, err
	}
	c := &Client{path: path, o: o, bases: make([]uint16, o.Queues), changes: make(chan struct{}, 1)}
	if err := c.connect(); err != nil {
		return nil, err
	}
	err = c.play(c.o.Sequence.Connect)
	if err == nil {
		err = c.build()
	}
	if err == nil {
		err = c.play(c.o.Sequence.Start)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("vhost-user session as %s has it: %w", o.Sequence.Name, err), c.Close())
	}
	return c, nil
}

func (c *Client) connect() (err error) {
	c.Conn, err = Connect(c.path, c.o.Timeout)
	c.told = false
	return err
}

// build makes memory and rings.
func (c *Client) build() error {
	rings := 0
	for range c.o.Queues {
		rings += (16+2+8+areaSize+tableSize)*c.o.QueueSize + 6*pageSize
	}
	m, err := newMemory(c.o.Memory+rings, c.o.Regions)
	if err != nil {
		return err
	}
	c.Memory = m
	c.Features = c.wanted() & c.offered
	for range c.o.Queues {
		q, err := newQueue(m, c.o.QueueSize, c.has(FeatureEventIdx), c.has(FeatureIndirect))
		if err != nil {
			return err
		}
		c.Queues = append(c.Queues, q)
	}
	return nil
}

func (c *Client) has(feature int) bool { return c.Features>>feature&1 == 1 }

// Has reports whether a virtio feature was negotiated.
func (c *Client) Has(feature int) bool { return c.has(feature) }

// hasProtocol reports whether a protocol feature was negotiated.
func (c *Client) hasProtocol(feature int) bool { return c.Protocol>>feature&1 == 1 }

// Reconnect breaks the session without a word and takes it up again over a new
// connection, with the same memory, rings and descriptors, as a monitor does whose
// server has ended. Queues may be in use meanwhile, by a goroutine each.
//
// Requests in flight are only safe with Options.Inflight.
func (c *Client) Reconnect() error {
	c.hangUp()
	for i, q := range c.Queues { // the guest knows no better, as the server was not asked
		c.bases[i] = q.DeviceIndex()
		if c.o.Sequence.GuestBase {
			c.bases[i] = q.driverIndex()
		}
	}
	deadline := time.Now().Add(c.Conn.timeout)
	for {
		err := c.connect()
		if err == nil {
			if err = c.play(c.o.Sequence.Connect); err == nil {
				err = c.play(c.o.Sequence.Start)
			}
			if err == nil {
				break
			}
			c.hangUp()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("vhost-user: no new session: %w", err)
		}
		time.Sleep(time.Millisecond)
	}
	for _, q := range c.Queues { // as monitors do: a kick may have been lost
		if err := q.Notify(); err != nil {
			return err
		}
	}
	return nil
}

// Restart stops the rings as a reset does, and starts them where they stopped. The
// server must have ended what was in flight, and say so truly.
func (c *Client) Restart() error {
	if err := c.Stop(); err != nil {
		return err
	}
	return c.play(c.o.Sequence.Start)
}

// Stop stops the rings as a reset does: when it returns, nothing is in flight.
func (c *Client) Stop() error {
	if err := c.play(c.o.Sequence.Stop); err != nil {
		return err
	}
	for i, q := range c.Queues {
		used := q.DeviceIndex()
		if !c.o.Sequence.asksBases() { // it believes the guest's rings
			c.bases[i] = used
		}
		if used != c.bases[i] {
			return fmt.Errorf("vhost-user: queue %d stopped at %d, with %d used: what was begun was not ended", i, c.bases[i], used)
		}
	}
	return nil
}

func (c *Client) hangUp() {
	if c.Conn != nil {
		_ = c.Conn.Close() // nothing is lost
	}
	if c.back != nil {
		_ = c.back.Close() // likewise
		<-c.backDone
		c.back = nil
	}
}

// Close ends the session without a word: the protocol has none. Nobody uses the
// queues any more. What is in flight may still be carried out.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hangUp()
	c.broken = net.ErrClosed
	for _, q := range c.Queues {
		q.close()
	}
	c.Queues = nil
	var err error
	if c.inflight != nil {
		err = c.inflight.Close()
	}
	if c.Memory != nil {
		err = errors.Join(err, c.Memory.close())
		c.Memory = nil
	}
	return err
}

// Abort closes the connection from under whoever uses it, and leaves the memory.
func (c *Client) Abort() error { return c.Conn.Close() }

// Changes receives after the server has said that the config space has changed;
// [Client.Refresh] reads it.
func (c *Client) Changes() <-chan struct{} { return c.changes }

// Refresh reads the config space anew.
func (c *Client) Refresh() error { return c.refresh(0) }

func (c *Client) refresh(flags uint32) error {
	b, err := c.Conn.config(flags, uint32(c.o.Sequence.ConfigOffset), c.o.Sequence.configSize())
	if err == nil {
		c.configMu.Lock()
		c.config = b
		c.configMu.Unlock()
	}
	return err
}

// Config returns the config space as last read.
func (c *Client) Config() []byte {
	c.configMu.Lock()
	defer c.configMu.Unlock()
	return append([]byte(nil), c.config...)
}

// Size returns the capacity in bytes, as last read.
func (c *Client) Size() int64 {
	b := c.Config()
	if len(b) < 8 {
		return 0
	}
	return int64(binary.LittleEndian.Uint64(b)) * sectorSize
}

// QueueNum returns how many queues the server has, as it said; 0 if it was not
// asked.
func (c *Client) QueueNum() int { return int(c.maxQueue) }

// BlockSize returns the logical block size in bytes: 512 if the server tells none.
func (c *Client) BlockSize() int {
	if b := c.Config(); c.has(FeatureBlkSize) && len(b) >= 24 {
		return int(binary.LittleEndian.Uint32(b[20:]))
	}
	return sectorSize
}

// config asks for size bytes of the config space.
func (c *Conn) config(flags, offset uint32, size int) ([]byte, error) {
	const writable = 1 // as every monitor says
	p := binary.LittleEndian.AppendUint32(nil, offset)
	p = binary.LittleEndian.AppendUint32(p, uint32(size))
	p = binary.LittleEndian.AppendUint32(p, writable)
	b, files, err := c.Ask(GetConfig, flags, append(p, make([]byte, size)...))
	closeFiles(files)
	if err == nil && len(b) != 12+size {
		err = fmt.Errorf("the reply to GET_CONFIG has %d bytes, want %d", len(b), 12+size)
	}
	if err != nil {
		return nil, err
	}
	return b[12:], nil
}
