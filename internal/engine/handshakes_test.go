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
	greeted := make(chan bool)
	const clients = 3 * maxHandshakes
	for range clients {
		c, err := net.Dial("unix", socket)
		check(t, err)
		defer c.Close()
		check(t, c.SetReadDeadline(time.Now().Add(500*time.Millisecond)))
		go func() {
			n, _ := c.Read(make([]byte, 18))
			greeted <- n > 0
		}()
	}
	n := 0
	for range clients {
		if <-greeted {
			n++
		}
	}
	if n != maxHandshakes {
		t.Errorf("%d of %d silent clients are served at once, want %d", n, clients, maxHandshakes)
	}
}
