package engine

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// The test binary runs itself as an engine's process (process_test.go).
const partEnv = "ENGINE_TEST_PART"

func TestMain(m *testing.M) {
	if os.Getenv(partEnv) != "" {
		if err := engineProcess(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}
