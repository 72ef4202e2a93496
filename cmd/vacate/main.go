// Command vacate gives the space of local SSDs to tenants as encrypted volumes,
// and forgets it when they leave. It is the daemon, its three processes, and the
// command line in one binary.
package main

import (
	"context"
	"os"

	"vacate/internal/cli"
	"vacate/internal/daemon"
	"vacate/internal/demo"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], cli.Hooks{
		Serve:   daemon.Serve,
		Engine:  daemon.Engine,
		Control: daemon.Control,
		Demo: func(ctx context.Context, o cli.DemoOptions) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			return demo.Run(ctx, demo.Config{Out: o.Out, Self: self, Dir: o.Dir})
		},
	}, cli.Standard()))
}
