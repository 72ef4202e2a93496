package annex

import (
	"bytes"
	"compress/gzip"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"unicode/utf8"

	"vacate/proof"
)

func TestReadHost(t *testing.T) {
	h := ReadHost(linux(), Config{KeyMemory: "memfd_secret", TPM: true})
	for name, tt := range map[string]struct {
		got  proof.Fact
		want string
	}{
		"kernel":      {h.Kernel, "Linux 6.12.0-1-amd64"},
		"boot":        {h.BootID, "6c7f4b0e-2a33-4d0c-9d0a-1f4bd6f6a001"},
		"free":        {h.InitOnFree, "on (kernel command line)"},
		"alloc":       {h.InitOnAlloc, "on (built in)"},
		"hugepages":   {h.Hugepages, "8 of 2048 kB reserved; the kernel clears them when they are given out, not when they are freed"},
		"transparent": {h.Transparent, "madvise"},
		"core":        {h.CorePattern, "|/usr/lib/systemd/systemd-coredump %P"},
		"hibernation": {h.Hibernation, "not possible now"},
		"kexec":       {h.Kexec, "possible: a start by kexec keeps what is in memory"},
		"secret":      {h.SecretMemory, "on"},
		"keys":        {h.KeyMemory, "memfd_secret"},
		"runtime":     {h.RuntimeSecret, "off"},
	} {
		if tt.got.Value != tt.want || tt.got.Source != proof.SourceObserved {
			t.Errorf("%s: %+v, want %q", name, tt.got, tt.want)
		}
	}
	if !strings.HasSuffix(h.Machine.Value, ", A Processor") || !strings.HasPrefix(h.Swap.Value, "1 areas") || h.TPM.Source != proof.SourceConfigured {
		t.Errorf("%+v", h)
	}
}

// TestReadNothing: what cannot be read is not observed, and never a guess.
func TestReadNothing(t *testing.T) {
	h := ReadHost(fstest.MapFS{}, Config{})
	none := proof.Fact{Source: proof.SourceNone}
	for name, f := range map[string]proof.Fact{"kernel": h.Kernel, "boot": h.BootID, "free": h.InitOnFree, "alloc": h.InitOnAlloc,
		"hugepages": h.Hugepages, "transparent": h.Transparent, "swap": h.Swap, "core": h.CorePattern, "hibernation": h.Hibernation,
		"kexec": h.Kexec, "secret": h.SecretMemory, "keys": h.KeyMemory} {
		if f != none {
			t.Errorf("%s: %+v of a machine that nothing is known of", name, f)
		}
	}
}

func TestInitOn(t *testing.T) {
	const kernel = "6.1"
	for _, tt := range []struct{ cmdline, config, want string }{
		{"init_on_free=1", "", "on (kernel command line)"},
		{"init_on_free=1 init_on_free=off", "", "off (kernel command line)"},
		{"init_on_free=maybe", "CONFIG_X=y\n", ""},
		{"xinit_on_free=1", "CONFIG_X=y\n", "on (built in)"},
		{"", "# CONFIG_X is not set\n", "off (built in)"},
		{"", "# CONFIG_XY is not set\nCONFIG_XYZ=y\n", ""},
		{"", "", ""},
	} {
		root := fstest.MapFS{"proc/cmdline": {Data: []byte(tt.cmdline + "\n")}}
		if tt.config != "" {
			root["boot/config-"+kernel] = &fstest.MapFile{Data: []byte(tt.config)}
		}
		if got := (host{root: root}).initOn("init_on_free", "CONFIG_X", kernel); got != tt.want {
			t.Errorf("%q with %q: %q, want %q", tt.cmdline, tt.config, got, tt.want)
		}
	}
	own := linux() // what the kernel says itself counts before the distribution's file
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write([]byte("CONFIG_INIT_ON_ALLOC_DEFAULT_ON=n\n# CONFIG_INIT_ON_ALLOC_DEFAULT_ON is not set\n")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for want, b := range map[string][]byte{"off (built in)": z.Bytes(), "on (built in)": z.Bytes()[:20]} { // cut off: the file counts
		own["proc/config.gz"] = &fstest.MapFile{Data: b}
		if got := ReadHost(own, Config{}).InitOnAlloc.Value; got != want {
			t.Errorf("with the kernel's own word: %q, want %q", got, want)
		}
	}
	if got := (host{root: linux()}).initOn("init_on_alloc", "CONFIG_X", "../../etc/passwd"); got != "" {
		t.Errorf("a kernel's name led elsewhere: %q", got)
	}
}

// TestThisMachine: what this machine's files look like is understood.
func TestThisMachine(t *testing.T) {
	h := ReadHost(os.DirFS("/"), Config{})
	for name, f := range map[string]proof.Fact{"kernel": h.Kernel, "boot": h.BootID, "hugepages": h.Hugepages, "swap": h.Swap} {
		if f.Value == "" {
			t.Errorf("%s was not observed", name)
		}
	}
}

func FuzzReadHost(f *testing.F) {
	f.Add("init_on_free=1", "HugePages_Total: 1\nHugepagesize: 2 kB", "[a] b", "head\n")
	f.Add("x", "", "x"+strings.Repeat("€", 400), "") // a character that the bound cuts in two
	f.Add("\xff\x00", "\x1b[31m", "[", "\n\n")
	f.Fuzz(func(t *testing.T, cmdline, meminfo, chosen, swaps string) {
		h := ReadHost(fstest.MapFS{
			"proc/cmdline": {Data: []byte(cmdline)}, "proc/meminfo": {Data: []byte(meminfo)},
			"sys/kernel/mm/transparent_hugepage/enabled": {Data: []byte(chosen)}, "proc/swaps": {Data: []byte(swaps)},
			"proc/sys/kernel/core_pattern": {Data: []byte(chosen)}, "proc/sys/kernel/osrelease": {Data: []byte(cmdline)},
		}, Config{})
		in := inputs()
		in.Host = h
		if _, err := Build(closedLease("ok"), in); err != nil {
			t.Error(err)
		}
	})
}

// TestClip: whatever is cut off a text, what is left is one, within a fact's bounds.
func TestClip(t *testing.T) {
	for _, unit := range []string{"a", "é", "€", "𝄞", "\xff", "\x1b"} {
		for before := range 5 {
			got := clip(strings.Repeat("x", before) + strings.Repeat(unit, 1100))
			if len(got) > 1024 || len(got) < 1016 || !utf8.ValidString(got) || !strings.HasSuffix(got, "…") {
				t.Errorf("%d and %q: %d bytes, …%q", before, unit, len(got), got[len(got)-10:])
			}
		}
	}
}
