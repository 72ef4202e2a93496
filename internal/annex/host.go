package annex

import (
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"strings"

	"vacate/proof"
)

// maxFile bounds what is read of one file. /boot/config is 300 KiB.
const maxFile = 1 << 20

// ReadHost looks at the machine that root is the root folder of
// (os.DirFS("/")), once, as it is at this moment. A process that is about to be
// confined looks before. What cannot be read is "not observed".
func ReadHost(root fs.FS, c Config) proof.Host {
	h := host{root: root}
	kernel := h.line("proc/sys/kernel/osrelease")
	return proof.Host{
		Kernel:        observed(join("Linux", kernel)),
		BootID:        observed(h.line("proc/sys/kernel/random/boot_id")),
		Machine:       observed(h.machine()),
		InitOnFree:    observed(h.initOn("init_on_free", "CONFIG_INIT_ON_FREE_DEFAULT_ON", kernel)),
		InitOnAlloc:   observed(h.initOn("init_on_alloc", "CONFIG_INIT_ON_ALLOC_DEFAULT_ON", kernel)),
		Hugepages:     observed(h.hugepages()),
		Transparent:   observed(h.chosen("sys/kernel/mm/transparent_hugepage/enabled")),
		Swap:          observed(h.swap()),
		CorePattern:   observed(h.line("proc/sys/kernel/core_pattern")),
		Hibernation:   observed(h.hibernation()),
		Kexec:         observed(h.kexec()),
		SecretMemory:  observed(h.secretMemory()),
		KeyMemory:     said(c.KeyMemory, proof.SourceObserved),
		RuntimeSecret: proof.Fact{Value: onOff(c.RuntimeSecret), Source: proof.SourceObserved},
		TPM:           proof.Fact{Value: quotes(c), Source: proof.SourceConfigured},
	}
}

func observed(value string) proof.Fact { return said(value, proof.SourceObserved) }

func join(a, b string) string {
	if b == "" {
		return ""
	}
	return a + " " + b
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func quotes(c Config) string {
	if c.TPM {
		return "records are quoted"
	}
	return "not used"
}

// A host reads one machine. Each method returns what is to be said, or nothing
// where it cannot tell.
type host struct{ root fs.FS }

func (h host) read(name string) (string, bool) {
	f, err := h.root.Open(name)
	if err != nil {
		return "", false
	}
	defer f.Close() //nolint:errcheck // it was only read
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	return string(b), err == nil
}

// line is the first line of a file.
func (h host) line(name string) string {
	text, _ := h.read(name)
	first, _, _ := strings.Cut(text, "\n")
	return strings.TrimSpace(first)
}

// value is what stands behind "key:" or "key=" in the first line of a file that
// begins with it.
func (h host) value(name, key, separator string) string {
	text, _ := h.read(name)
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(line, separator); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func (h host) machine() string {
	name := h.value("proc/cpuinfo", "model name", ":")
	if name == "" {
		return runtime.GOARCH
	}
	return runtime.GOARCH + ", " + name
}

// parameter is the value that the kernel's command line gives a parameter: of
// several, the last counts.
func (h host) parameter(name string) (value string, readable bool) {
	text, ok := h.read("proc/cmdline")
	for _, word := range strings.Fields(text) {
		if v, is := strings.CutPrefix(word, name+"="); is {
			value = v
		}
	}
	return value, ok
}

// initOn tells one of the kernel's two switches that clear memory
// (Documentation/admin-guide/kernel-parameters.txt): the command line overrides
// what the kernel was built with.
func (h host) initOn(parameter, option, kernel string) string {
	value, ok := h.parameter(parameter)
	if !ok {
		return ""
	}
	switch strings.ToLower(value) {
	case "1", "y", "yes", "on", "t", "true":
		return "on (kernel command line)"
	case "0", "n", "no", "off", "f", "false":
		return "off (kernel command line)"
	case "":
	default:
		return ""
	}
	config := h.config(kernel)
	switch {
	case strings.Contains("\n"+config, "\n"+option+"=y\n"):
		return "on (built in)"
	case strings.Contains("\n"+config, "\n# "+option+" is not set\n"):
		return "off (built in)"
	}
	return ""
}

// config is what the running kernel was built with: its own word, where it was
// built to give it, else the distribution's file.
func (h host) config(kernel string) string {
	if f, err := h.root.Open("proc/config.gz"); err == nil {
		defer f.Close() //nolint:errcheck // it was only read
		if z, err := gzip.NewReader(io.LimitReader(f, maxFile)); err == nil {
			b, err := io.ReadAll(io.LimitReader(z, maxFile))
			if err == nil {
				return string(b)
			}
		}
	}
	if kernel == "" || strings.Contains(kernel, "/") {
		return ""
	}
	text, _ := h.read("boot/config-" + kernel)
	return text
}

func (h host) hugepages() string {
	total, size := h.value("proc/meminfo", "HugePages_Total", ":"), h.value("proc/meminfo", "Hugepagesize", ":")
	switch {
	case total == "" || size == "":
		return ""
	case total == "0":
		return "none reserved"
	}
	return fmt.Sprintf("%s of %s reserved; the kernel clears them when they are given out, not when they are freed", total, size)
}

// chosen is the word in brackets of a file of choices: "always [madvise] never".
func (h host) chosen(name string) string {
	_, rest, ok := strings.Cut(h.line(name), "[")
	if word, _, closed := strings.Cut(rest, "]"); ok && closed {
		return word
	}
	return ""
}

func (h host) swap() string {
	text, ok := h.read("proc/swaps")
	n := strings.Count(text, "\n") - 1 // the first line is the head
	switch {
	case !ok || n < 0:
		return ""
	case n == 0:
		return "none"
	}
	return fmt.Sprintf("%d areas in use: keys and buffers are locked and never reach them, the memory of guests may", n)
}

func (h host) hibernation() string {
	text, ok := h.read("sys/power/disk")
	switch {
	case !ok:
		return ""
	case strings.Contains(text, "[disabled]"):
		return "not possible now"
	}
	return "the kernel can (it refuses while secret memory is in use)"
}

func (h host) kexec() string {
	switch h.line("proc/sys/kernel/kexec_load_disabled") {
	case "0":
		return "possible: a start by kexec keeps what is in memory"
	case "1":
		return "disabled until the next start"
	}
	return ""
}

// secretMemory is the switch of memfd_secret(2), which only root may read. Where
// the keys lie is another field.
func (h host) secretMemory() string {
	switch h.line("sys/module/secretmem/parameters/enable") {
	case "Y":
		return "on"
	case "N":
		return "off"
	}
	return ""
}
