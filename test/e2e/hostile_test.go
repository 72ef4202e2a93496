package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vacate/internal/nbdclient"
	"vacate/test/daemon"
)

// At the limit of connections the next client is refused, and told why; those
// that are connected go on, and a place that is given up is taken.
func TestConnectionLimit(t *testing.T) {
	d := start(t, daemon.Options{Env: []string{"VACATE_MAX_CONNECTIONS=3"}})
	one, two := open(t, d, "--size", "16MiB"), open(t, d, "--size", "16MiB")
	clients := []*nbdclient.Client{dial(t, one), dial(t, one), dial(t, two)} // over all leases
	for range 20 {
		_, err := nbdclient.Dial(two.URI(), nbdclient.Options{})
		var refusal *nbdclient.Refusal
		if !errors.As(err, &refusal) || !strings.Contains(refusal.Text, "3") || !strings.Contains(refusal.Text, "max_connections") {
			t.Fatalf("a client over the limit: %v, want a refusal that names the limit", err)
		}
	}
	if out, err := try("nbdinfo", two.URI()); err == nil {
		t.Errorf("nbdinfo over the limit prints %q", out)
	}
	for i, c := range clients {
		write(t, c, int64(i)<<20, []byte("on"))
	}
	clients[0].Close() //nolint:errcheck // done
	eventually(t, "a place that was given up", func() error {
		c, err := nbdclient.Dial(two.URI(), nbdclient.Options{})
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// rss is the resident memory of a process, without pages of its program: how many of
// those there are, the kernel decides.
func rss(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	var sum, found int64
	for line := range strings.Lines(string(b)) {
		name, v, _ := strings.Cut(line, ":")
		if name != "RssAnon" && name != "RssShmem" {
			continue
		}
		var kib int64
		if _, err := fmt.Sscan(v, &kib); err != nil {
			t.Fatal(err)
		}
		sum, found = sum+kib<<10, found+1
	}
	if found != 2 {
		t.Fatalf("the status of process %d says:\n%s", pid, b)
	}
	return sum
}

// honest writes and reads on its own connection, at least once, until stop is
// called, which returns how often it did, and the first error. The 8 MiB from base
// on must be its own.
func honest(t *testing.T, l daemon.Lease, base int64) (stop func() (int, error)) {
	t.Helper()
	c := dial(t, l)
	quit, ended := make(chan struct{}), make(chan error, 1)
	rounds := 0
	go func() {
		want, got := make([]byte, 64<<10), make([]byte, 64<<10)
		r := rand.NewChaCha8([32]byte{1, byte(base >> 23)})
		for ; ; rounds++ {
			select {
			case <-quit:
				if rounds > 0 {
					ended <- nil
					return
				}
			default:
			}
			r.Read(want) //nolint:errcheck // never fails
			off := base + int64(rounds%128)*int64(len(want))
			_, werr := c.WriteAt(want, off)
			_, rerr := c.ReadAt(got, off)
			err := errors.Join(werr, rerr)
			if err == nil && !bytes.Equal(got, want) {
				err = errors.New("read other than it wrote")
			}
			if err != nil {
				ended <- fmt.Errorf("round %d: %w", rounds, err)
				return
			}
		}
	}()
	return func() (int, error) {
		close(quit)
		err := <-ended
		c.Close() //nolint:errcheck // done
		return rounds, err
	}
}

// handshake enters transmission by NBD_OPT_EXPORT_NAME, as the specification's
// fixed newstyle has it, and returns the raw connection.
func handshake(t *testing.T, l daemon.Lease) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", l.Socket())
	must(t, err)
	t.Cleanup(func() { c.Close() }) //nolint:errcheck // it may be closed
	must(t, c.SetDeadline(time.Now().Add(30*time.Second)))
	_, err = io.ReadFull(c, make([]byte, 18))
	must(t, err)
	hello := binary.BigEndian.AppendUint32(nil, 3) // fixed newstyle, no zeroes
	hello = append(hello, "IHAVEOPT"...)
	hello = binary.BigEndian.AppendUint32(hello, 1) // NBD_OPT_EXPORT_NAME
	hello = binary.BigEndian.AppendUint32(hello, 0)
	_, err = c.Write(hello)
	must(t, err)
	_, err = io.ReadFull(c, make([]byte, 10)) // size and flags
	must(t, err)
	return c
}

// nbdRequest is the header of a request.
func nbdRequest(cmd uint16, off uint64, length uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, 0x25609513)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, cmd)
	b = binary.BigEndian.AppendUint64(b, 42) // cookie
	b = binary.BigEndian.AppendUint64(b, off)
	return binary.BigEndian.AppendUint32(b, length)
}

const (
	nbdRead  = 0
	nbdWrite = 1
)

