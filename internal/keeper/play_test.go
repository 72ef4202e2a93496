package keeper

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vacate/internal/handoff"
	"vacate/internal/sys"
	"vacate/internal/volatile"
)

// The test binary plays engine and control, which the keeper starts by these
// names, and "keeper", which a test starts to kill it or to have it replaced.
// They obey lines:
//
//	test ── API socket ──> control ── "engine …" ──> engine
//
// Engine and control do what their arguments and the file PLAY say: see told.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case nameEngine:
			playEngine(os.Args[2:])
		case nameControl:
			playControl(os.Args[2:])
		case "keeper":
			playKeeper(os.Args[2])
		}
	}
	os.Exit(m.Run())
}

func die(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Args[1], "child:", err)
		os.Exit(1)
	}
}

// converse answers each line with a line, until the other side closes.
func converse(rw io.ReadWriteCloser, answer func(words []string) string) {
	defer rw.Close()
	for s := bufio.NewScanner(rw); s.Scan(); {
		if _, err := fmt.Fprintln(rw, answer(strings.Fields(s.Text()))); err != nil {
			return
		}
	}
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	die(err)
	return n
}

// told is what a process does before it says that it is up: "exit=N", "hang",
// "file=PATH" (takes a line out of that file, while there is one, and ends, or
// hangs where it says so).
func told(args []string) {
	for _, a := range args {
		verb, value, _ := strings.Cut(a, "=")
		switch verb {
		case "exit":
			os.Exit(number(value))
		case "hang":
			select {}
		case "file":
			b, err := os.ReadFile(value)
			if lines := strings.SplitAfter(string(b), "\n"); err == nil && len(b) > 0 {
				die(os.WriteFile(value, []byte(strings.Join(lines[1:], "")), 0o600))
				if lines[0] == "hang\n" {
					select {}
				}
				os.Exit(1)
			}
		}
	}
}

func playControl(args []string) {
	die(sys.ExitOnEOF(os.NewFile(6, "death")))
	link, err := volatile.NewControlLink(os.NewFile(5, "link"))
	die(err)
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	var grant atomic.Bool
	grant.Store(slices.Contains(args, "grant"))
	var asked atomic.Int32
	go func() {
		for range term {
			asked.Add(1)
			if grant.Load() {
				die(link.Stop())
				os.Exit(0)
			}
		}
	}()
	var mu sync.Mutex
	var engine *os.File
	var replies *bufio.Reader
	go func() {
		for f := range link.Engine() {
			mu.Lock()
			engine, replies = f, bufio.NewReader(f)
			mu.Unlock()
		}
	}()
	l, err := net.FileListener(os.NewFile(3, "api"))
	die(err)
	go func() {
		if slices.Contains(args, "slow") {
			time.Sleep(500 * time.Millisecond)
		}
		told(args)
		die(link.Ready())
	}()
	converseAll(l, func(words []string) string {
		switch words[0] {
		case "pid":
			return strconv.Itoa(os.Getpid())
		case "environ":
			return strings.Join(os.Environ(), " ")
		case "fds":
			return openFiles()
		case "grant":
			grant.Store(true)
		case "asked":
			return strconv.Itoa(int(asked.Load()))
		case "stop":
			die(link.Stop())
		case "upgrade":
			return fmt.Sprint(link.Upgrade())
		case "exit":
			os.Exit(number(words[1]))
		case "panic":
			panic("a bug in control")
		case "engine":
			mu.Lock()
			defer mu.Unlock()
			if engine == nil {
				return "no engine"
			}
			fmt.Fprintln(engine, strings.Join(words[1:], " "))
			line, err := replies.ReadString('\n')
			if err != nil {
				return err.Error()
			}
			return strings.TrimSpace(line)
		}
		return "ok"
	})
}

// playKeeper is a whole keeper in a process of its own, with its API at path. In
// a check it answers what PLAY_ENGINE and PLAY_CONTROL say that the children are
// to be told. With PLAY_REFUSE it cannot go on after an upgrade. The file PLAY_LOG
// grows by a byte with each exec.
func playKeeper(path string) {
	cfg := Config{Self: os.Args[0], Args: os.Args[1:], Place: os.Getenv("PLAY_PLACE"), Log: quiet}
	cfg.EngineArgs = strings.Fields(os.Getenv("PLAY_ENGINE"))
	cfg.ControlArgs = strings.Fields(os.Getenv("PLAY_CONTROL"))
	var err error
	cfg.Handoff, err = handoff.Inherited()
	die(err)
	switch h := cfg.Handoff; {
	case h == nil:
		l, err := net.Listen("unix", path)
		die(err)
		f, err := l.(*net.UnixListener).File()
		die(err)
		cfg.API, cfg.Admin, cfg.Alive = f, another(f), another(f)
	case h.Checking:
		if code := os.Getenv("PLAY_CHECK"); code != "" {
			told([]string{code})
		}
	default:
		f, err := os.OpenFile(os.Getenv("PLAY_LOG"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		die(err)
		_, err = f.WriteString("x")
		die(errors.Join(err, f.Close()))
		if os.Getenv("PLAY_REFUSE") != "" && h.Failed == "" {
			die(h.Return(errors.New("it does not want to")))
		}
		cfg.API, cfg.Admin, cfg.Alive = h.API.File, h.Admin.File, h.Alive.File
	}
	die(Run(context.Background(), cfg))
	os.Exit(0)
}

func another(f *os.File) *os.File {
	fd, err := syscall.Dup(int(f.Fd()))
	die(err)
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), f.Name())
}

var quiet = slog.New(slog.DiscardHandler)
