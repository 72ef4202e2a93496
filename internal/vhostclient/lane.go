package vhostclient

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"syscall"
	"time"

	"vacate/internal/nbdclient"
)

// A lane is one queue of a [Verify].
type lane struct {
	r     *verifier
	id    int
	q     *Queue
	rng   *rand.Rand
	tasks []*nbdclient.Task // by tag
	reqs  []*Request
	idle  []int // tags that nothing is under way of
	drawn []int // tags whose request the ring has no room for

	waiting time.Time // since when an answer is due; zero if none is
	due     time.Time // of the next request, where there is a pause
}

func newLane(r *verifier, id int, q *Queue) *lane {
	return &lane{r: r, id: id, q: q, rng: rand.New(rand.NewPCG(r.Seed, uint64(id)<<8|1))}
}

func (l *lane) add(t *nbdclient.Task) {
	l.idle = append(l.idle, len(l.tasks))
	l.reqs = append(l.reqs, &Request{Tag: len(l.tasks), Data: make([][]byte, 0, MaxParts)})
	l.tasks = append(l.tasks, t)
}

// run asks until nothing more is to be asked and all is answered.
func (l *lane) run() error {
	l.q.Mute()
	more := true
	for more || l.q.InFlight > 0 || len(l.drawn) > 0 {
		if l.r.failed() { // whoever did says why
			return nil
		}
		if more {
			more = l.draw()
		}
		if err := l.submit(); err != nil {
			return err
		}
		if err := l.collect(more); err != nil {
			return err
		}
	}
	return nil
}

// draw makes requests of what is idle, one only where there is a pause.
func (l *lane) draw() bool {
	for len(l.idle) > 0 && len(l.drawn) == 0 {
		if l.r.Pause > 0 && !l.r.calm.Load() {
			now := time.Now()
			if now.Before(l.due) {
				return true
			}
			l.due = now.Add(l.r.Pause)
		}
		tag := l.idle[len(l.idle)-1]
		if !l.r.book.Draw(l.id, l.tasks[tag]) {
			return false
		}
		l.idle = l.idle[:len(l.idle)-1]
		if l.r.NoTrim && l.tasks[tag].Kind == nbdclient.Trim {
			l.tasks[tag].Kind = nbdclient.WriteZeroes // as good to the model
		}
		l.shape(tag)
		l.drawn = append(l.drawn, tag)
		l.place()
	}
	return true
}

// place puts what was drawn into the ring, as far as there is room.
func (l *lane) place() {
	for len(l.drawn) > 0 && l.q.Add(l.reqs[l.drawn[0]]) {
		l.drawn = l.drawn[1:]
	}
}

func (l *lane) submit() error {
	l.place()
	if l.q.InFlight > 0 && l.waiting.IsZero() {
		l.waiting = time.Now()
	}
	return l.q.Publish()
}

// shape makes the request of a task, in pieces that a guest might choose.
func (l *lane) shape(tag int) {
	t, q := l.tasks[tag], l.reqs[tag]
	q.Sector, q.Sectors, q.Flags, q.Data = uint64(t.Off)/sectorSize, 0, 0, q.Data[:0]
	switch t.Kind {
	case nbdclient.Read:
		q.Type = TypeIn
		for i := 0; i < len(t.Buf); i += sectorSize { // what is not read must be wrong
			copy(t.Buf[i:], "not read")
		}
	case nbdclient.Write:
		q.Type = TypeOut
	case nbdclient.Flush:
		q.Type, q.Sector = TypeFlush, 0
		return
	case nbdclient.Trim:
		q.Type, q.Sectors = TypeDiscard, uint32(t.Len/sectorSize)
		return
	case nbdclient.WriteZeroes:
		q.Type, q.Sectors = TypeWriteZeroes, uint32(t.Len/sectorSize)
		if l.rng.IntN(2) == 0 {
			q.Flags = Unmap
		}
		return
	}
	l.cut(q, t.Buf)
}

// cut gives q the data b: whole, page by page, or anyhow.
func (l *lane) cut(q *Request, b []byte) {
	most := MaxParts
	if !l.q.indirect {
		most = min(most, l.q.Size/4)
	}
	kind := l.rng.IntN(4)
	for len(b) > 0 {
		n := len(b)
		if len(q.Data) < most-1 {
			switch kind {
			case 0, 1:
			case 2:
				n = min(n, pageSize)
			case 3:
				n = min(n, 1+l.rng.IntN(2*sectorSize+len(b)/8))
			}
		}
		q.Data = append(q.Data, b[:n:n])
		b = b[n:]
	}
}

// collect takes what the device has used, and waits for it where nothing else is to
// be done.
func (l *lane) collect(more bool) error {
	for taken := 0; ; taken++ {
		q, err := l.q.Take()
		if err != nil {
			l.r.book.Nonsense(err)
			return err
		}
		if q == nil {
			if taken > 0 {
				return nil
			}
			break
		}
		l.answered(q)
	}
	idle := more && len(l.idle) > 0 && len(l.drawn) == 0
	wait := 20 * time.Millisecond
	if idle && l.r.Pause > 0 {
		wait = min(wait, max(time.Until(l.due), time.Microsecond))
	}
	if !l.waiting.IsZero() && time.Since(l.waiting) > l.r.Patience {
		return fmt.Errorf("%d requests have had no answer for %v", l.q.InFlight, l.r.Patience)
	}
	if l.r.Poll || l.r.c.o.NoCall {
		l.q.Mute()
		runtime.Gosched()
		return nil
	}
	if l.q.Arm() {
		return nil
	}
	_, err := l.q.Wait(wait)
	l.q.Mute()
	return err
}

// answered judges what was taken.
func (l *lane) answered(q *Request) {
	now := time.Now()
	if l.r.Gap > 0 && now.Sub(l.waiting) > l.r.Gap {
		l.r.book.Stalled(l.id, l.waiting, false)
	}
	l.waiting = time.Time{}
	if l.q.InFlight > 0 {
		l.waiting = now
	}
	err := q.failure()
	if err == nil && q.Type == TypeIn && int64(q.Written) != q.length()+1 {
		err = &Error{Command: "read", Off: int64(q.Sector) * sectorSize, Len: q.length(), Status: q.Status, Errno: syscall.EPROTO}
	}
	l.r.book.Answered(l.id, l.tasks[q.Tag], err)
	l.idle = append(l.idle, q.Tag)
}
