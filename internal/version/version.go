// Package version says which version of the program this is.
package version

import (
	"runtime"
	"runtime/debug"
)

// release is set by the linker for releases:
// -ldflags "-X vacate/internal/version.release=v1.2.3".
var release string

// An Info is what is known about a build.
type Info struct {
	Version  string `json:"version"`            // "v1.2.3", or "devel"
	Commit   string `json:"commit,omitempty"`   // of the source, where the build recorded it
	Modified bool   `json:"modified,omitempty"` // the source differed from the commit
	Go       string `json:"go"`                 // "go1.26.0"
	Platform string `json:"platform"`           // "linux/amd64"
}

// Get reads the build's own information.
func Get() Info {
	i := Info{Version: String(), Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if b, ok := debug.ReadBuildInfo(); ok {
		for _, s := range b.Settings {
			switch s.Key {
			case "vcs.revision":
				i.Commit = s.Value
			case "vcs.modified":
				i.Modified = s.Value == "true"
			}
		}
	}
	return i
}

// String is the version in one word.
func String() string {
	if release != "" {
		return release
	}
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" && b.Main.Version != "(devel)" {
		return b.Main.Version
	}
	return "devel"
}
