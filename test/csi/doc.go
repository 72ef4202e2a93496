// Package csi holds the conformance suite of the Container Storage Interface,
// csi-sanity of github.com/kubernetes-csi/csi-test, against the driver.
//
// Run as a test it builds the program, starts a daemon, and serves the driver over a
// unix socket: all is real but the devices and mounts, which are csitest's. Built as a
// program it takes the socket of a driver that runs already, on real devices:
//
//	go test -c -o csi-sanity ./test/csi
//	./csi-sanity -test.v -endpoint unix:///run/csi.sock -dir /var/lib/csi-sanity
//
// The folder is where volumes are staged and published, and its file system must be
// one where others can be mounted. Every spec that is skipped is named, with its
// reason, in skips_test.go and docs/csi.md; one more or one less fails the test.
package csi
