package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"vacate/test/vm/wire"
)

// Reset resets the machine, as its button would, whatever it is doing, and waits
// until its init program is up again. Calls in progress fail.
func (v *VM) Reset(ctx context.Context) (wire.Up, error) {
	if err := v.steady(); err != nil {
		return wire.Up{}, err
	}
	if err := v.monitor(ctx, "system_reset"); err != nil {
		return wire.Up{}, fmt.Errorf("resetting the machine: %w", err)
	}
	v.mu.Lock()
	for id, ch := range v.waiting {
		delete(v.waiting, id)
		ch <- wire.Message{Re: id, Err: "the machine was reset meanwhile"}
	}
	v.mu.Unlock()
	return v.again(ctx)
}

// Kexec has the machine start another kernel, and waits until its init program is
// up again.
func (v *VM) Kexec(ctx context.Context, k wire.Kexec) (wire.Up, error) {
	if err := v.steady(); err != nil {
		return wire.Up{}, err
	}
	if err := v.Call(ctx, "kexec", k, nil); err != nil {
		return wire.Up{}, err
	}
	return v.again(ctx)
}

// steady is an error if the machine has started anew by itself.
func (v *VM) steady() error {
	select {
	case up := <-v.up:
		return fmt.Errorf("the machine has started anew by itself: %+v\n%s", up, v.Console(40))
	default:
		return nil
	}
}

// again waits until the machine is up again.
func (v *VM) again(ctx context.Context) (wire.Up, error) {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	select {
	case up := <-v.up:
		return up, nil
	case <-v.done:
		return wire.Up{}, fmt.Errorf("the machine ended while it started again: %w", v.Death())
	case <-ctx.Done():
		return wire.Up{}, fmt.Errorf("waiting for the machine to start again: %w\n%s", context.Cause(ctx), v.Console(40))
	}
}

// monitor gives QEMU's monitor a command (QEMU's docs/interop/qmp-spec.rst).
func (v *VM) monitor(ctx context.Context, command string) (err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", v.cfg.monitor())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	lines := bufio.NewScanner(conn)
	for _, c := range []string{"qmp_capabilities", command} {
		if _, err := fmt.Fprintf(conn, "{\"execute\": %q}\n", c); err != nil {
			return err
		}
		for done := false; !done; {
			if !lines.Scan() {
				return errors.Join(fmt.Errorf("the monitor ended at %q", c), lines.Err())
			}
			var answer struct {
				Return *json.RawMessage `json:"return"`
				Error  *struct {
					Desc string `json:"desc"`
				} `json:"error"`
			} // its greeting and events are neither
			if err := json.Unmarshal(lines.Bytes(), &answer); err != nil {
				return fmt.Errorf("the monitor says %q: %w", lines.Text(), err)
			}
			if answer.Error != nil {
				return fmt.Errorf("the monitor refuses %q: %s", c, answer.Error.Desc)
			}
			done = answer.Return != nil
		}
	}
	return nil
}
