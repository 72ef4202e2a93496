package csi_test

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/csi"
	"vacate/internal/csi/csitest"
	"vacate/test/daemon"
)

var (
	endpoint = flag.String("endpoint", "", "socket of a driver that runs, as unix:///csi/csi.sock (default: one is started, on devices of the test's)")
	folder   = flag.String("dir", "", "folder to stage and publish in, which is made and removed (default: one of the test's)")
	size     = flag.Int64("size", 64<<20, "size of volumes in bytes")
)

// kinds are the two ways in which a volume is used: all specs are run for each.
var kinds = []string{"mount", "block"}

func TestSanity(t *testing.T) {
	dir := *folder
	if dir == "" {
		dir = t.TempDir()
	} else {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := os.Remove(dir); err != nil { // all that was made in it is gone
				t.Error(err)
			}
		}()
	}
	address, ended := *endpoint, func() {}
	if address == "" {
		address, ended = start(t)
	}
	var report types.Report
	ginkgo.ReportAfterSuite("specs", func(r types.Report) { report = r })
	gomega.RegisterFailHandler(ginkgo.Fail)
	for _, kind := range kinds {
		c := sanity.NewTestConfig()
		c.Address, c.TestVolumeAccessType, c.TestVolumeSize, c.TestVolumeExpandSize = address, kind, *size, 2**size
		c.TargetPath, c.StagingPath = filepath.Join(dir, kind+"-target"), filepath.Join(dir, kind+"-staging")
		c.TestVolumeParameters = map[string]string{"tenant": "acme", "iops": "5000"}
		c.TestVolumeMutableParameters = map[string]string{"iops": "1000", "bandwidth": "64Mi"}
		c.CheckPath = checkPath
		ginkgo.Describe(kind, func() {
			sc := sanity.GinkgoTest(&c)
			ginkgo.AfterAll(sc.Finalize)
		}, ginkgo.Ordered, ginkgo.ContinueOnFailure)
	}
	suite, reporter := ginkgo.GinkgoConfiguration()
	suite.Timeout, reporter.NoColor = 5*time.Minute, true
	ginkgo.RunSpecs(t, "csi-sanity", suite, reporter)
	ended()
	compare(t, report)
}

// checkPath is csi-sanity's own, but for a bound file of a test that mounts in memory
// alone: there a block volume's target is a file.
func checkPath(path string) (sanity.PathKind, error) {
	st, err := os.Lstat(path)
	switch {
	case os.IsNotExist(err):
		return sanity.PathIsNotFound, nil
	case err != nil:
		return "", err
	case st.IsDir():
		return sanity.PathIsDir, nil
	case st.Mode().IsRegular():
		return sanity.PathIsFile, nil
	}
	return sanity.PathIsOther, nil
}

// start starts a daemon and a driver. ended ends the driver, and fails the test where
// anything was left over.
func start(t testing.TB) (address string, ended func()) {
	t.Helper()
	bin, err := daemon.Build(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "csi") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) }) //nolint:errcheck // of /tmp
	vd, err := daemon.Start(bin, filepath.Join(dir, "d"), daemon.Options{Env: []string{"VACATE_DEVICE_DIR="}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vd.Kill)
	k, err := csitest.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	if _, ok := t.(*testing.B); ok {
		log = slog.New(slog.DiscardHandler)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	c := k.Client(filepath.Join(dir, "d", "vacate.sock"))
	address = "unix://" + filepath.Join(dir, "csi.sock")
	go func() {
		served <- csi.Run(ctx, csi.Config{Endpoint: address, NodeID: "node-1", Client: c, Host: k, Log: log})
	}()
	return address, func() {
		res, err := c.Leases.List(ctx, &vacatev1.LeaseServiceListRequest{})
		for begin := time.Now(); err == nil && len(res.GetLeases()) > 0 && time.Since(begin) < 5*time.Second; time.Sleep(5 * time.Millisecond) {
			res, err = c.Leases.List(ctx, &vacatev1.LeaseServiceListRequest{}) // an erased one may be closed a moment later
		}
		if err != nil || len(res.GetLeases()) > 0 {
			t.Errorf("leases are left over: %v, %v", res.GetLeases(), err)
		}
		if left := k.Left(); len(left) > 0 {
			t.Errorf("left over: %v", left)
		}
		stop()
		if err := <-served; err != nil {
			t.Errorf("the driver ended: %v", err)
		}
		if _, err := os.Stat(strings.TrimPrefix(address, "unix://")); !os.IsNotExist(err) {
			t.Errorf("the driver's socket is left over: %v", err)
		}
	}
}

// compare fails where other specs were skipped than those that are known.
func compare(t *testing.T, report types.Report) {
	t.Helper()
	ran := map[string]int{}
	got := map[string]bool{}
	for _, s := range report.SpecReports {
		if s.LeafNodeType != types.NodeTypeIt {
			continue
		}
		kind, name, _ := strings.Cut(s.FullText(), " ")
		ran[kind]++
		if s.State.Is(types.SpecStateSkipped | types.SpecStatePending) {
			got[kind+" "+name] = true
		}
	}
	want := map[string]bool{}
	for _, kind := range kinds {
		if ran[kind] < 90 {
			t.Errorf("%s: only %d specs were found: the suite is broken", kind, ran[kind])
		}
		for _, s := range skips {
			want[kind+" "+s.spec] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if !want[name] {
			t.Errorf("skipped without a reason in skips_test.go: %s", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if !got[name] {
			t.Errorf("skips_test.go names what was not skipped: %s", name)
		}
	}
	t.Logf("%d specs, %d skipped", ran["mount"]+ran["block"], len(got))
}

// TestSkipsDocumented: docs/csi.md names the specs that are skipped, and no others.
func TestSkipsDocumented(t *testing.T) {
	if *endpoint != "" {
		return // as a program, where there are no documents
	}
	text, err := os.ReadFile("../../docs/csi.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n## Skipped specs\n")
	if !ok {
		t.Fatal("docs/csi.md has no section \"Skipped specs\"")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var want, got []string
	for _, s := range skips {
		want = append(want, fmt.Sprintf("| %s | %s |", s.spec, s.why))
	}
	for line := range strings.Lines(section) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "|") && !strings.HasPrefix(line, "|-") && !strings.HasPrefix(line, "| spec ") {
			got = append(got, line)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("docs/csi.md lists\n%s\nand skips_test.go\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
