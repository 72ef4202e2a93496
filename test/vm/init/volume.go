package main

import (
	"bytes"
	"fmt"
	"time"

	"vacate/internal/nbdclient"
	"vacate/test/vm/canary"
	"vacate/test/vm/wire"
)

// A volume is a lease that was opened, and what must be in it.
type volume struct {
	agent  *agent
	canary wire.Canary
	tenant string
	lease  string
	nbd    *nbdclient.Client
	// versions says of each sector which version of its canary was written last;
	// 0: it reads zeros.
	versions []uint32
	version  uint32 // the last that was drawn
}

// leaseView is a lease as the command line prints it.
type leaseView struct {
	ID      string `json:"id"`
	State   string `json:"state"`
	Exports []struct {
		Kind   string `json:"kind"`
		Socket string `json:"socket"`
	} `json:"exports"`
}

// open opens a lease and connects to it. The host is told before and after.
func (a *agent) open(c wire.Canary, tenant, drive string, size int64) (*volume, error) {
	v := &volume{agent: a, canary: c, tenant: tenant, versions: make([]uint32, size/canary.SectorSize)}
	if err := a.event("opening", wire.LeaseEvent{Tag: c.Tag, Tenant: tenant}); err != nil {
		return nil, err
	}
	var l leaseView
	err := a.daemon.json(&l, "lease", "open", "--tenant", tenant, "--drive", drive, "--size", fmt.Sprint(size))
	if err != nil {
		return nil, err
	}
	v.lease = l.ID
	k, err := a.daemon.keys()
	if err != nil {
		return nil, err
	}
	if err := a.event("opened", wire.LeaseEvent{Tag: c.Tag, Tenant: tenant, Lease: l.ID, Keys: &k}); err != nil {
		return nil, err
	}
	for _, e := range l.Exports {
		if e.Kind == "nbd" {
			v.nbd, err = nbdclient.Dial(e.Socket, nbdclient.Options{Timeout: callTimeout})
			return v, err
		}
	}
	return nil, fmt.Errorf("lease %s has no NBD export", l.ID)
}

// close closes the lease. The host is told before and after.
func (v *volume) close() error {
	if err := v.agent.event("closing", wire.LeaseEvent{Tag: v.canary.Tag}); err != nil {
		return err
	}
	v.nbd.Abort() //nolint:errcheck // the lease's end takes it away in any case
	var l []leaseView
	if err := v.agent.daemon.json(&l, "lease", "close", v.lease); err != nil {
		return err
	}
	if len(l) != 1 {
		return fmt.Errorf("closing lease %s: %d leases were shown", v.lease, len(l))
	}
	return v.agent.event("closed", wire.LeaseEvent{Tag: v.canary.Tag, State: l[0].State})
}

// write writes canaries of a new version. The host is told before: from then on
// they may be anywhere.
func (v *volume) write(sector, count int64) error {
	v.version++
	err := v.agent.event("writing", wire.LeaseEvent{Tag: v.canary.Tag, Sector: sector, Count: count, Version: v.version})
	if err != nil {
		return err
	}
	p := make([]byte, count*canary.SectorSize)
	canary.Fill(p, v.canary.Hunt, v.canary.Tag, sector, v.version)
	if _, err := v.nbd.WriteAt(p, sector*canary.SectorSize); err != nil {
		return err
	}
	v.set(sector, count, v.version)
	return nil
}

// clear makes sectors read zeros again, by a discard or by writing zeros.
func (v *volume) clear(sector, count int64, trim bool) error {
	var err error
	if off, n := sector*canary.SectorSize, count*canary.SectorSize; trim {
		err = v.nbd.Trim(off, n, 0)
	} else {
		err = v.nbd.Zero(off, n, 0)
	}
	if err == nil {
		v.set(sector, count, 0)
	}
	return err
}

func (v *volume) set(sector, count int64, version uint32) {
	for i := range count {
		v.versions[sector+i] = version
	}
}

// A wrongError is data that is not what was written.
type wrongError struct{ text string }

func (e *wrongError) Error() string { return e.text }

// verify reads sectors and compares them with what must be there.
func (v *volume) verify(sector, count int64) error {
	p := make([]byte, count*canary.SectorSize)
	if _, err := v.nbd.ReadAt(p, sector*canary.SectorSize); err != nil {
		return err
	}
	want := make([]byte, canary.SectorSize)
	for i := range count {
		got := p[i*canary.SectorSize:][:canary.SectorSize]
		version := v.versions[sector+i]
		if version == 0 {
			clear(want)
		} else {
			canary.Fill(want, v.canary.Hunt, v.canary.Tag, sector+i, version)
		}
		if !bytes.Equal(got, want) {
			return &wrongError{fmt.Sprintf("lease %s (tag %#x): sector %d of version %d reads % x…, want % x…",
				v.lease, v.canary.Tag, sector+i, version, got[:24], want[:24])}
		}
	}
	return nil
}

// all verifies the whole volume.
func (v *volume) all() error {
	const step = 1 << 20 / canary.SectorSize
	for at := int64(0); at < int64(len(v.versions)); at += step {
		if err := v.verify(at, min(step, int64(len(v.versions))-at)); err != nil {
			return err
		}
	}
	return nil
}

// driveView is a drive as the command line prints it.
type driveView struct {
	CapacityBytes int64 `json:"capacityBytes"`
	FreeBytes     int64 `json:"freeBytes"`
}

// check opens a lease over the whole drive, which must be free within a while,
// and looks at every sector of it.
func (a *agent) check(c wire.Check) error {
	var d driveView
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if err := a.daemon.json(&d, "drive", "show", c.Drive); err != nil {
			return err
		}
		if d.FreeBytes == d.CapacityBytes {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("only %d of %d bytes of the drive are free, and no lease is open", d.FreeBytes, d.CapacityBytes)
		}
	}
	v, err := a.open(c.Canary, fmt.Sprintf("check-%x", c.Canary.Tag), c.Drive, d.FreeBytes)
	if err != nil {
		return err
	}
	if err := v.all(); err != nil {
		return err
	}
	sectors := int64(len(v.versions))
	const places, written, around = 64, 9, 64
	at := func(i int64) int64 { return i * (sectors - around) / (places - 1) } // from the start to the end
	for i := range int64(places) {
		if err := v.write(at(i)+around-written, written); err != nil {
			return err
		}
	}
	if err := v.nbd.Flush(); err != nil {
		return err
	}
	for i := range int64(places) {
		if err := v.verify(at(i), around); err != nil {
			return err
		}
	}
	return v.close()
}
