package proof

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// Check tells whether an annex is within its bounds, and says of each field what
// it may say. Whether it is the one that a record names, and agrees with it, is
// not its matter.
func (a *Annex) Check() error {
	switch {
	case a.V != 1:
		return fmt.Errorf("annex: version %d is unknown", a.V)
	case len(a.Media) == 0 || len(a.Media) > 128:
		return fmt.Errorf("annex: %d media, not 1 to 128", len(a.Media))
	case len(a.Device) > 128 || len(a.Scan) > 128 || len(a.Limits) > 64:
		return errors.New("annex: too many parts")
	case len(a.Module.CertNo) > 16 || strings.Trim(a.Module.CertNo, "0123456789") != "":
		return fmt.Errorf("annex: %.40q is not the number of a certificate", a.Module.CertNo)
	case a.Module.Validated == (a.Module.CertNo == ""):
		return errors.New("annex: a validated module has the number of its certificate, and no other has one")
	}
	if err := a.Sanitize.checkPersons(); err != nil {
		return fmt.Errorf("annex: %w", err)
	}
	for _, f := range a.Fields() {
		if err := f.Fact.check(); err != nil {
			return fmt.Errorf("annex: field %s: %w", f.Path, err)
		}
	}
	return nil
}

// checkPersons: nodes leave to persons what is theirs.
func (s *Sanitize) checkPersons() error {
	for path, f := range map[string]Fact{"validation": s.Validation, "performedBy": s.Performed, "verifiedBy": s.Verified} {
		if f.Source != SourceHuman {
			return fmt.Errorf("a node has filled what only a person may: %s", path)
		}
	}
	return nil
}

// ParseAnnex takes exactly the bytes that [Encode] makes of an annex that passes
// its checks.
func ParseAnnex(b []byte) (Annex, error) {
	if len(b) > MaxAnnexBytes {
		return Annex{}, fmt.Errorf("annex has %d bytes, at most %d are allowed", len(b), MaxAnnexBytes)
	}
	a, err := Decode[Annex](b)
	if err != nil {
		return Annex{}, fmt.Errorf("annex: %w", err)
	}
	return a, a.Check()
}

func (f Fact) check() error {
	switch f.Source {
	case SourceNone, SourceHuman:
		if f.Value != "" {
			return fmt.Errorf("it has a value, and says %q", f.Source)
		}
		return nil
	case SourceObserved, SourceDrive, SourceConfigured, SourceProgram:
	default: // [EnteredBy] too: a node's word is nobody's signature
		return fmt.Errorf("a node's fact cannot have the source %.80q", f.Source)
	}
	switch {
	case f.Value == "":
		return fmt.Errorf("it has no value, and says %q", f.Source)
	case len(f.Value) > 1024:
		return fmt.Errorf("it has %d bytes, more than 1024", len(f.Value))
	}
	return nil
}

// A Field is a [Fact] of an annex with its path: the JSON names that lead to it,
// with a point between, and the number of an element of a list, from 0.
// "media.0.serial" is one.
type Field struct {
	Path string
	Fact Fact
}

// Fields are all facts of an annex, in its order.
func (a *Annex) Fields() []Field { return fieldsOf(a) }

// fieldsOf are the facts below the value that a pointer points to.
func fieldsOf(pointer any) []Field {
	var out []Field
	walk(reflect.ValueOf(pointer).Elem(), "", func(path string, f *Fact) {
		out = append(out, Field{Path: path, Fact: *f})
	})
	return out
}

// walk visits each Fact below v, which is addressable.
func walk(v reflect.Value, path string, visit func(string, *Fact)) {
	if f, ok := v.Addr().Interface().(*Fact); ok {
		visit(path, f)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			walk(v.Field(i), join(path, name), visit)
		}
	case reflect.Slice:
		for i := range v.Len() {
			walk(v.Index(i), join(path, strconv.Itoa(i)), visit)
		}
	default:
	}
}

// setFields gives the facts below a pointer their new values, by path.
func setFields(pointer any, values map[string]Fact) {
	walk(reflect.ValueOf(pointer).Elem(), "", func(path string, f *Fact) {
		if v, ok := values[path]; ok {
			*f = v
		}
	})
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
