package cli

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
)

// While control cannot start, the keeper holds the socket and nobody answers.
func TestQueryEnds(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a := newApp(Hooks{}, Streams{Getenv: func(string) string { return "" }})
	a.addr, a.patience = sock, 50*time.Millisecond
	err = a.query(func(ctx context.Context, c *client.Client) error {
		_, err := c.Node.Status(ctx, &vacatev1.NodeServiceStatusRequest{})
		return err
	})
	r := reportOf(err)
	if r.ExitCode != ExitFailed || !strings.Contains(r.Message, sock) || !strings.Contains(r.Next, "log") {
		t.Errorf("asking where nobody answers: %+v", r)
	}
}
