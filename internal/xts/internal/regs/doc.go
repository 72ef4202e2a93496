// Package regs looks, for tests, at what a function left behind: the vector
// registers, and the dead part of the stack below its caller. It is a package
// because a test file can not be assembly; nothing but tests imports it.
package regs
