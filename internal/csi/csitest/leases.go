package csitest

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/api/vacate/v1/vacatev1connect"
)

// leases are a daemon's, with devices of the kernel's.
type leases struct {
	vacatev1connect.LeaseServiceClient
	k *Kernel
}

// refused is an error as the daemon answers with.
func refused(object, text string) error {
	err := connect.NewError(connect.CodeFailedPrecondition, errors.New(text))
	d, derr := connect.NewErrorDetail(&vacatev1.Problem{Kind: "refused", Object: object, Next: "unmount it"})
	if derr != nil {
		panic("csitest: " + derr.Error())
	}
	err.AddDetail(d)
	return err
}

// seen is a lease with its device.
func (c *leases) seen(l *vacatev1.Lease) *vacatev1.Lease {
	c.k.mu.Lock()
	defer c.k.mu.Unlock()
	if d := c.k.devices[l.GetId()]; d != nil {
		l.Device, l.DeviceKind = c.k.dir+"/vacate/"+l.GetId(), "ublk"
	}
	return l
}

func (c *leases) Open(ctx context.Context, req *vacatev1.LeaseServiceOpenRequest) (res *vacatev1.LeaseServiceOpenResponse, err error) {
	err = c.k.do(func() error {
		res, err = c.LeaseServiceClient.Open(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	c.seen(res.GetLease())
	return res, nil
}

func (c *leases) Get(ctx context.Context, req *vacatev1.LeaseServiceGetRequest) (*vacatev1.LeaseServiceGetResponse, error) {
	res, err := c.LeaseServiceClient.Get(ctx, req)
	if err == nil {
		c.seen(res.GetLease())
	}
	return res, err
}

func (c *leases) List(ctx context.Context, req *vacatev1.LeaseServiceListRequest) (*vacatev1.LeaseServiceListResponse, error) {
	res, err := c.LeaseServiceClient.List(ctx, req)
	for _, l := range res.GetLeases() {
		c.seen(l)
	}
	return res, err
}

func (c *leases) Resize(ctx context.Context, req *vacatev1.LeaseServiceResizeRequest) (res *vacatev1.LeaseServiceResizeResponse, err error) {
	err = c.k.do(func() error {
		if res, err = c.LeaseServiceClient.Resize(ctx, req); err != nil {
			return err
		}
		c.k.mu.Lock()
		defer c.k.mu.Unlock()
		if d := c.k.devices[req.GetId()]; d != nil && !c.k.old {
			d.bytes = res.GetLease().GetSizeBytes()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	c.seen(res.GetLease())
	return res, nil
}

func (c *leases) Close(ctx context.Context, req *vacatev1.LeaseServiceCloseRequest) (res *vacatev1.LeaseServiceCloseResponse, err error) {
	err = c.k.do(func() error {
		if res, err = c.LeaseServiceClient.Close(ctx, req); err != nil {
			return err
		}
		c.k.mu.Lock()
		defer c.k.mu.Unlock()
		return c.k.detach(req.GetId(), true)
	})
	if err != nil {
		return nil, err
	}
	return res, nil
}

func (c *leases) Attach(ctx context.Context, req *vacatev1.LeaseServiceAttachRequest) (*vacatev1.LeaseServiceAttachResponse, error) {
	res, err := c.LeaseServiceClient.Get(ctx, &vacatev1.LeaseServiceGetRequest{Id: req.GetId()})
	if err != nil {
		return nil, err
	}
	if res.GetLease().GetState() != vacatev1.LeaseState_LEASE_STATE_OPEN {
		return nil, refused(req.GetId(), "only an open lease can be attached")
	}
	err = c.k.do(func() error {
		c.k.mu.Lock()
		defer c.k.mu.Unlock()
		_, err := c.k.attach(res.GetLease())
		return err
	})
	if err != nil {
		return nil, err
	}
	return &vacatev1.LeaseServiceAttachResponse{Lease: c.seen(res.GetLease())}, nil
}

func (c *leases) Detach(ctx context.Context, req *vacatev1.LeaseServiceDetachRequest) (*vacatev1.LeaseServiceDetachResponse, error) {
	res, err := c.LeaseServiceClient.Get(ctx, &vacatev1.LeaseServiceGetRequest{Id: req.GetId()})
	if err != nil {
		return nil, err
	}
	err = c.k.do(func() error {
		c.k.mu.Lock()
		defer c.k.mu.Unlock()
		return c.k.detach(req.GetId(), false)
	})
	if err != nil {
		return nil, err
	}
	return &vacatev1.LeaseServiceDetachResponse{Lease: c.seen(res.GetLease())}, nil
}
