package keeper

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vacate/internal/sys"
	"vacate/internal/volatile"
)

// The test binary plays engine and control, which the keeper starts by these
// names, and "keeper", which a test starts to kill it. They obey lines:
//
//	test ── API socket ──> control ── "engine …" ──> engine
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

func exitIfTold(args []string) {
	if len(args) == 2 && args[0] == "exit" {
		os.Exit(number(args[1]))
	}
}

type fakeEngine struct {
	raw   *sys.PacketConn
	link  *volatile.Link
	keys  *volatile.Keys
	table *volatile.Table

	zombie chan struct{} // closed to end the first thread
}

var fakeLease = volatile.LeaseID([]byte("abcdefghijklmn27"))

// An engine's main goroutine keeps to the process' first thread, so that it can
// end that.
func init() {
	if len(os.Args) > 1 && os.Args[1] == nameEngine {
		runtime.LockOSThread()
	}
}

func playEngine(args []string) {
	exitIfTold(args)
	runtime.GOMAXPROCS(runtime.NumCPU() + 14) // as the engine does
	die(sys.ExitOnEOF(os.NewFile(4, "death")))
	die(sys.Harden())
	var e fakeEngine
	var errs [4]error
	link := os.NewFile(3, "link")
	e.raw, errs[0] = sys.NewPacketConn(link)
	e.link, errs[1] = volatile.NewLink(link)
	e.keys, errs[2] = volatile.OpenKeys(os.NewFile(5, "keys"))
	e.table, errs[3] = volatile.OpenTable(os.NewFile(6, "table"))
	die(errors.Join(errs[:]...))
	e.zombie = make(chan struct{})
	go func() {
		for c := range e.link.Control() {
			go converse(c, e.answer)
		}
		os.Exit(1)
	}()
	<-e.zombie
	// The first thread is a zombie, and the others hold the process.
	syscall.RawSyscall(syscall.SYS_EXIT, 0, 0, 0)
}

func (e *fakeEngine) answer(words []string) string {
	slot := 0
	if len(words) > 1 {
		slot = number(words[1])
	}
	var err error
	switch words[0] {
	case "pid":
		return strconv.Itoa(os.Getpid())
	case "environ":
		return strings.Join(os.Environ(), " ")
	case "map":
		var f *os.File
		if f, err = e.link.Map(slot, 1<<28, 1, fakeLease); err == nil {
			var m *volatile.Map
			if m, err = volatile.OpenMap(f); err == nil {
				m.Summary()[0].Store(1)
				err = m.Close()
			}
		}
	case "unmap":
		err = e.link.Unmap(slot)
	case "fill":
		copy(e.keys.Slot(slot), bytes.Repeat([]byte("secret! "), volatile.KeySlotSize/8))
		err = e.table.Put(slot, volatile.Record{
			Lease: fakeLease, State: volatile.StateOpen, LogicalBlock: 512, SizeBytes: 1 << 40,
			MapBytes: uint64(volatile.MapBytes(1<<28, 1)), Generation: 1,
		})
	case "wipe":
		before := sys.BoottimeNs()
		var w volatile.Wiped
		w, err = e.link.Wipe(slot)
		if err == nil && (w.StartedNs < before || w.DoneNs < w.StartedNs || sys.BoottimeNs() < w.DoneNs || !w.ReadBack) {
			err = fmt.Errorf("what was observed cannot be: %+v", w)
		}
	case "slot": // a slot that does not exist, past what Link checks
		err = e.sendRaw(volatile.Message{Kind: volatile.KindWipe, Slot: uint32(slot), ID: 1 << 60})
	case "control":
		err = e.sendRaw(volatile.Message{Kind: volatile.KindControl})
	case "garbage":
		err = e.raw.Send(make([]byte, slot), nil)
	case "bench":
		return e.bench(slot, number(words[2]))
	case "exit":
		os.Exit(slot)
	case "panic":
		panic("a bug in the engine")
	case "zombie":
		close(e.zombie)
	default:
		err = errors.New("what?")
	}
	return fmt.Sprint(err)
}

func (e *fakeEngine) sendRaw(m volatile.Message) error {
	var b [volatile.MessageSize]byte
	m.Encode(&b)
	return e.raw.Send(b[:], nil)
}

// bench wipes n times while burners goroutines compute, and answers with the
// 50th, 99th and 99.9th percentile of the time to destruction and of the round
// trip, in nanoseconds.
func (e *fakeEngine) bench(n, burners int) string {
	var stop atomic.Bool
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop.Store(true)
	null, err := syscall.Open("/dev/null", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	die(err)
	for range burners {
		wg.Go(func() {
			b := make([]byte, 64<<10)
			for x := byte(0); !stop.Load(); x++ {
				for i := range b { // about as long as a large cipher call
					b[i] ^= x
				}
				syscall.Read(null, b[:1]) // as a queue waits between calls
			}
		})
	}
	var destroyed, trip []int64
	for range n {
		time.Sleep(200 * time.Microsecond)
		copy(e.keys.Slot(9), "secret")
		start := sys.BoottimeNs()
		w, err := e.link.Wipe(9)
		trip = append(trip, sys.BoottimeNs()-start)
		destroyed = append(destroyed, w.DoneNs-start)
		if err != nil {
			return err.Error()
		}
	}
	slices.Sort(destroyed)
	slices.Sort(trip)
	var out []string
	for _, s := range [][]int64{destroyed, trip} {
		for _, p := range []float64{0.5, 0.99, 0.999} {
			out = append(out, strconv.FormatInt(s[int(p*float64(len(s)-1))], 10))
		}
	}
	return strings.Join(out, " ")
}

func playControl(args []string) {
	exitIfTold(args)
	die(sys.ExitOnEOF(os.NewFile(6, "death")))
	var grant atomic.Bool
	grant.Store(slices.Contains(args, "grant"))
	if slices.Contains(args, "deaf") {
		time.Sleep(settle / 2)
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	var asked atomic.Int32
	go func() {
		for range term {
			asked.Add(1)
			if grant.Load() {
				os.Exit(0)
			}
		}
	}()
	engine := os.NewFile(5, "engine")
	replies := bufio.NewReader(engine)
	var mu sync.Mutex
	l, err := net.FileListener(os.NewFile(3, "api"))
	die(err)
	for {
		c, err := l.Accept()
		die(err)
		go converse(c, func(words []string) string {
			switch words[0] {
			case "pid":
				return strconv.Itoa(os.Getpid())
			case "grant":
				grant.Store(true)
			case "asked":
				return strconv.Itoa(int(asked.Load()))
			case "exit":
				os.Exit(number(words[1]))
			case "panic":
				panic("a bug in control")
			case "engine":
				mu.Lock()
				defer mu.Unlock()
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
}

// playKeeper is a whole keeper in a process of its own, with its API at path.
func playKeeper(path string) {
	l, err := net.Listen("unix", path)
	die(err)
	f, err := l.(*net.UnixListener).File()
	die(err)
	die(Run(context.Background(), Config{Self: os.Args[:1], API: f, Admin: f, Log: quiet}))
	os.Exit(0)
}

var quiet = slog.New(slog.DiscardHandler)
