package cli

import (
	"context"
	"log/slog"
	"os"

	"github.com/spf13/cobra"
)

// CSIOptions are what `vacate csi` was asked.
type CSIOptions struct {
	Daemon     string // the daemon's socket
	Endpoint   string
	NodeID     string
	MaxVolumes int64
	Events     bool
	Getenv     func(string) string
	Log        *slog.Logger
}

func (a *app) csiCommand() *cobra.Command {
	o := CSIOptions{Getenv: a.getenv}
	var debug bool
	c := &cobra.Command{
		Use:   "csi --endpoint unix:///csi/csi.sock --node-id NAME",
		Short: "Run the CSI driver: volumes of this node for Kubernetes, Nomad and others",
		Long: "Csi serves the Container Storage Interface, version 1.13, on a unix socket, for the daemon on this node. It needs root, mount, mkfs, resize2fs and " +
			"xfs_growfs, and runs until it is stopped; what is mounted stays mounted. See docs/csi.md.",
		Example: "vacate csi --endpoint unix:///csi/csi.sock --node-id node-7",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if o.Endpoint == "" {
				o.Endpoint = a.getenv("CSI_ENDPOINT")
			}
			if o.Endpoint == "" {
				return usageErrorf("--endpoint is missing: write --endpoint unix:///csi/csi.sock, or set CSI_ENDPOINT")
			}
			if o.NodeID == "" {
				o.NodeID = a.getenv("NODE_NAME")
			}
			if o.NodeID == "" {
				name, err := os.Hostname()
				if err != nil {
					return err
				}
				o.NodeID = name
			}
			level := slog.LevelInfo
			if debug {
				level = slog.LevelDebug
			}
			o.Daemon, o.Log = a.socket(), slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: level}))
			return untilSignal(c, func(ctx context.Context) error { return a.hooks.CSI(ctx, o) })
		},
	}
	f := c.Flags()
	f.StringVar(&o.Endpoint, "endpoint", "", "socket to serve on, as unix:///csi/csi.sock (default $CSI_ENDPOINT)")
	f.StringVar(&o.NodeID, "node-id", "", "what the cluster calls this node, at most 63 bytes (default $NODE_NAME, then the host's name)")
	f.Int64Var(&o.MaxVolumes, "max-volumes", 0, "most volumes on this node (default: as many as the daemon takes leases)")
	f.Lookup("max-volumes").DefValue = "" // the help says it already
	f.BoolVar(&o.Events, "events", false, "tell of leases and their certificates as Kubernetes events; needs the right to create events")
	f.BoolVar(&debug, "debug", false, "log calls that change nothing, too")
	return c
}
