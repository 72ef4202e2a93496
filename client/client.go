// Package client calls the API of a Vacate daemon over its unix socket.
//
// A [Client] holds the services of vacate.v1. Requests and responses are
// the messages of vacate/api/vacate/v1. Errors are those of connect
// (connect.CodeOf tells the code); [ProblemOf] finds what the daemon said about
// one, and an error that is a [*DialError] means that no daemon was reached.
package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"syscall"

	"connectrpc.com/connect"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/api/vacate/v1/vacatev1connect"
)

// DefaultSocket is where a daemon listens that was not told otherwise.
const DefaultSocket = "/run/vacate/vacate.sock"

// A Client calls one daemon. Its methods may be called from any goroutine.
type Client struct {
	Leases       vacatev1connect.LeaseServiceClient
	Drives       vacatev1connect.DriveServiceClient
	Node         vacatev1connect.NodeServiceClient
	Certificates vacatev1connect.CertificateServiceClient
	Tenants      vacatev1connect.TenantServiceClient
	Trust        vacatev1connect.TrustServiceClient
	Log          vacatev1connect.LogServiceClient

	socket    string
	transport *http.Transport
}

// Dial makes a client of the daemon that listens on a unix socket. It connects
// when the first call is made. Close it when it is not needed any more.
func Dial(socket string) *Client {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, "unix", socket)
			if err != nil && ctx.Err() == nil {
				return nil, &DialError{Socket: socket, Err: err}
			}
			return c, err
		},
		DisableCompression: true, // nothing leaves the host
	}
	h := &http.Client{Transport: t}
	const host = "http://vacate" // the socket decides who answers; HTTP wants a name
	opts := connect.WithAcceptCompression("gzip", nil, nil)
	return &Client{
		Leases:       vacatev1connect.NewLeaseServiceClient(h, host, opts),
		Drives:       vacatev1connect.NewDriveServiceClient(h, host, opts),
		Node:         vacatev1connect.NewNodeServiceClient(h, host, opts),
		Certificates: vacatev1connect.NewCertificateServiceClient(h, host, opts),
		Tenants:      vacatev1connect.NewTenantServiceClient(h, host, opts),
		Trust:        vacatev1connect.NewTrustServiceClient(h, host, opts),
		Log:          vacatev1connect.NewLogServiceClient(h, host, opts),
		socket:       socket, transport: t,
	}
}

// Socket is the path that the client was made for.
func (c *Client) Socket() string { return c.socket }

// Close gives up the client's idle connections. Calls in progress go on.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// A DialError is returned, wrapped, by every call when the daemon's socket
// cannot be reached. errors.Is finds the errno.
type DialError struct {
	Socket string
	Err    error
}

func (e *DialError) Error() string {
	why := e.Err
	var errno syscall.Errno
	if errors.As(e.Err, &errno) {
		why = errno
	}
	return fmt.Sprintf("no daemon answers at %s: %v", e.Socket, why)
}

func (e *DialError) Unwrap() error { return e.Err }

// ProblemOf is what the daemon said about an error: its kind, what it is about,
// and what to do next. It is nil for an error that is not the daemon's.
func ProblemOf(err error) *vacatev1.Problem {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return nil
	}
	for _, d := range ce.Details() {
		m, err := d.Value()
		if err != nil {
			continue // a detail of a newer daemon
		}
		if p, ok := m.(*vacatev1.Problem); ok {
			return p
		}
	}
	return nil
}
