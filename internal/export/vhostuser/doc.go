// Package vhostuser serves a volume to virtual machines, as a virtio block device
// over the vhost-user protocol
// (https://qemu-project.gitlab.io/qemu/interop/vhost-user.html). What is served of
// it is listed in docs/spec/vhostuser.md.
package vhostuser
