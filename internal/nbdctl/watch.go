package nbdctl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/mdlayher/genetlink"
)

// Watch joins the driver's group of listeners, and returns a function that calls
// dead for each connection that dies, with its device's number; −1: messages were
// lost, and any device's may have. That returns nil when ctx ends, and must be called.
func Watch(ctx context.Context) (listen func(dead func(index int)) error, err error) {
	conn, err := genetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("nbd: opening generic netlink: %w", err)
	}
	listen, err = watch(ctx, conn)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return listen, nil
}

func watch(ctx context.Context, conn *genetlink.Conn) (func(func(int)) error, error) {
	family, err := conn.GetFamily(familyName)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("nbd: %w", ErrNoDriver)
	case err != nil:
		return nil, fmt.Errorf("nbd: asking for the driver: %w", err)
	}
	joined := false
	for _, g := range family.Groups {
		if g.Name == groupName {
			if err := conn.JoinGroup(g.ID); err != nil {
				return nil, fmt.Errorf("nbd: listening for dead connections: %w", err)
			}
			joined = true
		}
	}
	if !joined {
		return nil, errors.New("nbd: the driver does not tell of dead connections")
	}
	return func(dead func(int)) error { return attend(ctx, conn, family, dead) }, nil
}

// attend receives until ctx ends, and closes conn.
func attend(ctx context.Context, conn *genetlink.Conn, family genetlink.Family, dead func(int)) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() }) //nolint:errcheck // it ends Receive; nothing is lost
	defer func() {
		if stop() {
			conn.Close() //nolint:errcheck // Receive's error is returned
		}
	}()
	for {
		err := receive(conn, family, dead)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("nbd: listening for dead connections: %w", err)
		}
	}
}

func receive(conn *genetlink.Conn, family genetlink.Family, dead func(int)) error {
	msgs, raw, err := conn.Receive()
	if errors.Is(err, syscall.ENOBUFS) { // netlink(7): the socket's buffer was full
		dead(-1)
		return nil
	}
	if err != nil {
		return err
	}
	for i, m := range msgs {
		if uint16(raw[i].Header.Type) != family.ID || m.Header.Command != cmdLinkDead {
			continue
		}
		index, err := indexOf(m)
		if err != nil {
			return err
		}
		dead(index)
	}
	return nil
}
