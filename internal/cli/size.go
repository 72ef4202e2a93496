package cli

import (
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

// A unit is a suffix of a size, and its factor in bytes.
type unit struct {
	name   string
	factor int64
}

// units are those that are taken. Single letters are not: "10G" is 10 GiB to
// one tool and 10 GB to the next, and the difference is 700 MB.
var units = []unit{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"PiB", 1 << 50},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"PB", 1e15},
	{"B", 1}, {"", 1},
}

// maxSize is the largest size in bytes that the command line takes.
const maxSize = 1 << 62

// parseSize reads a size: a number, which may have a decimal point, and a unit.
// The result is exact; a size that is no whole number of bytes is an error.
func parseSize(s string) (int64, error) {
	text := strings.TrimSpace(s)
	digits := strings.TrimLeft(text, "0123456789.")
	number, suffix := text[:len(text)-len(digits)], strings.TrimSpace(digits)
	if strings.HasPrefix(text, "-") {
		return 0, fmt.Errorf("size %q is negative", s)
	}
	if number == "" || len(number) > 32 || strings.Count(number, ".") > 1 || strings.HasPrefix(number, ".") || strings.HasSuffix(number, ".") {
		return 0, fmt.Errorf("size %q is not a number with a unit, as 10GiB", s)
	}
	factor, err := unitFactor(s, number, suffix)
	if err != nil {
		return 0, err
	}
	r, ok := new(big.Rat).SetString(number)
	if !ok {
		return 0, fmt.Errorf("size %q is not a number with a unit, as 10GiB", s)
	}
	r.Mul(r, new(big.Rat).SetInt64(factor))
	switch {
	case !r.IsInt():
		return 0, fmt.Errorf("size %q is not a whole number of bytes", s)
	case r.Num().Cmp(big.NewInt(maxSize)) > 0:
		return 0, fmt.Errorf("size %q is over 2^62 bytes", s)
	}
	return r.Num().Int64(), nil
}

func unitFactor(s, number, suffix string) (int64, error) {
	for _, u := range units {
		if suffix == u.name {
			return u.factor, nil
		}
	}
	if len(suffix) == 1 && strings.ContainsAny(suffix, "kKmMgGtTpP") {
		l := strings.ToUpper(suffix)
		return 0, fmt.Errorf("size %q has the unit %s, which could mean two things; write %s%siB (powers of 1024) or %s%sB (powers of 1000)",
			s, suffix, number, l, number, l)
	}
	return 0, fmt.Errorf("size %q has the unknown unit %q; write KiB, MiB, GiB, TiB, PiB, kB, MB, GB, TB, PB or B", s, suffix)
}

// formatSize prints a size for people, in binary units, with three digits or
// more: "10 GiB", "1.5 TiB", "9.31 GiB". Sizes that are read by programs are
// printed as numbers of bytes.
func formatSize(n int64) string {
	const names = "KMGTPE"
	if n < 1<<10 {
		return strconv.FormatInt(n, 10) + " B"
	}
	v, i := float64(n)/(1<<10), 0
	for v >= 1024 && i < len(names)-1 {
		v, i = v/1024, i+1
	}
	prec := 2
	if v >= 100 {
		prec = 0
	} else if v >= 10 {
		prec = 1
	}
	num := strconv.FormatFloat(v, 'f', prec, 64)
	if strings.Contains(num, ".") {
		num = strings.TrimRight(strings.TrimRight(num, "0"), ".")
	}
	return num + " " + names[i:i+1] + "iB"
}

// sizeFlag is a size as a flag's value.
type sizeFlag struct {
	bytes int64
	set   bool
}

func (f *sizeFlag) String() string {
	if !f.set {
		return ""
	}
	return strconv.FormatInt(f.bytes, 10)
}

func (f *sizeFlag) Set(s string) error {
	n, err := parseSize(s)
	if err != nil {
		return err
	}
	f.bytes, f.set = n, true
	return nil
}

// Type is the word for the value in the help.
func (f *sizeFlag) Type() string { return "size" }
