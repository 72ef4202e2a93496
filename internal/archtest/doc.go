// Package archtest holds the tests that keep the module's shape: who may
// import whom (table_test.go), how long a file may be, and that the documents
// name only what exists. It has no code of its own.
//
// Each checker is a function of what it checks, and is first tried on a small
// module with a planted violation: a checker that finds nothing proves nothing
// until it has found that.
package archtest
