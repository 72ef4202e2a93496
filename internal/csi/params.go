package csi

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/lease"
)

// What storage classes and volume attributes classes may say.
const (
	paramTenant         = "tenant"         // who volumes are for; default: the claim's namespace
	paramDrive          = "drive"          // path or UUID of the drive to take
	paramLogicalBlock   = "logicalBlock"   // 512 or 4096
	paramIOPS           = "iops"           // as the fields of vacatev1.Limits
	paramIOPSBurst      = "iopsBurst"      //
	paramBandwidth      = "bandwidth"      // bytes a second
	paramBandwidthBurst = "bandwidthBurst" //
)

// What the external provisioner adds (--extra-create-metadata).
const (
	paramProvisioner  = "csi.storage.k8s.io/"
	paramPVCName      = paramProvisioner + "pvc/name"
	paramPVCNamespace = paramProvisioner + "pvc/namespace"
	paramPVName       = paramProvisioner + "pv/name"
)

// params are what parameters ask for.
type params struct {
	tenant       string
	drive        string
	logicalBlock uint32
	limits       *vacatev1.Limits // nil: none
	claim        claim
}

// A claim is what a volume is made for, where the caller says so.
type claim struct{ namespace, name string }

// parseParams reads the parameters of CreateVolume or GetCapacity. One that is not
// known is refused: a misspelt limit would be none.
func parseParams(all map[string]string) (params, error) {
	var p params
	var ns string
	limits := map[string]string{}
	for _, k := range slices.Sorted(maps.Keys(all)) {
		switch v := all[k]; k {
		case paramTenant:
			p.tenant = v
		case paramDrive:
			p.drive = v
		case paramLogicalBlock:
			n, err := strconv.ParseUint(v, 10, 32)
			if err != nil || n != 512 && n != 4096 {
				return p, invalid("parameter %s: %q is not 512 or 4096", k, v)
			}
			p.logicalBlock = uint32(n)
		case paramPVCNamespace:
			ns = v
		case paramPVCName:
			p.claim.name = v
		case paramPVName:
		default:
			limits[k] = v
		}
	}
	p.claim.namespace = ns
	if p.tenant == "" {
		p.tenant = ns
	}
	if p.tenant != "" {
		if err := lease.CheckTenant(p.tenant); err != nil {
			return p, invalid("parameter %s: %v", paramTenant, err)
		}
	}
	var err error
	p.limits, err = parseLimits(nil, limits)
	return p, err
}

// parseLimits reads limits, each in place of the one that had has. Without any the
// result is had.
func parseLimits(had *vacatev1.Limits, all map[string]string) (*vacatev1.Limits, error) {
	out := &vacatev1.Limits{Iops: had.GetIops(), IopsBurst: had.GetIopsBurst(), BandwidthBytes: had.GetBandwidthBytes(),
		BandwidthBurstBytes: had.GetBandwidthBurstBytes()}
	fields := map[string]*uint64{paramIOPS: &out.Iops, paramIOPSBurst: &out.IopsBurst,
		paramBandwidth: &out.BandwidthBytes, paramBandwidthBurst: &out.BandwidthBurstBytes}
	for _, k := range slices.Sorted(maps.Keys(all)) {
		field, ok := fields[k]
		if !ok {
			return nil, invalid("parameter %q is not known: there are %s", k, knownParams)
		}
		n, err := parseNumber(all[k])
		if err != nil {
			return nil, invalid("parameter %s: %q is not a whole number, which may end with Ki, Mi, Gi or Ti", k, all[k])
		}
		*field = n
	}
	if len(all) == 0 {
		return had, nil
	}
	if out.Iops == 0 && out.IopsBurst == 0 && out.BandwidthBytes == 0 && out.BandwidthBurstBytes == 0 {
		return nil, nil
	}
	return out, nil
}

var knownParams = strings.Join([]string{paramTenant, paramDrive, paramLogicalBlock, paramIOPS, paramIOPSBurst, paramBandwidth, paramBandwidthBurst}, ", ")

// parseNumber reads a number with a suffix as quantities of Kubernetes have them.
func parseNumber(s string) (uint64, error) {
	shift := 0
	for i, suffix := range []string{"Ki", "Mi", "Gi", "Ti"} {
		if head, ok := strings.CutSuffix(s, suffix); ok {
			s, shift = head, 10*(i+1)
			break
		}
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err == nil && n<<shift>>shift != n {
		err = strconv.ErrRange
	}
	return n << shift, err
}

// sameLimits compares limits, of which unset is all zero.
func sameLimits(a, b *vacatev1.Limits) bool {
	return a.GetIops() == b.GetIops() && a.GetIopsBurst() == b.GetIopsBurst() && a.GetBandwidthBytes() == b.GetBandwidthBytes() &&
		a.GetBandwidthBurstBytes() == b.GetBandwidthBurstBytes()
}
