package version

import (
	"runtime"
	"testing"
)

func TestRelease(t *testing.T) {
	defer func(old string) { release = old }(release)
	release = "v1.2.3"
	if got := Get(); got.Version != "v1.2.3" || got.Go != runtime.Version() || got.Platform != runtime.GOOS+"/"+runtime.GOARCH {
		t.Errorf("Get() = %+v", got)
	}
	release = ""
	if got := String(); got == "" {
		t.Error("a build without a release has no version")
	}
}
