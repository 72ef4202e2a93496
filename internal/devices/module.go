package devices

import (
	"context"
	"os/exec"
	"sync"
	"time"
)

// loadTime bounds the loading of a module, and is how long it is not tried again.
const loadTime = 30 * time.Second

var loads struct {
	mu   sync.Mutex
	last map[string]time.Time
}

// loadModule has a module of the kernel loaded, if this process may and there is one.
// Whether it was, its driver tells.
func loadModule(name string) {
	loads.mu.Lock()
	defer loads.mu.Unlock()
	if last, ok := loads.last[name]; ok && time.Since(last) < loadTime {
		return
	}
	if loads.last == nil {
		loads.last = map[string]time.Time{}
	}
	loads.last[name] = time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), loadTime)
	defer cancel()
	_ = exec.CommandContext(ctx, "modprobe", "--quiet", name).Run() // the driver's own error says more
}
