package config

import (
	"fmt"
	"strings"
)

// A Fault is one thing that is wrong with a configuration.
type Fault struct {
	Key    string // "log.level"; empty where the source cannot be read at all
	Value  string // as it was written; empty where there is none
	Source string // "/etc/vacate/vacate.yaml", "VACATE_LOG__LEVEL", "--log-level", "default"
	Why    string // what is wrong with it
	Write  string // what to write instead
}

func (f Fault) String() string {
	var b strings.Builder
	if f.Key != "" {
		b.WriteString(f.Key)
		if f.Value != "" {
			fmt.Fprintf(&b, " = %s", f.Value)
		}
		if f.Source != "" {
			fmt.Fprintf(&b, " (%s)", f.Source)
		}
		b.WriteString(": ")
	} else if f.Source != "" {
		b.WriteString(f.Source + ": ")
	}
	b.WriteString(f.Why)
	if f.Write != "" {
		b.WriteString("; " + f.Write)
	}
	return b.String()
}

// Faults is an error that lists everything that is wrong.
type Faults []Fault

func (fs Faults) Error() string {
	if len(fs) == 1 {
		return "configuration: " + fs[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "configuration: %d faults", len(fs))
	for _, f := range fs {
		b.WriteString("\n  " + f.String())
	}
	return b.String()
}

// orNil is fs as an error that is nil when there are no faults.
func (fs Faults) orNil() error {
	if len(fs) == 0 {
		return nil
	}
	return fs
}
