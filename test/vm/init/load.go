package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"vacate/test/vm/wire"
)

// Sizes of the load's leases in bytes, and the longest of its requests in
// sectors of 512.
const (
	minSize    = 1 << 20
	maxSize    = 5 << 20
	maxSectors = 256
	maxLeases  = 3 // of a tenant, at once
)

// load starts the tenants, who go on until the machine ends.
func (a *agent) load(l wire.Load) error {
	for n := range l.Tenants {
		t := &tenant{agent: a, load: l, n: uint64(n), r: rand.New(rand.NewPCG(l.Seed, uint64(n)))}
		go func() {
			err := t.live()
			e := wire.LeaseEvent{Tag: t.tag(), Text: err.Error()}
			if sendErr := a.event("wrong", e); sendErr != nil {
				fmt.Println("init: a tenant ended:", errors.Join(err, sendErr))
			}
		}()
	}
	return nil
}

// A tenant opens, uses and closes leases.
type tenant struct {
	agent *agent
	load  wire.Load
	n     uint64
	r     *rand.Rand
	count uint64 // leases so far
	open  []*volume
}

// tag is that of the tenant's newest lease.
func (t *tenant) tag() uint64 { return t.load.Boot<<24 | t.n<<16 | t.count }

// live returns at the first thing that must not be: a request that failed, or
// data that is not what was written.
func (t *tenant) live() error {
	for {
		if len(t.open) == 0 || len(t.open) < maxLeases && t.r.IntN(6) == 0 {
			if err := t.begin(); err != nil {
				return fmt.Errorf("opening a lease: %w", err)
			}
			continue
		}
		i := t.r.IntN(len(t.open))
		v := t.open[i]
		if t.r.IntN(40) == 0 {
			t.open = slices.Delete(t.open, i, i+1)
			if err := v.close(); err != nil {
				return fmt.Errorf("closing lease %s: %w", v.lease, err)
			}
			continue
		}
		if err := t.step(v); err != nil {
			return fmt.Errorf("lease %s: %w", v.lease, err)
		}
		time.Sleep(time.Duration(t.r.IntN(4)) * time.Millisecond)
	}
}

// begin opens a lease, which must read zeros.
func (t *tenant) begin() error {
	t.count++
	size := (minSize + t.r.Int64N(maxSize-minSize)) &^ 4095
	c := wire.Canary{Hunt: t.load.Hunt, Tag: t.tag()}
	v, err := t.agent.open(c, fmt.Sprintf("tenant-%x", c.Tag), t.load.Drive, size)
	if err != nil {
		return err
	}
	t.open = append(t.open, v)
	return v.all()
}

// step does one request on a volume.
func (t *tenant) step(v *volume) error {
	sectors := int64(len(v.versions))
	count := 1 + t.r.Int64N(maxSectors)
	at := t.r.Int64N(sectors - count)
	if t.r.IntN(2) == 0 { // whole blocks, as file systems write
		at, count = at&^7, (count+7)&^7
		count = min(count, sectors-at)
	}
	switch k := t.r.IntN(48); {
	case k < 27:
		return v.write(at, count)
	case k < 41:
		return v.verify(at, count)
	case k < 47:
		return v.clear(at, count, k%2 == 0)
	default:
		return v.nbd.Flush()
	}
}
