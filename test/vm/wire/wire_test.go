package wire

import (
	"io"
	"net"
	"strings"
	"testing"
)

func TestConn(t *testing.T) {
	a, b := net.Pipe()
	host, guest := NewConn(a), NewConn(b)
	go func() {
		var r Request
		if guest.Receive(&r) == nil {
			guest.Send(Message{Re: r.ID, Body: Body(Ran{Code: 3, Stdout: "line\nline"})}) //nolint:errcheck // the host waits for it
		}
		b.Close()
	}()
	if err := host.Send(Request{ID: 7, Do: "run", Body: Body(Run{Args: []string{"x\ny"}})}); err != nil {
		t.Fatal(err)
	}
	var m Message
	if err := host.Receive(&m); err != nil || m.Re != 7 || !strings.Contains(string(m.Body), `line\nline`) {
		t.Errorf("received %+v, %v", m, err)
	}
	if err := host.Receive(&m); err != io.EOF {
		t.Errorf("after the guest's end: %v", err)
	}
}

// readWriter is a peer that has said all it will say.
type readWriter struct{ io.Reader }

func (readWriter) Write(p []byte) (int, error) { return len(p), nil }

// TestTorn: what a machine that died had begun to say is left out; nonsense
// before that is an error.
func TestTorn(t *testing.T) {
	c := NewConn(readWriter{strings.NewReader(`{"kind":"up"}` + "\n" + `{"kind":"ope`)})
	var m Message
	if err := c.Receive(&m); err != nil || m.Kind != "up" {
		t.Fatalf("received %+v, %v", m, err)
	}
	if err := c.Receive(&m); err != io.EOF {
		t.Errorf("a torn line at the end: %v, want io.EOF", err)
	}
	var begun strings.Builder
	begun.WriteString(`{"kind":"ope`)
	if err := NewConn(struct {
		io.Reader
		io.Writer
	}{nil, &begun}).Begin(); err != nil {
		t.Fatal(err)
	}
	begun.WriteString(`{"kind":"again"}` + "\n")
	c = NewConn(readWriter{strings.NewReader(begun.String())})
	if err := c.Receive(&m); err != nil || m.Kind != "again" {
		t.Errorf("after a torn line and a new beginning: received %+v, %v", m, err)
	}
	c = NewConn(readWriter{strings.NewReader("nonsense\n{}\n")})
	if err := c.Receive(&m); err == nil || err == io.EOF {
		t.Errorf("nonsense: %v", err)
	}
}
