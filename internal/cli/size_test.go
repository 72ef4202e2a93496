package cli

import (
	"strings"
	"testing"
)

func TestParseSize(t *testing.T) {
	good := map[string]int64{
		"0": 0, "1": 1, "4096": 4096, "4096B": 4096, "4KiB": 4096, "10GiB": 10 << 30, "1TiB": 1 << 40, "1.5GiB": 3 << 29,
		"10GB": 10e9, "1kB": 1000, "1KB": 1000, "2.5MB": 2500000, "1TB": 1e12, " 7 MiB ": 7 << 20, "4096PiB": 1 << 62, "0.001kB": 1,
	}
	for s, want := range good {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v, want %d", s, got, err, want)
		}
	}
	bad := map[string]string{
		"": "is not a number", "GiB": "is not a number", "-1": "is negative", "-5GiB": "is negative", "10G": "could mean two things", "10k": "10KiB",
		"10gib": "unknown unit", "10 XB": "unknown unit", "1.2.3GiB": "is not a number", ".5GiB": "is not a number", "5.GiB": "is not a number",
		"0.3B": "whole number of bytes", "4097PiB": "over 2^62", "99999999999999999999": "over 2^62", "1e9": "unknown unit",
		strings.Repeat("9", 40): "is not a number", "NaN": "is not a number", "0x10": "unknown unit",
	}
	for s, want := range bad {
		if got, err := parseSize(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseSize(%q) = %d, %v, want an error with %q", s, got, err, want)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 10 << 30: "10 GiB", 10e9: "9.31 GiB", 900 << 30: "900 GiB", 3 << 39: "1.5 TiB", 1 << 62: "4 EiB",
	} {
		if got := formatSize(n); got != want {
			t.Errorf("formatSize(%d) = %q, want %q", n, got, want)
		}
	}
}
