package measure

import (
	"os"
	"runtime"
	"strings"

	"vacate/internal/bench"
	"vacate/internal/sys"
	"vacate/internal/version"
)

// host describes this machine. What the kernel does not tell is left empty.
func host() bench.Host {
	h := bench.Host{Processor: runtime.GOARCH, Cores: runtime.GOMAXPROCS(0), Version: "vacate " + version.String()}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if name := modelName(string(b)); name != "" {
			h.Processor = name
		}
	}
	h.Kernel, _ = sys.Kernel() //nolint:errcheck // as above
	return h
}

// modelName is the first processor's name in /proc/cpuinfo, where it has one.
func modelName(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
