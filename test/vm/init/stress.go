package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"time"

	"vacate/test/vm/canary"
	"vacate/test/vm/wire"
)

// maxPiece is the most sectors of a request of the stress: some need several
// segments of the guest's memory.
const maxPiece = 200

// A stress is one that goes on.
type stress struct {
	stop    chan struct{} // closed to end it
	workers []*stresser
	done    sync.WaitGroup
}

// A stresser is a worker of a stress. Its fields belong to its goroutine until
// that has ended.
type stresser struct {
	wire.Stress
	n       int
	f       *os.File
	buf     []byte // as direct I/O wants it
	want    []byte
	r       *rand.Rand
	version []uint32 // of each sector of its part
	round   uint32
	longest time.Duration
	reads   int64
	writes  int64
	err     error
}

func newStresser(s wire.Stress, n int) (*stresser, error) {
	f, err := os.OpenFile(s.Device, os.O_RDWR|syscall.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	buf, err := syscall.Mmap(-1, 0, maxPiece*canary.SectorSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &stresser{
		Stress: s, n: n, f: f, buf: buf, want: make([]byte, len(buf)),
		r: rand.New(rand.NewPCG(s.Hunt, uint64(n))), version: make([]uint32, s.Sectors),
	}, nil
}

func (s *stresser) close() error { return errors.Join(syscall.Munmap(s.buf), s.f.Close()) }

// first is the number of the first sector of its part.
func (s *stresser) first() int64 { return s.First + int64(s.n)*s.Sectors }

// startStress starts the workers.
func (a *agent) startStress(w wire.Stress) error {
	if a.stress != nil {
		return errors.New("a stress goes on already")
	}
	st := &stress{stop: make(chan struct{})}
	for n := range w.Workers {
		s, err := newStresser(w, n)
		if err != nil {
			return err
		}
		st.workers = append(st.workers, s)
	}
	for _, s := range st.workers {
		st.done.Go(func() {
			if s.err = s.live(a, st.stop); s.err == nil {
				return
			}
			e := wire.LeaseEvent{Tag: uint64(s.n), Text: s.err.Error()}
			if err := a.event("wrong", e); err != nil {
				fmt.Println("init: a worker ended:", errors.Join(s.err, err))
			}
		})
	}
	a.stress = st
	return nil
}

// stopStress ends the workers and returns the first thing that was wrong.
func (a *agent) stopStress() (sum wire.Stressed, err error) {
	st := a.stress
	if st == nil {
		return sum, errors.New("no stress goes on")
	}
	a.stress = nil
	close(st.stop)
	st.done.Wait()
	for _, s := range st.workers {
		sum.Reads += s.reads
		sum.Writes += s.writes
		sum.Rounds = append(sum.Rounds, s.round)
		sum.Longest = max(sum.Longest, s.longest)
		err = errors.Join(err, s.err, s.close())
	}
	return sum, err
}

// live does round after round.
func (s *stresser) live(a *agent, stop <-chan struct{}) error {
	for {
		s.round++
		if err := a.event("round", wire.Round{Worker: s.n, Round: s.round}); err != nil {
			return err
		}
		for _, p := range s.pieces() {
			select {
			case <-stop:
				return nil
			default:
			}
			if err := s.write(p); err != nil {
				return err
			}
			at := s.r.Int64N(s.Sectors)
			if err := s.verify(at, min(1+s.r.Int64N(maxPiece), s.Sectors-at)); err != nil {
				return err
			}
		}
	}
}

// pieces tiles the worker's part, and shuffles the tiles.
func (s *stresser) pieces() (all [][2]int64) {
	for at := int64(0); at < s.Sectors; {
		n := min(1+s.r.Int64N(maxPiece), s.Sectors-at)
		if s.r.IntN(2) == 0 { // whole blocks, as file systems write
			n = min((n+7)&^7, maxPiece, s.Sectors-at)
		}
		all = append(all, [2]int64{at, n})
		at += n
	}
	s.r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

func (s *stresser) write(piece [2]int64) error {
	at, n := piece[0], piece[1]
	p := s.buf[:n*canary.SectorSize]
	canary.Fill(p, s.Hunt, uint64(s.n), at, s.round)
	start := time.Now()
	if _, err := s.f.WriteAt(p, (s.first()+at)*canary.SectorSize); err != nil {
		return err
	}
	s.longest = max(s.longest, time.Since(start))
	s.writes++
	for i := range n {
		s.version[at+i] = s.round
	}
	return nil
}

// verify reads sectors and compares them with what was written last. What the
// worker has not written yet is not looked at.
func (s *stresser) verify(at, n int64) error {
	p := s.buf[:n*canary.SectorSize]
	start := time.Now()
	if _, err := s.f.ReadAt(p, (s.first()+at)*canary.SectorSize); err != nil {
		return err
	}
	s.longest = max(s.longest, time.Since(start))
	s.reads++
	for i := range n {
		if s.version[at+i] == 0 {
			continue
		}
		if got := p[i*canary.SectorSize:][:canary.SectorSize]; !s.is(got, at+i, s.version[at+i]) {
			return fmt.Errorf("sector %d of worker %d, in round %d, is not of version %d: it reads % x…",
				at+i, s.n, s.round, s.version[at+i], got[:24])
		}
	}
	return nil
}

// is reports whether a sector is of a version.
func (s *stresser) is(got []byte, sector int64, version uint32) bool {
	want := s.want[:canary.SectorSize]
	if version == 0 {
		clear(want)
	} else {
		canary.Fill(want, s.Hunt, uint64(s.n), sector, version)
	}
	return bytes.Equal(got, want)
}

// checkStress looks at every sector after a stress was cut off.
func checkStress(w wire.Stress) error {
	for n := range w.Workers {
		s, err := newStresser(w, n)
		if err != nil {
			return err
		}
		if err := errors.Join(s.check(w.Rounds[n]), s.close()); err != nil {
			return err
		}
	}
	return nil
}

func (s *stresser) check(round uint32) error {
	for at := int64(0); at < s.Sectors; at += maxPiece {
		n := min(maxPiece, s.Sectors-at)
		p := s.buf[:n*canary.SectorSize]
		if _, err := s.f.ReadAt(p, (s.first()+at)*canary.SectorSize); err != nil {
			return err
		}
		for i := range n {
			got := p[i*canary.SectorSize:][:canary.SectorSize]
			if s.is(got, at+i, round) || s.is(got, at+i, round+1) || round > 0 && s.is(got, at+i, round-1) {
				continue
			}
			return fmt.Errorf("sector %d of worker %d is of no version near %d: it reads % x…", at+i, s.n, round, got[:24])
		}
	}
	return nil
}
