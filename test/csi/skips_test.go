package csi_test

// Reasons.
const (
	local       = "a volume is reached from its own node alone, so no controller attaches it (PUBLISH_UNPUBLISH_VOLUME)"
	localLife   = "no controller attaches volumes; the node service's lifecycle specs are run instead"
	noSnapshots = "there are no snapshots"
	noClones    = "there are no clones"
	noGroups    = "there are no group snapshots"
	pending     = "csi-sanity keeps it pending; our own test of pages does the same"
)

// skips are the specs of csi-sanity that do not apply, and why.
var skips = []struct{ spec, why string }{
	{"Controller Service [Controller Server] ControllerPublishVolume should fail when no node id is provided", local},
	{"Controller Service [Controller Server] ControllerPublishVolume should fail when no volume capability is provided", local},
	{"Controller Service [Controller Server] ControllerPublishVolume should fail when no volume id is provided", local},
	{"Controller Service [Controller Server] ControllerPublishVolume should fail when publishing more volumes than the node max attach limit", local},
	{"Controller Service [Controller Server] ControllerPublishVolume should fail when the node does not exist", local},
	{"Controller Service [Controller Server] ControllerPublishVolume should fail when the volume does not exist", local},
	{"Controller Service [Controller Server] ControllerPublishVolume should fail when the volume is already published but is incompatible", local},
	{"Controller Service [Controller Server] ControllerUnpublishVolume should fail when no volume id is provided", local},
	{"Controller Service [Controller Server] volume lifecycle should work", localLife},
	{"Controller Service [Controller Server] volume lifecycle should be idempotent", localLife},
	{"Controller Service [Controller Server] CreateVolume should create volume from an existing source snapshot", noSnapshots},
	{"Controller Service [Controller Server] CreateVolume should fail when the volume source snapshot is not found", noSnapshots},
	{"Controller Service [Controller Server] CreateVolume should create volume from an existing source volume", noClones},
	{"Controller Service [Controller Server] CreateVolume should fail when the volume source volume is not found", noClones},
	{"Controller Service [Controller Server] ListVolumes pagination should detect volumes added between pages and accept tokens when the last volume from a page is deleted", pending},
	{"CreateSnapshot [Controller Server] should fail when no name is provided", noSnapshots},
	{"CreateSnapshot [Controller Server] should fail when no source volume id is provided", noSnapshots},
	{"CreateSnapshot [Controller Server] should fail when requesting to create a snapshot with already existing name and different source volume ID", noSnapshots},
	{"CreateSnapshot [Controller Server] should succeed when creating a snapshot with accessibility requirements", noSnapshots},
	{"CreateSnapshot [Controller Server] should succeed when creating snapshot with maximum-length name", noSnapshots},
	{"CreateSnapshot [Controller Server] should succeed when requesting to create a snapshot with already existing name and same source volume ID", noSnapshots},
	{"DeleteSnapshot [Controller Server] should fail when no snapshot id is provided", noSnapshots},
	{"DeleteSnapshot [Controller Server] should return appropriate values (no optional values added)", noSnapshots},
	{"DeleteSnapshot [Controller Server] should succeed when an invalid snapshot id is used", noSnapshots},
	{"GetSnapshot [Controller Server] should return an error", noSnapshots},
	{"GetSnapshot [Controller Server] should return an error when the specified snapshot id does not exist", noSnapshots},
	{"GetSnapshot [Controller Server] should return snapshot that match the specified snapshot id", noSnapshots},
	{"ListSnapshots [Controller Server] check the presence of new snapshots in the snapshot list", noSnapshots},
	{"ListSnapshots [Controller Server] should return appropriate values (no optional values added)", noSnapshots},
	{"ListSnapshots [Controller Server] should return empty when the specified snapshot id does not exist", noSnapshots},
	{"ListSnapshots [Controller Server] should return empty when the specified source volume id does not exist", noSnapshots},
	{"ListSnapshots [Controller Server] should return next token when a limited number of entries are requested", noSnapshots},
	{"ListSnapshots [Controller Server] should return snapshots that match the specified snapshot id", noSnapshots},
	{"ListSnapshots [Controller Server] should return snapshots that match the specified source volume id", noSnapshots},
	{"GroupController Service [GroupController Server] GroupControllerGetCapabilities should return appropriate capabilities", noGroups},
	{"GroupController Service [GroupController VolumeGroupSnapshots] CreateVolumeGroupSnapshot should fail when no name is provided", noGroups},
	{"GroupController Service [GroupController VolumeGroupSnapshots] DeleteVolumeGroupSnapshot should fail when no volume id is provided", noGroups},
	{"GroupController Service [GroupController VolumeGroupSnapshots] DeleteVolumeGroupSnapshot should succeed when an invalid volume id is used", noGroups},
	{"GroupController Service [GroupController VolumeGroupSnapshots] GetVolumeGroupSnapshot should fail when an invalid volume id is used", noGroups},
	{"GroupController Service [GroupController VolumeGroupSnapshots] GetVolumeGroupSnapshot should fail when no volume id is provided", noGroups},
}
