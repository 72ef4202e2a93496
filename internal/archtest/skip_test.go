package archtest

import (
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
)

// skips names the test files that may skip, and why that hides nothing. A test
// that misses a program or a right fails, and says what to install or to do.
var skips = map[string]string{
	"internal/drive/device_test.go":     "needs root and the loop driver; with both, it must get a device",
	"internal/drive/late_test.go":       "needs root and /dev/fuse; fails without them where CI is set",
	"internal/drive/queue_test.go":      "needs root, to mount a small tmpfs",
	"internal/drive/mmap_test.go":       "needs root, to mount a small tmpfs; fails without where CI is set",
	"internal/extent/allocator_test.go": "an action of a state machine that does not apply; others are drawn",
	"internal/journal/folder_test.go":   "gives a folder away, mounts it read-only: only some roots may",
	"internal/server/peer_test.go":      "needs root, to connect as another user; the rest of each test has run by then",
	"test/e2e/bench_test.go":            "needs root, for a loop device; fails without where CI is set",
	"test/e2e/faults_test.go":           "needs root and /dev/fuse; fails without them where CI is set",
	"test/e2e/drive_test.go":            "needs root, for a loop device; internal/drive tests the same on files",
	"test/e2e/hostile_test.go":          "needs root, to become another user; fails without where CI is set",
	"test/vm/bench_test.go":             "measures, for minutes: is run where VACATE_BENCH=1",
	"test/slow/slow_test.go":            "needs root and /dev/fuse; fails without them where CI is set",
	"test/e2e/state_test.go":            "needs root, to mount; fails without where CI is set",
	"internal/engine/sharemem_test.go":  "a build without runtime/secret, which refuses what is tested; fails without where CI is set",
	"internal/server/admin_test.go":     "its last part calls as another user: only root may",
	"internal/server/server_test.go":    "its last part calls as another user: only root may",
	"internal/sys/attribute_test.go":    "needs root and the loop driver, to take a device away; fails without them where CI is set",
	"internal/translog/full_test.go":    "needs root, to mount a small tmpfs; fails without where CI is set",
	"internal/volatile/keys_test.go":    "a kernel without memfd_secret; any other reason to lack it fails",
}

var skipCall = regexp.MustCompile(`\.(Skip|Skipf|SkipNow)\(`)

func TestSkips(t *testing.T) {
	bad, err := skipping(os.DirFS(root(t)), skips)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range bad {
		t.Errorf("%s skips a test: let it fail, or say in skip_test.go why skipping hides nothing", name)
	}
}

func TestSkipsPlanted(t *testing.T) {
	bad, err := skipping(fstest.MapFS{
		"a/a_test.go":     {Data: []byte("t.Skip()")},
		"a/b_test.go":     {Data: []byte("\tt.Skipf(")},
		"a/c_test.go":     {Data: []byte("return fs.SkipDir")},
		"a/known_test.go": {Data: []byte("t.SkipNow()")},
	}, map[string]string{"a/known_test.go": "known", "a/c_test.go": "stale"})
	if got := strings.Join(bad, " "); err != nil || got != "a/a_test.go a/b_test.go" {
		t.Errorf("found %q, %v; want a/a_test.go a/b_test.go", got, err)
	}
}

// skipping names the test files that skip and are not known.
func skipping(fsys fs.FS, known map[string]string) (bad []string, err error) {
	err = files(fsys, func(name string) error {
		if !strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "internal/archtest/") || known[name] != "" {
			return nil
		}
		src, err := fs.ReadFile(fsys, name)
		if skipCall.Match(src) {
			bad = append(bad, name)
		}
		return err
	})
	return bad, err
}
