package daemon

import (
	"regexp"
	"time"
)

var fenceWaited = regexp.MustCompile(`fence_waited=(\S+)`)

// FenceTimes are how long engines have waited for the fences of drives so far, as
// the log tells at level info.
func (d *Daemon) FenceTimes() (all []time.Duration) {
	for _, m := range fenceWaited.FindAllStringSubmatch(d.Log(), -1) {
		if t, err := time.ParseDuration(m[1]); err == nil {
			all = append(all, t)
		}
	}
	return all
}
