// Package csi is the driver by which Kubernetes, Nomad and others give volumes of
// this node's daemon to their workloads: the three services of the Container Storage
// Interface, version 1.13 (github.com/container-storage-interface/spec).
//
// A volume is a lease of the daemon on this node. It is made here, used here and
// gone with the node: so each node runs a whole driver, controller and node service
// in one process, and whoever places workloads is told by topology and capacity.
//
// The driver keeps nothing. What it has to know it reads anew for each call: leases
// from the daemon, mounts from the kernel. So a driver that was killed between any
// two steps is followed by one that finds the same state, and goes on.
//
// # Errors
//
// Every error is a gRPC status with the code that the specification names for it;
// docs/csi.md lists them.
package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"vacate/client"
)

// Name is the name of the driver: in storage classes, of its socket's folder, and
// before what it names in topology and volume contexts.
const Name = "csi.vacate.dev"

// TopologyKey is the key of the one topology segment that a node has. Its value is
// Config.NodeID.
const TopologyKey = "topology." + Name + "/node"

// maxNodeID is the longest node id, in bytes (CSI, NodeGetInfo: at most 256; a
// topology segment's value: at most 63).
const maxNodeID = 63

// Config says what a driver is to be.
type Config struct {
	Endpoint   string         // unix:///csi/csi.sock, or a path
	NodeID     string         // what the cluster calls this node: 1 to 63 bytes
	MaxVolumes int64          // most volumes on this node; 0: as many as the daemon takes leases
	Client     *client.Client // of this node's daemon; not closed
	Host       Host           // what mounts; nil: this host
	Events     *Events        // tells people of leases; nil: nobody
	Version    string         // of the program, for GetPluginInfo
	Log        *slog.Logger
}

// Validate names every fault of the configuration.
func (c Config) Validate() error {
	var all []error
	if _, err := socketPath(c.Endpoint); err != nil {
		all = append(all, err)
	}
	if c.NodeID == "" || len(c.NodeID) > maxNodeID {
		all = append(all, fmt.Errorf("the node id %q has %d bytes: it needs 1 to %d, as the node is called in the cluster", c.NodeID, len(c.NodeID), maxNodeID))
	}
	if c.MaxVolumes < 0 {
		all = append(all, fmt.Errorf("the most volumes, %d, is negative", c.MaxVolumes))
	}
	return errors.Join(all...)
}

// socketPath is the path that an endpoint names.
func socketPath(endpoint string) (string, error) {
	path := strings.TrimPrefix(strings.TrimPrefix(endpoint, "unix:"), "//")
	if !strings.HasPrefix(path, "/") {
		return "", fmt.Errorf("the endpoint %q is not the absolute path of a unix socket, as unix:///csi/csi.sock", endpoint)
	}
	return path, nil
}

// A Driver answers the calls of the interface. Its methods may be called from any
// goroutine.
type Driver struct {
	spec.UnimplementedIdentityServer
	spec.UnimplementedControllerServer
	spec.UnimplementedNodeServer

	cfg   Config
	locks locks
}

// New makes a driver. REQUIRES: cfg is valid.
func New(cfg Config) *Driver {
	if cfg.Host == nil {
		cfg.Host = NewHost()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{cfg: cfg}
}

// stopWithin is how long calls may take when the driver is told to end.
const stopWithin = 10 * time.Second

// Run serves until ctx ends, and then until its calls have ended, 10 s at most.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	d := New(cfg)
	path, err := socketPath(cfg.Endpoint)
	if err != nil {
		return err
	}
	ln, err := listen(path)
	if err != nil {
		return err
	}
	told := make(chan struct{})
	telling, stopTelling := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(told)
		d.cfg.Events.run(telling, d.cfg.Log)
	}()
	srv := grpc.NewServer(grpc.UnaryInterceptor(d.logged))
	spec.RegisterIdentityServer(srv, d)
	spec.RegisterControllerServer(srv, d)
	spec.RegisterNodeServer(srv, d)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	d.cfg.Log.Info("driver ready", "driver", Name, "endpoint", path, "node_id", cfg.NodeID, "daemon", cfg.Client.Socket())
	select {
	case err = <-served:
	case <-ctx.Done():
		late := time.AfterFunc(stopWithin, srv.Stop)
		srv.GracefulStop()
		late.Stop()
		err = <-served
	}
	stopTelling()
	<-told
	if err != nil {
		return fmt.Errorf("serving %s: %w", path, err)
	}
	return nil
}

// listen makes the socket. One that a driver left behind is taken away, one that is
// answered is not: two drivers must not serve one node.
func listen(path string) (net.Listener, error) {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case st.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s is there and is no socket: remove it, or name another endpoint", path)
	default:
		c, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			c.Close() //nolint:errcheck // nothing was sent
			return nil, fmt.Errorf("a driver answers at %s already: end it first", path)
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, err
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return ln, nil
}

// logged logs a call with what it was about and how it ended. Secrets, of which the
// driver wants none, and contexts are left out.
func (d *Driver) logged(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	begin := time.Now()
	res, err := next(ctx, req)
	level := slog.LevelDebug
	if err != nil {
		level = slog.LevelWarn
	} else if changes[info.FullMethod[strings.LastIndexByte(info.FullMethod, '/')+1:]] {
		level = slog.LevelInfo
	}
	args := []any{"call", info.FullMethod, "duration_seconds", time.Since(begin).Seconds(), "outcome", status.Code(err).String()}
	if r, ok := req.(interface{ GetVolumeId() string }); ok {
		args = append(args, "volume_id", r.GetVolumeId())
	}
	if r, ok := req.(*spec.CreateVolumeRequest); ok {
		args = append(args, "name", r.GetName())
		if v, ok := res.(*spec.CreateVolumeResponse); ok {
			args = append(args, "volume_id", v.GetVolume().GetVolumeId())
		}
	}
	if err != nil {
		args = append(args, "error", status.Convert(err).Message())
	}
	d.cfg.Log.Log(ctx, level, "call", args...)
	return res, err
}

// changes are the calls that change something.
var changes = map[string]bool{
	"CreateVolume": true, "DeleteVolume": true, "ControllerExpandVolume": true, "ControllerModifyVolume": true, "NodeStageVolume": true,
	"NodeUnstageVolume": true, "NodePublishVolume": true, "NodeUnpublishVolume": true, "NodeExpandVolume": true,
}
