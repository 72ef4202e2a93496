package control

import (
	"path/filepath"
	"slices"

	"vacate/internal/sandbox"
)

// confine takes from this process what control does not need. It comes before
// anyone is answered, and after what the sandbox's list must name is there: the
// folders, and the locks of earlier keepers' engines.
func (p *process) confine() error {
	o := sandbox.ControlOptions{
		Off: p.cfg.SandboxOff(), StateDir: p.cfg.StateDir, LeasesDir: p.cfg.LeasesDir(), RunDir: p.cfg.RunDir,
		AnyFile: p.waiting != nil,
	}
	if p.proof != nil {
		p.proof.beforeNetwork()
		o.LogDir, o.Ports = p.proof.logDir(), p.proof.ports
	}
	var err error
	if o.Locks, err = filepath.Glob(filepath.Join(p.cfg.RunDir, engineLocks)); err != nil {
		return err
	}
	if p.confined, err = p.on.confine(o); err == nil {
		p.log.Info("confined", "sandbox", p.confined.String())
	}
	return err
}

// warnings are what deserves a look although the daemon works.
func (p *process) warnings() []string {
	all := hostWarnings()
	for _, what := range p.confined.Missing {
		all = append(all, "control's sandbox lacks "+what)
	}
	return slices.Clip(all)
}