// Clients that misbehave harm themselves: the engine's memory stays bounded, and
// a client on the same lease goes on.
func TestHostileClients(t *testing.T) {
	tests := map[string]func(t *testing.T, l daemon.Lease, i int){
		"garbage at once": func(t *testing.T, l daemon.Lease, i int) {
			c, err := net.Dial("unix", l.Socket())
			must(t, err)
			defer c.Close() //nolint:errcheck // it is refused
			junk := make([]byte, 64<<10)
			rand.NewChaCha8([32]byte{byte(i)}).Read(junk)            //nolint:errcheck // never fails
			c.SetDeadline(time.Now().Add(30 * time.Second))          //nolint:errcheck // then it is over sooner
			c.Write(junk)                                            //nolint:errcheck // it may be refused at any byte
			if _, err := io.Copy(io.Discard, c); os.IsTimeout(err) { // an end, or a reset
				t.Errorf("the server holds on to a client that sends garbage: %v", err)
			}
		},
		"garbage as requests": func(t *testing.T, l daemon.Lease, i int) {
			c := handshake(t, l)
			junk := make([]byte, 64<<10)
			rand.NewChaCha8([32]byte{byte(i), 1}).Read(junk) //nolint:errcheck // never fails
			c.Write(junk)                                    //nolint:errcheck // it may be refused at any byte
			if _, err := io.Copy(io.Discard, c); os.IsTimeout(err) {
				t.Errorf("the server holds on to a client that sends garbage: %v", err)
			}
		},
		"half a request": func(t *testing.T, l daemon.Lease, _ int) {
			c := handshake(t, l)
			req := append(nbdRequest(nbdWrite, 0, 1<<20), make([]byte, 1000)...)
			_, err := c.Write(req)
			must(t, err)
			time.Sleep(20 * time.Millisecond)
			must(t, c.Close())
		},
		"half a request, and stays": func(t *testing.T, l daemon.Lease, _ int) {
			_, err := handshake(t, l).Write(nbdRequest(nbdWrite, 0, 1<<20)[:13])
			must(t, err)
		},
		"oversized": func(t *testing.T, l daemon.Lease, _ int) {
			c := handshake(t, l)
			_, err := c.Write(nbdRequest(nbdWrite, 0, 1<<32-1))
			must(t, err)
			chunk := make([]byte, 1<<20)
			for range 64 { // the server refuses, or swallows: it never keeps it
				if _, err := c.Write(chunk); err != nil {
					return
				}
			}
		},
		"never reads": func(t *testing.T, l daemon.Lease, _ int) {
			c := handshake(t, l)
			must(t, c.SetDeadline(time.Now().Add(500*time.Millisecond)))
			for {
				if _, err := c.Write(nbdRequest(nbdRead, 0, 1<<20)); err != nil {
					return // the server does not take more: it stopped reading
				}
			}
		},
	}
	for name, attack := range tests {
		t.Run(name, func(t *testing.T) {
			d := start(t, daemon.Options{})
			l := open(t, d, "--size", "64MiB")
			other := open(t, d, "--size", "16MiB")
			engine, err := d.Child("engine")
			must(t, err)
			stop := honest(t, l, 0)
			const attackers = 8
			for i := range attackers {
				attack(t, l, i)
			}
			// 16 MiB, and 2 MiB of buffers for each connection, the honest one included.
			if got, most := rss(t, engine), int64(16+2*(attackers+1))<<20; got > most {
				t.Errorf("the engine has %d MiB resident, want at most %d", got>>20, most>>20)
			}
			if rounds, err := stop(); err != nil || rounds == 0 {
				t.Errorf("a client beside them did %d rounds: %v", rounds, err)
			}
			c := dial(t, other)
			write(t, c, 0, []byte("on"))
			c.Close() //nolint:errcheck // done
			if now, err := d.Child("engine"); err != nil || now != engine {
				t.Errorf("the engine has another process id (%d, was %d): %v", now, engine, err)
			}
			began := time.Now()
			if _, err := d.Run("lease", "close", l.ID); err != nil {
				t.Error(err)
			}
			if s := show(t, d, l.ID); s.State != "closed" || time.Since(began) > 30*time.Second {
				t.Errorf("closed under attack: %s after %v", s.State, time.Since(began))
			}
		})
	}
}

// as makes a command run as another user.
func as(uid uint32) func(*exec.Cmd) {
	return func(cmd *exec.Cmd) {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid, NoSetGroups: false}
	}
}

const nobody = 65534

