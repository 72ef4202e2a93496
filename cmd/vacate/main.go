// Command vacate gives the space of local SSDs to tenants as encrypted volumes,
// and forgets it when they leave. It is the daemon, its three processes, and the
// command line in one binary.
package main

import (
	"context"
	"os"

	"vacate/internal/bench"
	"vacate/internal/bench/measure"
	"vacate/internal/cli"
	"vacate/internal/csi"
	"vacate/internal/daemon"
	"vacate/internal/demo"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], cli.Hooks{
		Serve:   daemon.Serve,
		Engine:  daemon.Engine,
		Control: daemon.Control,
		Devices: daemon.Devices,
		Demo: func(ctx context.Context, o cli.DemoOptions) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			return demo.Run(ctx, demo.Config{Out: o.Out, Self: self, Dir: o.Dir})
		},
		Bench: cli.BenchHooks{
			Plan: measure.Plan,
			Run: func(ctx context.Context, p bench.Plan, tell func(bench.Event)) (bench.Report, error) {
				self, err := os.Executable()
				if err != nil {
					return bench.Report{}, err
				}
				return measure.Run(ctx, measure.Config{Self: self, Plan: p, Tell: tell})
			},
		},
		CSI: func(ctx context.Context, o cli.CSIOptions) error {
			return csi.Command(ctx, csi.Options(o))
		},
	}, cli.Standard()))
}
