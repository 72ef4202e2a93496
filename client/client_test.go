package client_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"connectrpc.com/connect"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/api/vacate/v1/vacatev1connect"
	"vacate/client"
)

// daemon answers Lease.Get with an error that has a problem.
type daemon struct {
	vacatev1connect.UnimplementedLeaseServiceHandler
}

func (daemon) Get(_ context.Context, req *vacatev1.LeaseServiceGetRequest) (*vacatev1.LeaseServiceGetResponse, error) {
	err := connect.NewError(connect.CodeNotFound, errors.New("there is no lease \""+req.GetId()+"\""))
	d, derr := connect.NewErrorDetail(&vacatev1.Problem{Kind: "not-found", Object: req.GetId(), Next: "look again"})
	if derr != nil {
		return nil, derr
	}
	err.AddDetail(d)
	return nil, err
}

func listen(t *testing.T) string {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(vacatev1connect.NewLeaseServiceHandler(daemon{}))
	srv := &http.Server{Handler: mux}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
	return sock
}

func TestProblemOf(t *testing.T) {
	c := client.Dial(listen(t))
	defer c.Close()
	_, err := c.Leases.Get(t.Context(), &vacatev1.LeaseServiceGetRequest{Id: "nope"})
	p := client.ProblemOf(err)
	if connect.CodeOf(err) != connect.CodeNotFound || p.GetKind() != "not-found" || p.GetObject() != "nope" || p.GetNext() != "look again" {
		t.Errorf("error %v, problem %v", err, p)
	}
	if p := client.ProblemOf(errors.New("other")); p != nil {
		t.Errorf("an error that is not the daemon's has problem %v", p)
	}
}

func TestNoDaemon(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "nobody")
	c := client.Dial(sock)
	defer c.Close()
	_, err := c.Node.Status(t.Context(), &vacatev1.NodeServiceStatusRequest{})
	var de *client.DialError
	if !errors.As(err, &de) || de.Socket != sock || !errors.Is(err, syscall.ENOENT) {
		t.Fatalf("error %v is no DialError with ENOENT", err)
	}
	if want := "no daemon answers at " + sock + ": no such file or directory"; !strings.Contains(err.Error(), want) {
		t.Errorf("error %q, want %q", err, want)
	}
}