// Another user gets neither at a volume nor at others' leases, even where the
// folders let it through to the sockets.
func TestOtherUsers(t *testing.T) {
	needRoot(t)
	d := start(t, daemon.Options{})
	must(t, os.Chmod(filepath.Dir(d.Dir), 0o755))
	mine := open(t, d, "--size", "16MiB")
	theirs := open(t, d, "--size", "16MiB", "--uid", fmt.Sprint(nobody))
	if out, err := asNobody("nbdinfo", "--size", mine.URI()); err == nil {
		t.Errorf("another user reads the volume: %s", out)
	}
	must(t, os.Chmod(mine.Socket(), 0o666)) // an operator's slip
	if out, err := asNobody("nbdinfo", "--size", mine.URI()); err == nil {
		t.Errorf("another user reads the volume whose socket is open to all: %s", out)
	}
	if out, err := asNobody("nbdinfo", "--size", theirs.URI()); err != nil || strings.TrimSpace(out) != fmt.Sprint(16<<20) {
		t.Errorf("the user that the lease names: %v %s", err, out)
	}
	if _, err := nbdclient.Dial(mine.URI(), nbdclient.Options{}); err != nil {
		t.Errorf("the owner: %v", err)
	}

	cli := filepath.Join(filepath.Dir(d.Dir), "vacate") // nobody cannot reach the tests' folder
	b, err := os.ReadFile(d.Bin)
	must(t, err)
	must(t, os.WriteFile(cli, b, 0o755))
	addr := "--addr=" + filepath.Join(d.Dir, "vacate.sock")
	for _, tt := range []struct {
		code int
		args []string
	}{
		{3, []string{"lease", "show", mine.ID}},
		{3, []string{"lease", "close", mine.ID}},
		{4, []string{"stop", "--erase"}},
		{4, []string{"drive", "enroll", "/dev/null"}},
		{0, []string{"lease", "show", theirs.ID}},
		{0, []string{"lease", "close", theirs.ID}},
	} {
		if out, err := asNobody(cli, append(tt.args, addr)...); exitCode(err) != tt.code {
			t.Errorf("vacate %s as another user: exit code %d, want %d: %s", strings.Join(tt.args, " "), exitCode(err), tt.code, out)
		}
	}
	if s := show(t, d, mine.ID); s.State != "open" {
		t.Errorf("the lease is %s", s.State)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("becoming another user needs root")
		}
		t.Skip("becoming another user needs root")
	}
}

func asNobody(name string, args ...string) (string, error) {
	return try("setpriv", append([]string{fmt.Sprintf("--reuid=%d", nobody), fmt.Sprintf("--regid=%d", nobody), "--clear-groups", name}, args...)...)
}

// TestOrdinaryUser: without root, with 8 MiB of memory to lock, all of --dev
// works, and status says how far the locks reach.
func TestOrdinaryUser(t *testing.T) {
	needRoot(t) // to become none
	dir := shortDir(t)
	must(t, os.Chown(dir, nobody, nobody))
	cli := filepath.Join(dir, "vacate")
	b, err := os.ReadFile(bin)
	must(t, err)
	must(t, os.WriteFile(cli, b, 0o755))
	// The limit is set by a shell, before which the process is nobody's.
	limited := filepath.Join(dir, "limited")
	must(t, os.WriteFile(limited, []byte("#!/bin/sh\nulimit -l 8192 && exec "+cli+" \"$@\"\n"), 0o755))
	d, err := daemon.Start(limited, filepath.Join(dir, "d"), daemon.Options{Before: as(nobody)})
	must(t, err)
	t.Cleanup(d.Kill)

	var status struct {
		Engine struct{ Buffers, KeyStore string }
	}
	must(t, d.JSON(&status, "status"))
	if !strings.Contains(status.Engine.Buffers, "8192 KiB") {
		t.Errorf("buffers %q: want what RLIMIT_MEMLOCK lets be locked", status.Engine.Buffers)
	}
	l := open(t, d, "--size", "64MiB", "--uid", fmt.Sprint(nobody))
	stops := make([]func() (int, error), 8)
	for i := range stops { // more than can be locked
		stops[i] = honest(t, l, int64(i)<<23)
		time.Sleep(20 * time.Millisecond)
	}
	for _, stop := range stops {
		if n, err := stop(); err != nil {
			t.Errorf("a client did %d rounds: %v", n, err)
		}
	}
	if _, err := d.Run("lease", "close", l.ID); err != nil {
		t.Error(err)
	}
	if s := show(t, d, l.ID); s.State != "closed" || !s.Erasure.ReadBack {
		t.Errorf("closed as %+v, %+v", s.Lease, s.Erasure)
	}
	must(t, d.Stop())

	out, err := asNobody("sh", "-c", "ulimit -l 8192 && exec "+cli+" demo --dir "+dir)
	if err != nil || !strings.Contains(out, "0 bytes that are not zero") {
		t.Errorf("the demo: %v\n%s", err, out)
	}
}
