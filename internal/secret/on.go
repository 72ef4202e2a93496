//go:build goexperiment.runtimesecret && linux && (amd64 || arm64)

package secret

import (
	"runtime"
	"runtime/secret"
)

const (
	enabled = true
	why     = ""
)

func do(f func()) { secret.Do(f) }

// forget waits for the sweep, which is what overwrites (runtime.GC does).
func forget() { runtime.GC() }
