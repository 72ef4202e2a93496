// Package sys wraps the system calls that Vacate makes itself. It is the only
// package that imports golang.org/x/sys/unix.
//
// Functions of the data path take raw descriptors and return a count and an
// errno, retry EINTR and allocate nothing; the others take files and return
// errors that unwrap to the errno.
package sys
