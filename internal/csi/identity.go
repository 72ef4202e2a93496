package csi

import (
	"context"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	vacatev1 "vacate/api/vacate/v1"
)

// GetPluginInfo implements Identity.
func (d *Driver) GetPluginInfo(context.Context, *spec.GetPluginInfoRequest) (*spec.GetPluginInfoResponse, error) {
	v := d.cfg.Version
	if v == "" {
		v = "devel"
	}
	return &spec.GetPluginInfoResponse{Name: Name, VendorVersion: v}, nil
}

// GetPluginCapabilities implements Identity.
func (d *Driver) GetPluginCapabilities(context.Context, *spec.GetPluginCapabilitiesRequest) (*spec.GetPluginCapabilitiesResponse, error) {
	res := &spec.GetPluginCapabilitiesResponse{}
	for _, t := range []spec.PluginCapability_Service_Type{
		spec.PluginCapability_Service_CONTROLLER_SERVICE, spec.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS,
	} {
		res.Capabilities = append(res.Capabilities, &spec.PluginCapability{
			Type: &spec.PluginCapability_Service_{Service: &spec.PluginCapability_Service{Type: t}}})
	}
	res.Capabilities = append(res.Capabilities, &spec.PluginCapability{
		Type: &spec.PluginCapability_VolumeExpansion_{VolumeExpansion: &spec.PluginCapability_VolumeExpansion{
			Type: spec.PluginCapability_VolumeExpansion_ONLINE}}})
	return res, nil
}

// Probe implements Identity. A daemon that is away, or that recovers, is no fault of
// the driver's, which to start anew would not mend: it is not ready then.
func (d *Driver) Probe(ctx context.Context, _ *spec.ProbeRequest) (*spec.ProbeResponse, error) {
	st, err := d.cfg.Client.Node.Status(ctx, &vacatev1.NodeServiceStatusRequest{})
	return &spec.ProbeResponse{Ready: wrapperspb.Bool(err == nil && st.GetReady())}, nil
}
