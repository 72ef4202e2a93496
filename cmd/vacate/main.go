// Command vacate gives the space of local SSDs to tenants as encrypted volumes,
// and forgets it when they leave. It is the daemon, its three processes, and the
// command line in one binary.
package main

import (
	"os"

	"vacate/internal/cli"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], cli.Hooks{}, cli.Standard()))
}
