package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
)

func (a *app) leaseCloseCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "close ID…",
		Short: "Close leases: destroy their keys, drain their I/O, free their space",
		Long: "Close destroys each lease's key first, whatever its size and load, and prints how long that took. " +
			"Then it waits for I/O in flight. Where a drive does not answer, the lease is reported as erased: its data " +
			"cannot be read any more, and its space stays quarantined until the I/O has drained. " +
			"Closing a lease that has ended changes nothing and is no error.",
		Args:              needArgs(1, -1, "at least one lease id"),
		ValidArgsFunction: a.completeLeases,
		RunE: func(_ *cobra.Command, ids []string) error {
			return a.call(func(ctx context.Context, c *client.Client) error { return a.closeLeases(ctx, c, ids) })
		},
	}
}

// closeLeases closes one lease after the other. One that fails does not keep
// the next from being closed; the exit code is that of the first that failed.
func (a *app) closeLeases(ctx context.Context, c *client.Client, ids []string) error {
	var closed []*vacatev1.Lease
	var first error
	for _, id := range ids {
		l, err := a.closeLease(ctx, c, id)
		switch {
		case err != nil && first == nil:
			first = err
		case err != nil:
			a.printError(a.err, err)
		}
		if err != nil {
			var de *client.DialError
			if errors.As(err, &de) || ctx.Err() != nil {
				break // the next would fail alike
			}
			continue
		}
		closed = append(closed, l)
		if a.format == formatTable {
			a.printClosed(l)
		}
	}
	if a.format != formatTable && (first == nil || len(closed) > 0) {
		if err := encode(a.out, a.format, leaseViews(closed)); err != nil {
			return err
		}
	}
	return first
}

func (a *app) closeLease(ctx context.Context, c *client.Client, id string) (*vacatev1.Lease, error) {
	defer a.spin("closing " + printable(id))()
	res, err := persist(ctx, func(ctx context.Context) (*vacatev1.LeaseServiceCloseResponse, error) {
		return c.Leases.Close(ctx, &vacatev1.LeaseServiceCloseRequest{Id: id})
	})
	if err != nil {
		return nil, err
	}
	return res.GetLease(), nil
}

func (a *app) printClosed(l *vacatev1.Lease) {
	p := a.paint(a.out)
	fmt.Fprintf(a.out, "%s  %s", l.GetId(), p.state(stateName(l.GetState())))
	switch e := l.GetErasure(); {
	case e != nil:
		fmt.Fprintf(a.out, "  %s\n", erasureText(l))
		if e.GetQuarantined() && l.GetText() != "" {
			fmt.Fprintf(a.out, "  %s %s\n", p.yellow("note:"), printable(l.GetText()))
		}
	case l.GetText() != "":
		fmt.Fprintf(a.out, "  %s: %s\n", l.GetResult(), printable(l.GetText()))
	default:
		fmt.Fprintf(a.out, "  %s\n", l.GetResult())
	}
}

// spin shows that something is being waited for, on a terminal only, and from
// the first tenth of a second on. The function it returns takes it away.
func (a *app) spin(what string) (stop func()) {
	if !a.terminal(a.err) || a.getenv("TERM") == "dumb" {
		return func() {}
	}
	done, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		spinner(a.err, what, done)
	}()
	return func() {
		close(done)
		<-gone
	}
}

func spinner(w io.Writer, what string, done <-chan struct{}) {
	const frames = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	shown := false
	for i := 0; ; i++ {
		select {
		case <-done:
			if shown {
				fmt.Fprintf(w, "\r%s\r", strings.Repeat(" ", len(what)+2))
			}
			return
		case <-t.C:
			shown = true
			fmt.Fprintf(w, "\r%c %s", []rune(frames)[i%10], what)
		}
	}
}
