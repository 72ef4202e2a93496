package nbd

import (
	"encoding/binary"
	"fmt"

	"vacate/internal/sys"
)

// The handshake: fixed newstyle. Nothing of a tenant's data is seen here, so its
// buffers are ordinary memory; what a client can make it hold is bounded by
// maxOption, and how long by the handshake's timeout.

// transmissionFlags are what the volume can do.
const transmissionFlags = flagHasFlags | flagSendFlush | flagSendFUA | flagSendTrim |
	flagSendWriteZeroes | flagCanMultiConn | flagSendCache | flagSendFastZero

// handshake talks until the client enters transmission (true) or leaves.
func (c *conn) handshake() (entered bool, err error) {
	c.terms = terms{size: uint64(c.server.geometry.Size), align: 1}
	uid, err := sys.PeerUID(c.fd)
	switch {
	case err != nil:
		return false, err
	case !c.server.cfg.Allow(uid):
		c.refuse(fmt.Sprintf("user %d may not use this volume: connect as the user that the lease was opened for", uid))
	}
	if err := c.greet(); err != nil {
		return false, err
	}
	for range maxOptions {
		var header [optionHeaderSize]byte
		if err := c.recvFull(header[:]); err != nil {
			return false, err
		}
		id, length, ok := parseOption(header[:])
		if !ok || length > maxOption {
			return false, errGarbage
		}
		data := make([]byte, length)
		if err := c.recvFull(data); err != nil {
			return false, err
		}
		reply, then := c.option(id, data)
		if err := c.send(reply); err != nil {
			return false, err
		}
		switch then {
		case transmission:
			return true, nil
		case hangUp:
			return false, nil
		}
	}
	return false, errGarbage
}

// greet exchanges the flags of both sides.
func (c *conn) greet() error {
	b := binary.BigEndian.AppendUint64(nil, magicInit)
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint16(b, flagFixedNewstyle|flagNoZeroes)
	if err := c.send(b); err != nil {
		return err
	}
	var answer [4]byte
	if err := c.recvFull(answer[:]); err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(answer[:])
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return errGarbage // the specification demands the end
	}
	c.noZeros = flags&flagNoZeroes != 0
	return nil
}

// refuse makes every option of this connection fail with the text why.
func (c *conn) refuse(why string) {
	c.refusal = why
	c.server.counters.refused.Add(1)
}

// What follows an option.
type then uint8

const (
	haggle then = iota
	transmission
	hangUp
)

// option answers one option.
func (c *conn) option(id uint32, data []byte) ([]byte, then) {
	switch {
	case id == optAbort:
		return appendOptReply(nil, id, repAck), hangUp
	case id == optExportName:
		return c.exportName(data)
	case c.refusal != "":
		return appendOptReply(nil, id, repErrPolicy, []byte(c.refusal)...), haggle
	}
	switch id {
	case optList:
		return c.list(data), haggle
	case optInfo, optGo:
		return c.info(id, data)
	case optStructuredReply:
		if len(data) != 0 {
			return invalid(id), haggle
		}
		c.terms.structured = true
		return appendOptReply(nil, id, repAck), haggle
	case optListMetaContext, optSetMetaContext:
		return c.contexts(id, data), haggle
	}
	// optStartTLS among them: the socket's owner is the one who may connect.
	return appendOptReply(nil, id, repErrUnsup, []byte("this server does not know that option")...), haggle
}

func invalid(id uint32) []byte {
	return appendOptReply(nil, id, repErrInvalid, []byte("the data of the option is not well-formed")...)
}

func unknown(id uint32) []byte {
	return appendOptReply(nil, id, repErrUnknown, []byte("this socket serves one volume, under the empty name")...)
}

// flags are the transmission flags that go with what was negotiated.
func (c *conn) flags() uint16 {
	if c.terms.structured {
		return transmissionFlags | flagSendDF
	}
	return transmissionFlags
}

// exportName enters transmission the old way, which knows no errors.
func (c *conn) exportName(name []byte) ([]byte, then) {
	if c.refusal != "" || len(name) != 0 {
		return nil, hangUp
	}
	if err := c.enter(); err != nil {
		c.server.counters.refused.Add(1)
		return nil, hangUp
	}
	b := binary.BigEndian.AppendUint64(nil, c.terms.size)
	b = binary.BigEndian.AppendUint16(b, c.flags())
	if !c.noZeros {
		b = append(b, make([]byte, oldZeroes)...)
	}
	return b, transmission
}

func (c *conn) list(data []byte) []byte {
	if len(data) != 0 {
		return invalid(optList)
	}
	b := appendOptReply(nil, optList, repServer, 0, 0, 0, 0) // the empty name
	return appendOptReply(b, optList, repAck)
}

// info answers optInfo and optGo; the latter enters transmission.
func (c *conn) info(id uint32, data []byte) ([]byte, then) {
	r, ok := parseInfo(data)
	switch {
	case !ok:
		return invalid(id), haggle
	case len(r.name) != 0:
		return unknown(id), haggle
	}
	if id == optGo {
		if err := c.enter(); err != nil {
			c.server.counters.refused.Add(1)
			return appendOptReply(nil, id, repErrPolicy, []byte(err.Error())...), haggle
		}
	}
	minimum := uint32(c.server.geometry.Logical)
	if r.blockSize {
		c.terms.align = uint64(minimum)
	}
	export := binary.BigEndian.AppendUint16(nil, infoExport)
	export = binary.BigEndian.AppendUint64(export, c.terms.size)
	export = binary.BigEndian.AppendUint16(export, c.flags())
	sizes := binary.BigEndian.AppendUint16(nil, infoBlockSize)
	for _, n := range []uint32{minimum, preferredBlock, maxRequest} {
		sizes = binary.BigEndian.AppendUint32(sizes, n)
	}
	b := appendOptReply(nil, id, repInfo, export...)
	b = appendOptReply(b, id, repInfo, sizes...)
	b = appendOptReply(b, id, repAck)
	if id == optGo {
		return b, transmission
	}
	return b, haggle
}

// contexts answers optListMetaContext and optSetMetaContext.
func (c *conn) contexts(id uint32, data []byte) []byte {
	if id == optSetMetaContext {
		c.terms.allocation = false // whatever was selected before
	}
	r, ok := parseContexts(data)
	switch {
	case !ok || !c.terms.structured:
		return invalid(id)
	case len(r.name) != 0:
		return unknown(id)
	}
	found := r.exact || id == optListMetaContext && (r.base || r.queries == 0)
	var b []byte
	if found {
		context := uint32(0) // reserved in a list
		if id == optSetMetaContext {
			context = contextID
			c.terms.allocation = true
		}
		b = appendOptReply(b, id, repMetaContext,
			append(binary.BigEndian.AppendUint32(nil, context), contextAllocation...)...)
	}
	return appendOptReply(b, id, repAck)
}
