package nbdclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// An Export is what a server told of the one that a socket leads to.
type Export struct {
	Size       int64     // bytes
	Flags      uint16    // of transmission
	BlockSizes [3]uint32 // minimum, preferred, maximum, in bytes; 0 if not told
}

// Socket connects to the unix socket at path, enters transmission of the default
// export with simple replies, and returns the socket: for one who goes on by other
// means, as the kernel's driver does. It waits for the server until ctx ends.
func Socket(ctx context.Context, path string) (*os.File, Export, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, Export{}, fmt.Errorf("connecting to an NBD server: %w", err)
	}
	// Whatever waits on it ends with ctx.
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // a socket has deadlines
	c, err := New(conn, Options{SimpleReplies: true, Timeout: -1})
	if !stop() {
		err = errors.Join(context.Cause(ctx), err)
	}
	var f *os.File
	if err == nil {
		f, err = conn.(*net.UnixConn).File()
	}
	if err = errors.Join(err, conn.Close()); err != nil {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
		return nil, Export{}, fmt.Errorf("opening %s: %w", path, err)
	}
	return f, Export{Size: c.size, Flags: c.flags, BlockSizes: c.blockSizes}, nil
}
