package witness

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// childEnv makes the test binary a witness: its folder, and the log's key.
const childEnv = "VACATE_TEST_WITNESS"

func TestMain(m *testing.M) {
	if dir, vkey, ok := strings.Cut(os.Getenv(childEnv), "|"); ok {
		err := Serve(context.Background(), Config{Dir: dir, Name: "w", Logs: []string{vkey}, Listen: "127.0.0.1:0",
			Ready: func(addr net.Addr, _ string) { fmt.Println(addr) }})
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// startChild starts a witness in a process of its own.
func startChild(t *testing.T, dir, vkey string) (url string, cmd *exec.Cmd) {
	t.Helper()
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir+"|"+vkey)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.Contains(line, ":") {
		t.Fatalf("the witness says %q, %v", line, err)
	}
	return "http://" + strings.TrimSpace(line) + "/add-checkpoint", cmd
}

// TestKill: a log that signs two histories asks for both while the witness is
// killed again and again. All that was ever cosigned is of one history, and
// no tree was cosigned after a larger one (W1, W2).
func TestKill(t *testing.T) {
	const size, kills = 3000, 12
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	good, evil := newLog(t, "log.example/a", 0, size), newLog(t, "log.example/a", 1, size)
	evil.signer = good.signer
	dir := t.TempDir()
	largest, taken := int64(0), [2]int{}
	for kill := range kills {
		url, cmd := startChild(t, dir, good.vkey)
		var killed *time.Timer
		soon := func() {
			if killed == nil {
				killed = time.AfterFunc(time.Duration(r.IntN(60))*time.Millisecond, func() { cmd.Process.Kill() })
			}
		}
		if kill%2 == 0 { // else it is left until it has cosigned something, however slow the machine is
			soon()
		}
		from := int64(r.IntN(2)) * largest // sometimes it does not know
		for i := 0; ; i++ {
			l := []*testLog{good, evil}[i%2]
			to := min(from+1+r.Int64N(5), size)
			resp, err := http.Post(url, "text/plain", strings.NewReader(l.request(from, to)))
			if err != nil {
				break
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil {
				break
			}
			switch {
			case resp.StatusCode == 200:
				if to < largest {
					t.Fatalf("the tree of %d was cosigned after the one of %d", to, largest)
				}
				taken[i%2]++
				from, largest = to, to
				soon()
			case resp.StatusCode == 409 && resp.Header.Get("Content-Type") == sizeType:
				if from, err = strconv.ParseInt(strings.TrimSpace(string(body)), 10, 64); err != nil || from < largest {
					t.Fatalf("the witness has %q, and cosigned %d", body, largest)
				}
			case resp.StatusCode != 422 && resp.StatusCode != 409:
				t.Fatalf("%s %s", resp.Status, body)
			}
		}
		if killed == nil {
			t.Fatal("the child ended by itself")
		}
		killed.Stop()
		cmd.Wait() //nolint:errcheck // it was killed
	}
	if taken[0] > 0 && taken[1] > 0 || taken[0]+taken[1] == 0 {
		t.Errorf("%d trees of one history were cosigned, and %d of the other", taken[0], taken[1])
	}
	t.Logf("%d trees, up to %d records", taken[0]+taken[1], largest)
}
