package daemon

import (
	"vacate/internal/config"
	"vacate/internal/sandbox"
)

// engineSandbox is what the engine may open besides what every engine may.
func engineSandbox(cfg config.Config) sandbox.EngineOptions {
	o := sandbox.EngineOptions{Off: cfg.SandboxOff(), DriveDirs: cfg.DriveDirs}
	if dev := cfg.DevDrive(); dev != "" {
		o.DriveFiles = []string{dev} // and not its folder, which holds the state, too
	}
	return o
}
