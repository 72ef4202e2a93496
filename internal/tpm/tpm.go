// Package tpm keeps keys in a TPM 2.0, and lets it say how the machine was
// booted.
//
// A [TPM] is one connection, to a character device with the kernel's resource
// manager (/dev/tpmrm0) or to the unix socket of swtpm. A process that is about to
// be confined opens it before: nothing is opened later.
//
// # Keys
//
// A [Signer] is an ECDSA P-256 key that was made inside the TPM and cannot leave
// it (fixedTPM, fixedParent, sensitiveDataOrigin). Its file holds the key wrapped
// by the TPM's storage key; without that TPM it is noise. The attestation key is
// not stored: it is a primary key of the endorsement hierarchy, the same each time
// that it is asked for, until the TPM is cleared by its manufacturer's means. It is
// restricted: it signs nothing but what the TPM itself made.
//
// # Rules
//
//	T1: no object of ours stays loaded between two calls: it is loaded from its
//	    saved context, used, and flushed, so that any number of keys fits.
//	T2: a command that the TPM does not answer within [Timeout] ends the
//	    connection; every call after it fails.
//
// Nothing here checks a quote: package proof does.
package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Timeout bounds one command of a socket's TPM. A device's are bounded by the
// kernel's driver (two minutes for the slowest).
const Timeout = 30 * time.Second

// maxResponse is the most that a TPM answers: TPM2_PT_MAX_RESPONSE_SIZE is 4096
// in all that there are.
const maxResponse = 16 << 10

// A TPM is an open TPM. Its methods may be called from any goroutine, one is
// carried out at a time.
type TPM struct {
	path string

	mu     sync.Mutex // guards all below; held over whole uses of a key
	link   transport.TPMCloser
	broken error // why no command can be sent any more
	ak     *key
}

// Open connects to the TPM at path, a device or a socket. Errors name the path.
func Open(path string) (*TPM, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("opening the TPM: %w", err)
	}
	t := &TPM{path: path}
	if st.Mode()&os.ModeSocket != 0 {
		c, err := net.DialTimeout("unix", path, Timeout)
		if err != nil {
			return nil, fmt.Errorf("opening the TPM %s: %w", path, err)
		}
		t.link = &socket{c: c}
		// Nobody manages a socket's resources: what an earlier process left loaded is
		// in the way. The kernel flushes a device's.
		if err := t.flushAll(); err != nil {
			c.Close() //nolint:errcheck // the first error says more
			return nil, err
		}
		return t, nil
	}
	if st.Mode()&os.ModeCharDevice == 0 {
		return nil, fmt.Errorf("opening the TPM %s: neither a character device nor a socket", path)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the TPM: %w", err)
	}
	t.link = transport.FromReadWriteCloser(f)
	return t, nil
}

// Path is where the TPM was opened.
func (t *TPM) Path() string { return t.path }

// Close gives up the connection. Signers end with it.
func (t *TPM) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.link == nil {
		return nil
	}
	err := t.link.Close()
	t.link, t.broken = nil, os.ErrClosed
	return err
}

// Send carries out one command; it is for go-tpm. REQUIRES: t.mu.
func (t *TPM) Send(command []byte) ([]byte, error) {
	if t.broken != nil {
		return nil, fmt.Errorf("the connection to the TPM %s has ended, and control opens one only as it starts: %w", t.path, t.broken)
	}
	response, err := t.link.Send(command)
	if err != nil {
		t.broken = err
		return nil, fmt.Errorf("asking the TPM %s: %w", t.path, err)
	}
	return response, nil
}

// flushAll unloads every transient object.
func (t *TPM) flushAll() error {
	const first = 0x80000000 // TRANSIENT_FIRST, part 2 of the TPM 2.0 library, 7.5
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(t)
	if err != nil {
		return fmt.Errorf("asking the TPM %s what is loaded: %w", t.path, err)
	}
	list, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		return fmt.Errorf("asking the TPM %s what is loaded: %w", t.path, err)
	}
	for _, h := range list.Handle {
		if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(t); err != nil {
			return fmt.Errorf("unloading an object of the TPM %s: %w", t.path, err)
		}
	}
	return nil
}

// A socket is a stream of commands and responses, as swtpm's.
type socket struct{ c net.Conn }

func (s *socket) Send(command []byte) ([]byte, error) {
	if err := s.c.SetDeadline(time.Now().Add(Timeout)); err != nil {
		return nil, err
	}
	if _, err := s.c.Write(command); err != nil {
		return nil, err
	}
	head := make([]byte, 10) // tag, size of all, response code
	if _, err := io.ReadFull(s.c, head); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[2:])
	if size < uint32(len(head)) || size > maxResponse {
		return nil, fmt.Errorf("a response of %d bytes", size)
	}
	response := make([]byte, size)
	copy(response, head)
	if _, err := io.ReadFull(s.c, response[len(head):]); err != nil {
		return nil, err
	}
	return response, nil
}

func (s *socket) Close() error { return s.c.Close() }

var errReload = errors.New("the TPM was reset")
