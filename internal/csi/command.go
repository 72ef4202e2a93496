package csi

import (
	"context"
	"log/slog"

	"k8s.io/klog/v2"

	"vacate/client"
	"vacate/internal/version"
)

// Options are what the command `vacate csi` was asked.
type Options struct {
	Daemon     string // the daemon's socket
	Endpoint   string
	NodeID     string
	MaxVolumes int64
	Events     bool
	Getenv     func(string) string
	Log        *slog.Logger
}

// Command runs the driver as the program does.
func Command(ctx context.Context, o Options) error {
	klog.SetSlogLogger(o.Log) // what mount-utils tells
	c := client.Dial(o.Daemon)
	defer c.Close()
	cfg := Config{Endpoint: o.Endpoint, NodeID: o.NodeID, MaxVolumes: o.MaxVolumes, Client: c, Version: version.String(), Log: o.Log}
	if err := cfg.Validate(); err != nil {
		return usageError{err}
	}
	if o.Events {
		var err error
		if cfg.Events, err = ClusterEvents(o.Getenv); err != nil {
			return err
		}
	}
	return Run(ctx, cfg)
}

// A usageError is a command line that makes no sense.
type usageError struct{ error }

// CommandExit is the exit code of such (package cli, ExitUsage).
func (usageError) CommandExit() int { return 2 }
