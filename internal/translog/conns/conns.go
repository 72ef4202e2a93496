// Package conns bounds how many connections a server has at once.
package conns

import (
	"net"
	"sync"
)

// Limit returns a listener whose Accept waits while n of its connections are
// open. Others wait in the kernel's backlog, and are refused where that is full.
func Limit(l net.Listener, n int) net.Listener {
	return &listener{Listener: l, room: make(chan struct{}, n), closed: make(chan struct{})}
}

type listener struct {
	net.Listener
	room   chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case l.room <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.room
		return nil, err
	}
	return &conn{Conn: c, room: l.room}, nil
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type conn struct {
	net.Conn
	room chan struct{}
	once sync.Once
}

func (c *conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { <-c.room })
	return err
}
