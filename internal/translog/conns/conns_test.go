package conns

import (
	"errors"
	"net"
	"testing"
	"time"
)

// TestLimit: no more than two connections are accepted at once, closing one
// twice makes room for one, and closing the listener ends an Accept that waits.
func TestLimit(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := Limit(inner, 2)
	accepted, failed := make(chan net.Conn), make(chan error, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				failed <- err
				return
			}
			accepted <- c
		}
	}()
	for range 4 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	take := func() net.Conn {
		t.Helper()
		select {
		case c := <-accepted:
			return c
		case <-time.After(time.Minute):
			t.Fatal("no connection was accepted")
			return nil
		}
	}
	none := func() {
		t.Helper()
		select {
		case <-accepted:
			t.Fatal("a third connection was accepted")
		case <-time.After(50 * time.Millisecond):
		}
	}
	a, b := take(), take()
	none()
	a.Close()
	a.Close()
	c := take()
	none()
	l.Close()
	select {
	case err := <-failed:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept after Close: %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("Accept still waits after Close")
	}
	b.Close()
	c.Close()
}
