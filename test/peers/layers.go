package main

import (
	"errors"
	"math/rand/v2"
	"path/filepath"
	"time"

	"vacate/internal/blk"
	"vacate/internal/mem"
)

const layerDepth = 32

// layersOf measures one 4 KiB request through more and more of the layers, in this
// process and without any export: the difference of two lines is a layer.
func layersOf(op blk.Op) func(w *world) ([]contestant, error) {
	return func(w *world) ([]contestant, error) {
		s, err := w.layerStack()
		if err != nil {
			return nil, err
		}
		var all []contestant
		for _, l := range []struct {
			name   string
			device blk.Device
		}{
			{"drive", s.span}, {"drive, cipher", s.cipher}, {"drive, cipher, map", s.blocks},
			{"drive, cipher, map, volume", s.volume(s.blocks)}, {"drive, cipher, volume", s.volume(s.cipher)},
		} {
			all = append(all, contestant{name: l.name, measure: func(round int) (got sample, err error) {
				span := w.o.span / 4
				err = w.cores.onThread(&w.cores.client, func() (err error) {
					got.Rate, err = drivenBy(l.device, op, s.size, span, uint64(round+1))
					return err
				})
				return got, err
			}})
		}
		return all, nil
	}
}

// layerStack is the stack of these rows, all of it written.
func (w *world) layerStack() (*stack, error) {
	if w.layers != nil {
		return w.layers, nil
	}
	s, err := newStack(filepath.Join(w.shm, "layers"), w.o.size)
	if err != nil {
		return nil, err
	}
	q, err := s.blocks.NewQueue(1)
	if err != nil {
		return nil, err
	}
	region, err := mem.Map(blk.MaxTransfer, mem.TryLock)
	if err != nil {
		return nil, errors.Join(err, q.Close())
	}
	for off := int64(0); off < w.o.size && err == nil; off += blk.MaxTransfer {
		err = blk.Do(q, &blk.Request{Op: blk.OpWrite, Off: off, Len: blk.MaxTransfer, Buf: region.Bytes()})
	}
	w.layers = s
	return s, errors.Join(err, q.Close(), region.Close())
}

// A counter is told of completions.
type counter struct {
	left   int
	failed error
}

// Complete implements [blk.Completer].
func (c *counter) Complete(r *blk.Request) {
	c.left--
	if err := r.Err(); err != nil {
		c.failed = err
	}
}

// drivenBy returns the nanoseconds that a random request of one block takes, in
// batches as deep as an export's.
func drivenBy(d blk.Device, op blk.Op, size int64, span time.Duration, seed uint64) (ns float64, err error) {
	region, err := mem.Map(layerDepth*blk.BlockSize, mem.TryLock)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, region.Close()) }()
	q, err := d.NewQueue(layerDepth)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, q.Close()) }()
	if r, ok := q.(blk.Registrar); ok {
		r.Register(region.Bytes())
	}
	var done counter
	rng := rand.New(rand.NewPCG(seed, 1))
	requests := make([]blk.Request, layerDepth)
	batch := make([]*blk.Request, layerDepth)
	for i := range batch {
		batch[i] = &requests[i]
	}
	n := 0
	start := time.Now()
	for time.Since(start) < span {
		for i := range requests {
			requests[i] = blk.Request{
				Op: op, Off: rng.Int64N(size/blk.BlockSize) * blk.BlockSize, Len: blk.BlockSize,
				Buf: region.Bytes()[i*blk.BlockSize:][:blk.BlockSize:blk.BlockSize], Done: &done,
			}
		}
		done.left = layerDepth
		for q.Submit(batch); done.left > 0; {
			q.Reap(true)
		}
		n += layerDepth
	}
	return float64(time.Since(start)) / float64(n), done.failed
}
