package keeper

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"vacate/internal/sys"
	"vacate/internal/volatile"
)

type fakeEngine struct {
	link  *volatile.Link
	keys  *volatile.Keys
	table *volatile.Table

	mu    sync.Mutex
	maps  map[int]*os.File // that were fetched
	socks map[int]*os.File // likewise
	conns map[int]*os.File // likewise, the first of each slot
	terms map[int]uint64

	zombie chan struct{} // closed to end the first thread
	wipes  atomic.Int64  // that hammer did
	bad    atomic.Pointer[error]
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
	runtime.GOMAXPROCS(runtime.NumCPU() + 14) // as the engine does
	die(sys.ExitOnEOF(os.NewFile(4, "death")))
	die(sys.Harden())
	e := fakeEngine{
		maps: map[int]*os.File{}, socks: map[int]*os.File{}, conns: map[int]*os.File{}, terms: map[int]uint64{},
		zombie: make(chan struct{}),
	}
	var errs [3]error
	e.link, errs[0] = volatile.NewLink(os.NewFile(3, "link"))
	e.keys, errs[1] = volatile.OpenKeys(os.NewFile(5, "keys"))
	e.table, errs[2] = volatile.OpenTable(os.NewFile(6, "table"))
	die(errors.Join(errs[:]...))
	e.takeOver()
	told(args)
	die(e.link.Up())
	if slices.Contains(args, "hammer") {
		go e.hammer()
	}
	go func() {
		<-e.link.Leave()
		if !slices.Contains(args, "stay") {
			e.leave()
			os.Exit(0)
		}
	}()
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

// takeOver fetches all that a few slots may have.
func (e *fakeEngine) takeOver() {
	for _, i := range []int{0, 1, 2, 3, 700, 1023} {
		f, err := e.link.FetchMap(i)
		if errors.Is(err, syscall.ENOENT) {
			continue
		}
		die(err)
		e.maps[i] = f
		e.socks[i], err = e.link.FetchListener(i)
		die(err)
		e.conns[i], e.terms[i], err = e.link.FetchConn(i, 0)
		die(err)
	}
}

// leave passes on what takeOver has found.
func (e *fakeEngine) leave() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, c := range e.conns {
		if c != nil {
			die(e.link.Pass(i, c, e.terms[i]))
		}
	}
}

// hammer keeps a message under way at any time.
func (e *fakeEngine) hammer() {
	for {
		if _, err := e.link.Wipe(9); err != nil {
			e.bad.Store(&err)
			return
		}
		e.wipes.Add(1)
	}
}

func (e *fakeEngine) answer(words []string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
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
	case "fds":
		return openFiles()
	case "export": // a lease that a machine reaches
		err = e.table.Put(slot, volatile.Record{
			Lease: fakeLease, State: volatile.StateOpen, LogicalBlock: 512, SizeBytes: 1 << 40, MapBytes: uint64(volatile.MapBytes(1<<28, 1)),
			Generation: 1, Exports: volatile.Exports{VhostUser: true, Queues: 1},
		})
	case "map":
		var f *os.File
		if f, err = e.link.Map(slot, 1<<28, 1, fakeLease); err == nil {
			err = touch(f, 1)
		}
	case "bits": // of the map that was fetched
		return bits(e.maps[slot])
	case "unmap":
		err = e.link.Unmap(slot)
	case "hold": // a socket that listens at a path
		var l *net.UnixListener
		if l, err = net.ListenUnix("unix", &net.UnixAddr{Name: words[2], Net: "unix"}); err == nil {
			l.SetUnlinkOnClose(false)
			var f *os.File
			f, err = l.File()
			err = errors.Join(err, e.link.Hold(slot, f))
		}
	case "accept": // on the socket that was fetched
		var l net.Listener
		if l, err = net.FileListener(e.socks[slot]); err == nil {
			go converseAll(l, e.answer)
		}
	case "pass": // a connection to a path
		var f *os.File
		if f, err = dial(words[3]); err == nil {
			err = errors.Join(e.link.Pass(slot, f, uint64(number(words[2]))), f.Close())
		}
	case "keep": // a connection to a path, in a place
		var f *os.File
		if f, err = dial(words[3]); err == nil {
			err = errors.Join(e.link.Keep(slot, number(words[2]), f), f.Close())
		}
	case "yield":
		err = e.link.Keep(slot, number(words[2]), nil)
	case "place": // say something on the connection in a place
		var f *os.File
		if f, err = e.link.FetchPlace(slot, number(words[2])); err == nil && f == nil {
			return "none"
		}
		if err == nil {
			_, err = f.WriteString(words[3] + "\n")
			err = errors.Join(err, f.Close())
		}
	case "conn": // say something on the connection that was fetched
		if e.conns[slot] == nil {
			return "none"
		}
		_, err = e.conns[slot].WriteString(words[2] + "\n")
		return fmt.Sprint(e.terms[slot], " ", err)
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
	case "hammered":
		if bad := e.bad.Load(); bad != nil {
			err = *bad
		}
		return fmt.Sprint(e.wipes.Load(), " ", err)
	case "overlap":
		return e.overlap()
	case "raw": // what no Link sends
		_, err = syscall.Write(rawLink, bytes.Repeat([]byte{byte(number(words[2]))}, slot))
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

// rawLink is the engine's link, past what Link would send.
var rawLink = func() int {
	if len(os.Args) > 1 && os.Args[1] == nameEngine {
		fd, err := syscall.Dup(3)
		die(err)
		return fd
	}
	return -1
}()

// converseAll answers whoever connects.
func converseAll(l net.Listener, answer func(words []string) string) {
	for {
		c, err := l.Accept()
		die(err)
		go converse(c, answer)
	}
}

func dial(path string) (*os.File, error) {
	c, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.(*net.UnixConn).File()
}

// touch sets the first bits of a map's summary.
func touch(f *os.File, v uint64) error {
	m, err := volatile.OpenMap(f)
	if err != nil {
		return err
	}
	m.Summary()[0].Store(v)
	return m.Close()
}

func bits(f *os.File) string {
	if f == nil {
		return "none"
	}
	m, err := volatile.OpenMap(f)
	if err != nil {
		return err.Error()
	}
	defer m.Close()
	return strconv.FormatUint(m.Summary()[0].Load(), 10)
}

// openFiles counts what this process has open.
func openFiles() string {
	l, err := os.ReadDir("/proc/self/fd")
	die(err)
	return strconv.Itoa(len(l) - 1)
}

// overlap measures the time to a key's destruction while the map of another
// lease, 4 TiB that were written whole, is given back.
func (e *fakeEngine) overlap() string {
	f, err := e.link.Map(0, 4<<40/4096, 1, fakeLease)
	die(err)
	m, err := volatile.OpenMap(f)
	die(err)
	words := m.Words()
	for i := 0; i < len(words); i += 512 {
		words[i].Store(1)
	}
	die(m.Close())
	sent := make(chan error, 1)
	go func() { sent <- e.link.Unmap(0) }()
	// The requests are answered in their order, whichever was sent first.
	time.Sleep(100 * time.Microsecond)
	asked := sys.BoottimeNs()
	w, err := e.link.Wipe(1)
	die(errors.Join(err, <-sent))
	return strconv.FormatInt(w.DoneNs-asked, 10)
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
