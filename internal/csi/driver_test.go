package csi_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"vacate/internal/csi"
)

// serve runs a driver as the program does, until the test ends.
func serve(t *testing.T, cfg csi.Config) (*grpc.ClientConn, func()) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- csi.Run(ctx, cfg) }()
	end := sync.OnceFunc(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	c, err := grpc.NewClient("unix:"+strings.TrimPrefix(cfg.Endpoint, "unix://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	t.Cleanup(func() { c.Close() }) //nolint:errcheck // at the test's end
	_, err = spec.NewIdentityClient(c).Probe(t.Context(), &spec.ProbeRequest{}, grpc.WaitForReady(true))
	must(t, err)
	return c, end
}

func TestSocket(t *testing.T) {
	w := newWorld(t)
	cfg := w.config()
	path := filepath.Join(w.dir, "csi.sock")

	// One that a driver left, which was killed.
	ln, err := net.Listen("unix", path)
	must(t, err)
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	must(t, ln.Close())
	c, end := serve(t, cfg)
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", st.Mode(), err)
	}
	info, err := spec.NewIdentityClient(c).GetPluginInfo(t.Context(), &spec.GetPluginInfoRequest{})
	if err != nil || info.GetName() != csi.Name {
		t.Errorf("info: %v, %v", info, err)
	}
	node, err := spec.NewNodeClient(c).NodeGetInfo(t.Context(), &spec.NodeGetInfoRequest{})
	if err != nil || node.GetNodeId() != "node-1" || node.GetMaxVolumesPerNode() < 1 || node.GetAccessibleTopology().GetSegments()[csi.TopologyKey] != "node-1" {
		t.Errorf("node: %v, %v", node, err)
	}
	if err := csi.Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "answers") {
		t.Errorf("a second driver: %v", err)
	}
	end()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left over: %v", err)
	}

	must(t, os.WriteFile(path, []byte("x"), 0o600))
	if err := csi.Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("over a file: %v", err)
	}
}

func TestConfig(t *testing.T) {
	err := csi.Config{Endpoint: "tcp://0.0.0.0:1", NodeID: strings.Repeat("n", 64), MaxVolumes: -1}.Validate()
	for _, want := range []string{"tcp://", "64 bytes", "-1"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error %v does not name %q", err, want)
		}
	}
	var coded interface{ CommandExit() int }
	if err := csi.Command(t.Context(), csi.Options{Endpoint: "csi.sock", NodeID: "n", Log: slog.New(slog.DiscardHandler)}); !errors.As(err, &coded) || coded.CommandExit() != 2 {
		t.Errorf("the command line's error is %v, which is no wrong usage", err)
	}
	for _, good := range []string{"unix:///csi/csi.sock", "unix:/csi/csi.sock", "/csi/csi.sock"} {
		if err := (csi.Config{Endpoint: good, NodeID: "n"}).Validate(); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
}

// TestEvents: a claim's people are told of its lease, and of its end.
func TestEvents(t *testing.T) {
	w := newWorld(t)
	type post struct {
		path, token string
		body        map[string]any
	}
	posts := make(chan post, 16)
	api := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		p := post{path: r.Method + " " + r.URL.Path, token: r.Header.Get("Authorization")}
		if err := json.NewDecoder(r.Body).Decode(&p.body); err != nil {
			t.Error(err)
		}
		posts <- p
		if strings.Contains(r.URL.Path, "/nobody/") {
			rw.WriteHeader(http.StatusNotFound)
			return
		}
		rw.WriteHeader(http.StatusCreated)
	}))
	defer api.Close()
	token := filepath.Join(w.dir, "token")
	must(t, os.WriteFile(token, []byte("secret\n"), 0o600))
	cfg := w.config()
	cfg.Events = csi.NewEvents(api.URL, token, api.Client())
	c, end := serve(t, cfg)
	controller := spec.NewControllerClient(c)
	volume := func(tenant string) string {
		req := create("of-"+tenant, block(writer))
		req.Parameters = map[string]string{"csi.storage.k8s.io/pvc/namespace": tenant, "csi.storage.k8s.io/pvc/name": "data"}
		res, err := controller.CreateVolume(t.Context(), req)
		must(t, err)
		_, err = controller.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: res.GetVolume().GetVolumeId()})
		must(t, err)
		return res.GetVolume().GetVolumeContext()[csi.Name+"/lease"]
	}
	expect := func(path, kind, reason, leaseID string) {
		t.Helper()
		p := <-posts
		object, _ := p.body["involvedObject"].(map[string]any) //nolint:errcheck // then it is empty
		meta, _ := p.body["metadata"].(map[string]any)         //nolint:errcheck // likewise
		text, _ := p.body["message"].(string)                  //nolint:errcheck // likewise
		if p.path != path || p.token != "Bearer secret" || object["kind"] != kind || p.body["reason"] != reason || !strings.Contains(text, "vacate certificate get "+leaseID) {
			t.Errorf("posted to %s: %v; want %s, %s, %s of %s", p.path, p.body, path, kind, reason, leaseID)
		}
		if ns, has := object["namespace"]; has && ns != meta["namespace"] { // the API server refuses such
			t.Errorf("the object is in namespace %v, and its event in %v", ns, meta["namespace"])
		}
	}
	l := volume("acme")
	expect("POST /api/v1/namespaces/acme/events", "PersistentVolumeClaim", "LeaseOpened", l)
	expect("POST /api/v1/namespaces/acme/events", "Lease", "LeaseErased", l)
	l = volume("nobody")
	expect("POST /api/v1/namespaces/nobody/events", "PersistentVolumeClaim", "LeaseOpened", l)
	expect("POST /api/v1/namespaces/nobody/events", "Lease", "LeaseErased", l)
	expect("POST /api/v1/namespaces/default/events", "Node", "LeaseErased", l)

	// Volumes do not wait for an API server that is away, and the driver's end does not
	// for long.
	api.Close()
	volume("acme")
	end()
	if len(posts) > 0 {
		t.Errorf("posted as well: %v", <-posts)
	}
}

func TestClusterEvents(t *testing.T) {
	if _, err := csi.ClusterEvents(func(string) string { return "" }); err == nil || !strings.Contains(err.Error(), "no pod") {
		t.Errorf("outside of a cluster: %v", err)
	}
}
