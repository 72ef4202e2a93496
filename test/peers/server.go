package main

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"vacate/internal/nbdclient"
	"vacate/internal/vhostclient"
)

const fillStep = 1 << 20

// A place is where a peer keeps its data, and how much.
type place struct {
	dir  string
	size int64
}

// A server is an export that runs, and the process that serves it.
type server struct {
	target string // socket or URI of its NBD export
	vhost  string // socket of its vhost-user export, if it has one
	pid    int
	stop   func() error
}

// A client is one of an export of either kind.
type client interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Flush() error
}

// dial connects, and waits for a server that has just been started.
func (s *server) dial() (c client, err error) {
	for range 250 {
		if s.vhost != "" {
			c, err = vhostclient.Dial(s.vhost, vhostclient.Options{})
		} else {
			c, err = nbdclient.Dial(s.target, nbdclient.Options{})
		}
		if err == nil {
			return c, nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil, err
}

// fill writes the first n bytes of an export, then reads some of them back: what
// is measured is a server that keeps what it is given.
func (s *server) fill(n int64) error {
	c, err := s.dial()
	if err != nil {
		return err
	}
	buf := make([]byte, fillStep)
	for i := 0; i < len(buf); i += 8 {
		binary.LittleEndian.PutUint64(buf[i:], rand.Uint64()|1)
	}
	for off := int64(0); off < n && err == nil; off += fillStep {
		mark(buf, off)
		_, err = c.WriteAt(buf[:min(fillStep, n-off)], off)
	}
	if err == nil {
		err = c.Flush()
	}
	block := make([]byte, 4096)
	for i := 0; i < 256 && err == nil; i++ {
		off := rand.Int64N(n/4096) * 4096
		if _, err = c.ReadAt(block, off); err == nil && binary.LittleEndian.Uint64(block) != uint64(off)|1<<63 {
			err = fmt.Errorf("at %d it tells something else than what was written there", off)
		}
	}
	return errors.Join(err, c.Close())
}

// mark puts each block's place into its first 8 bytes.
func mark(buf []byte, off int64) {
	for at := 0; at < len(buf); at += 4096 {
		binary.LittleEndian.PutUint64(buf[at:], uint64(off+int64(at))|1<<63)
	}
}

// spawn starts a peer that listens on a socket.
func spawn(socket string, args ...string) (*server, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w (make test-packages installs it)", args[0], err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return &server{target: socket, pid: cmd.Process.Pid, stop: func() error {
		select {
		case err := <-ended:
			return fmt.Errorf("%s ended on its own: %w", args[0], cmp.Or(err, errors.New("without an error: somebody has ended it")))
		default:
		}
		err := cmd.Process.Kill()
		<-ended //nolint:errcheck // killed
		return err
	}}, nil
}

// sparse makes a file of n bytes.
func sparse(path string, n int64) error {
	return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, n))
}

// qemuRaw is qemu-nbd on a raw file.
func (p place) qemuRaw(name string, more ...string) (*server, error) {
	image, socket := filepath.Join(p.dir, name), filepath.Join(p.dir, name+".sock")
	if err := sparse(image, p.size); err != nil {
		return nil, err
	}
	return spawn(socket, append([]string{"qemu-nbd", "-t", "-e", "8", "-f", "raw", "-k", socket}, append(more, image)...)...)
}

// createImage makes an image with qemu-img.
func createImage(args ...string) error {
	for try := 1; ; try++ {
		out, err := exec.Command("qemu-img", append([]string{"create", "-q"}, args...)...).CombinedOutput()
		if err == nil {
			return nil
		}
		// The time that hashing a password takes is read from a clock of 4 ms or more:
		// where that shows none, qemu-img gives up, at once and by chance.
		if try == 50 || !bytes.Contains(out, []byte("Unable to get accurate CPU usage")) {
			return fmt.Errorf("qemu-img create: %w: %s", err, out)
		}
	}
}

const luksSecret = "secret,id=s,data=bench"

// createLUKS makes an image that QEMU and nbdkit take: AES-256-XTS, plain64. The hash,
// of the password alone, is a slow one: createImage tells why.
func (p place) createLUKS(image string) error {
	return createImage("-f", "luks", "--object", luksSecret, "-o",
		"key-secret=s,iter-time=10,cipher-alg=aes-256,cipher-mode=xts,hash-alg=sha512", image, fmt.Sprint(p.size))
}

func (p place) qemuLUKS() (*server, error) {
	image, socket := filepath.Join(p.dir, "qemu-luks"), filepath.Join(p.dir, "qemu-luks.sock")
	if err := p.createLUKS(image); err != nil {
		return nil, err
	}
	return spawn(socket, "qemu-nbd", "-t", "-e", "8", "-k", socket, "--object", luksSecret,
		"--image-opts", "driver=luks,key-secret=s,file.driver=file,file.filename="+image)
}

// qemuEmpty is qemu-nbd on a qcow2 that nothing was ever written to.
func (p place) qemuEmpty() (*server, error) {
	image, socket := filepath.Join(p.dir, "empty.qcow2"), filepath.Join(p.dir, "empty.sock")
	if err := createImage("-f", "qcow2", image, fmt.Sprint(p.size)); err != nil {
		return nil, err
	}
	return spawn(socket, "qemu-nbd", "-t", "-e", "8", "-f", "qcow2", "-k", socket, image)
}

func (p place) kitMemory() (*server, error) {
	socket := filepath.Join(p.dir, "kit-memory.sock")
	return spawn(socket, "nbdkit", "-f", "-U", socket, "memory", fmt.Sprint(p.size))
}

func (p place) kitFile() (*server, error) {
	file, socket := filepath.Join(p.dir, "kit-file"), filepath.Join(p.dir, "kit-file.sock")
	if err := sparse(file, p.size); err != nil {
		return nil, err
	}
	return spawn(socket, "nbdkit", "-f", "-U", socket, "file", file)
}

func (p place) kitLUKS() (*server, error) {
	image, socket := filepath.Join(p.dir, "kit-luks"), filepath.Join(p.dir, "kit-luks.sock")
	if err := p.createLUKS(image); err != nil {
		return nil, err
	}
	return spawn(socket, "nbdkit", "-f", "-U", socket, "--filter=luks", "file", image, "passphrase=bench")
}
