package engine

import (
	"sync"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/keyshare"
	"vacate/internal/mem"
	"vacate/internal/secret"
	"vacate/internal/sys"
	"vacate/internal/volatile"
)

// Recipient keys: what tenants seal their shares to, one for each lease that is
// prepared and not open yet.
//
//	P1: the private key lies in locked memory of this process, and nowhere else.
//	P2: it is overwritten with the first attempt to open a share with it, whatever
//	    comes of that; when the lease is prepared again; after ten minutes; or when
//	    this engine leaves for the next.
//	P3: no other process has it. An engine that takes over has none, and the tenant
//	    prepares anew.

const (
	maxPrepared = 64
	preparedFor = 10 * time.Minute

	preparedSize  = 128 // bytes of a place: the private key, then the share that it opened
	preparedShare = 64  // where that lies
)

// prepared are the recipient keys. The zero prepared is ready.
type prepared struct {
	mu      sync.Mutex
	region  *mem.Region // nil before the first
	used    [maxPrepared]bool
	byLease map[string]reserved
}

// A reserved is one lease's, until its key is used or too old.
type reserved struct {
	at      int
	expires int64 // CLOCK_BOOTTIME
}

// guarded says why this engine does not handle tenants' shares, and nil if it does.
func (e *Engine) guarded() error {
	if secret.Enabled() || e.cfg.unguarded {
		return nil
	}
	return &ipc.RemoteError{Code: ipc.CodeRefused, Text: "tenants' shares of keys are refused: " + secret.Why()}
}

// prepareLease makes a recipient key for a lease that is to be opened.
func (e *Engine) prepareLease(id string) (*ipc.LeasePrepared, error) {
	if err := e.guarded(); err != nil {
		return nil, err
	}
	if _, err := volatile.ParseLeaseID(id); err != nil {
		return nil, invalid("%v", err)
	}
	e.mu.Lock()
	_, held := e.leases[id]
	_, gone := e.ended.byID[id]
	e.mu.Unlock()
	if held || gone {
		return nil, busy("lease %s is open already, or was: prepare a new one", id)
	}
	defer secret.Forget()
	return e.prepared.make(id, e.cfg.seed)
}

// make makes a key, in place of one that the lease has.
func (p *prepared) make(lease string, fill func(*keyshare.Seed)) (*ipc.LeasePrepared, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expire()
	if l, ok := p.byLease[lease]; ok {
		p.drop(lease, l)
	}
	at, err := p.free()
	if err != nil {
		return nil, err
	}
	seed, _ := p.memory(at)
	if fill == nil {
		fill = (*keyshare.Seed).Fill
	}
	fill(seed)
	public, err := seed.Public()
	if err != nil {
		mem.Wipe(seed[:])
		return nil, err
	}
	l := reserved{at: at, expires: sys.BoottimeNs() + preparedFor.Nanoseconds()}
	p.used[at], p.byLease[lease] = true, l
	// It has no end to wait for: what it finds is in this process' memory.
	time.AfterFunc(preparedFor+time.Second, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.expire()
	})
	return &ipc.LeasePrepared{Recipient: public, ExpiresNs: l.expires}, nil
}

// free returns a place that is free. REQUIRES: p.mu is held.
func (p *prepared) free() (int, error) {
	if p.region == nil {
		r, err := mem.Map(maxPrepared*preparedSize, mem.MustLock)
		if err != nil {
			return 0, err
		}
		p.region, p.byLease = r, map[string]reserved{}
	}
	for at, used := range p.used {
		if !used {
			return at, nil
		}
	}
	return 0, busy("%d leases are prepared and not open: open some, or wait until they expire (ten minutes)", maxPrepared)
}

// memory is that of a place.
func (p *prepared) memory(at int) (*keyshare.Seed, *[keyshare.ShareSize]byte) {
	b := p.region.Bytes()[at*preparedSize:][:preparedSize]
	return (*keyshare.Seed)(b), (*[keyshare.ShareSize]byte)(b[preparedShare:])
}

// expire destroys keys that are too old. REQUIRES: p.mu is held.
func (p *prepared) expire() {
	now := sys.BoottimeNs()
	for lease, l := range p.byLease {
		if l.expires <= now {
			p.drop(lease, l)
		}
	}
}

// drop destroys a key and forgets it. REQUIRES: p.mu is held.
func (p *prepared) drop(lease string, l reserved) {
	mem.Wipe(p.region.Bytes()[l.at*preparedSize:][:preparedSize])
	p.used[l.at] = false
	delete(p.byLease, lease)
}

// clear destroys all keys.
func (p *prepared) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for lease, l := range p.byLease {
		p.drop(lease, l)
	}
}

// use opens a share and hands it to fn. When it returns, the recipient key and the
// share are destroyed. It holds up who prepares meanwhile: for processor time.
func (p *prepared) use(lease string, share *ipc.Share, fn func(tenant *[keyshare.ShareSize]byte) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expire()
	l, ok := p.byLease[lease]
	if !ok || share.Prepared != lease {
		return notFound("lease %s was not prepared by this engine, or more than ten minutes ago, or its share was used: prepare a new one", lease)
	}
	defer p.drop(lease, l)
	seed, tenant := p.memory(l.at)
	if err := seed.OpenShare(tenant, lease, share.Sealed); err != nil {
		return invalid("the tenant's share of lease %s: %v; prepare a new lease", lease, err)
	}
	return fn(tenant)
}
