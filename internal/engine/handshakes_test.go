package engine

import (
	"net"
	"testing"
	"time"

	"vacate/internal/volatile"
)

// TestSilentClients: clients that connect and say nothing cost a thread each, as
// connections and closes do, and Go ends a program that has too many. So few are
// served at once that all leases of a host together stay below, whatever
// max_connections says; the others wait in the backlog.
func TestSilentClients(t *testing.T) {
	for _, conns := range []int{1, 128, 65536} {
		if n := conns + volatile.Slots*(maxHandshakes+1); n > threads(conns)-2000 { // drives have some too
			t.Errorf("%d threads for connections, handshakes and closes, of %d for all", n, threads(conns))
		}
	}
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	socket := h.open(request(0, uuid, 0))
	const clients = 3 * maxHandshakes
	greeted := make(chan bool, clients)
	var conns []net.Conn
	for range clients {
		c, err := net.Dial("unix", socket)
		check(t, err)
		defer c.Close()
		check(t, c.SetReadDeadline(time.Now().Add(time.Minute)))
		conns = append(conns, c)
		go func() {
			n, _ := c.Read(make([]byte, 18))
			greeted <- n > 0
		}()
	}
	for n := range maxHandshakes {
		if !<-greeted {
			t.Fatalf("%d of %d silent clients are served at once, want %d", n, clients, maxHandshakes)
		}
	}
	for _, c := range conns { // no more than those are, long before one of those is given up
		check(t, c.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
	}
	for range clients - maxHandshakes {
		if <-greeted {
			t.Errorf("more than %d of %d silent clients are served at once", maxHandshakes, clients)
		}
	}
}
