package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/providers/rawbytes"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"
	yamlv3 "go.yaml.in/yaml/v3"
)

// maxFile bounds what is read of a configuration file.
const maxFile = 1 << 20

// Sources are where values come from, besides the defaults.
type Sources struct {
	File    string         // path of the YAML file; empty reads DefaultFile if it exists
	Environ []string       // "KEY=value"; nil is the process's own
	Flags   *pflag.FlagSet // flags that were made by AddFlags and parsed; may be nil
}

// AddFlags defines the flags that override keys of the configuration.
func AddFlags(fs *pflag.FlagSet) {
	fs.String("dev", "", "keep everything under this folder, as an ordinary user, with a sparse 8 GiB file as drive")
	fs.String("state-dir", "", "folder of the journal (state_dir)")
	fs.String("run-dir", "", "folder of the sockets (run_dir)")
	fs.StringArray("drive-dir", nil, "folder beneath which drives may be enrolled, in place of /dev; may be given again (drive_dirs)")
	fs.String("drive-engine", "", "how requests reach the drives: auto, io_uring, mmap or pread (drive_engine)")
	fs.String("poll-budget", "", "how long a connection polls before it sleeps (poll_budget)")
	fs.String("max-connections", "", "clients connected at once, over all leases (max_connections)")
	fs.String("drain-deadline", "", "how long a close waits for I/O in flight (drain_deadline)")
	fs.String("log-level", "", "debug, info, warn or error (log.level)")
	fs.String("log-format", "", "text or json (log.format)")
	fs.String("keep", "", "how long certificates are kept, as 6y or 400d (certificates.keep)")
}

// flagKeys are the keys that AddFlags gives a flag.
var flagKeys = map[string]string{
	"dev": "dev", "state-dir": "state_dir", "run-dir": "run_dir", "drive-dir": "drive_dirs",
	"drive-engine": "drive_engine", "poll-budget": "poll_budget", "max-connections": "max_connections", "drain-deadline": "drain_deadline",
	"log-level": "log.level", "log-format": "log.format", "keep": "certificates.keep",
}

// Load reads the configuration. Its error is [Faults], with all that is wrong.
func Load(src Sources) (Config, error) {
	l := newLoader()
	l.file(src.File, src.Flags != nil && src.Flags.Changed("dev"))
	l.environ(src.Environ)
	l.flags(src.Flags)
	return l.decode()
}

// A loader merges layers, the lowest first.
type loader struct {
	raw    *koanf.Koanf
	from   map[string]string // key → where its value was written
	faults Faults
}

func newLoader() *loader {
	return &loader{raw: koanf.New("."), from: make(map[string]string)}
}

// merge lays one layer over the ones before it. name tells where a key of the
// layer was written.
func (l *loader) merge(layer *koanf.Koanf, name func(key string) string) {
	all := layer.All()
	for _, key := range slices.Sorted(maps.Keys(all)) {
		l.from[key] = name(key)
	}
	if err := l.raw.Load(confmap.Provider(all, "."), nil); err != nil {
		l.faults = append(l.faults, Fault{Source: name(""), Why: err.Error()})
	}
}

// file merges a YAML file. The default one is the host's, and --dev is not about
// the host.
func (l *loader) file(path string, dev bool) {
	named := path != ""
	if !named {
		if dev {
			return
		}
		path = DefaultFile
	}
	b, err := readBounded(path)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return
	}
	if err != nil {
		l.faults = append(l.faults, Fault{Source: path, Why: err.Error(), Write: "name a file that can be read with --config, or leave --config out"})
		return
	}
	l.bytes(path, b)
}

// bytes merges the text of a YAML file. Any input must give keys or faults.
func (l *loader) bytes(path string, b []byte) {
	layer := koanf.New(".")
	if err := layer.Load(rawbytes.Provider(b), yaml.Parser()); err != nil {
		l.faults = append(l.faults, Fault{Source: path, Why: err.Error(), Write: "write YAML, as \"state_dir: /var/lib/vacate\""})
		return
	}
	l.merge(layer, func(string) string { return path })
}

// foreign tells whether a variable with our prefix is not a key: the address of
// the command line, switches of tests, what a daemon leaves to its next program,
// and what Kubernetes puts into every container when a service is named "vacate".
func foreign(name string) bool {
	return name == "VACATE_ADDR" || name == "VACATE_PLANTED" || name == "VACATE_FAIL" ||
		name == "VACATE_ALIVE" || strings.HasPrefix(name, "VACATE_HANDOFF") ||
		strings.HasPrefix(name, "VACATE_TEST_") ||
		strings.HasPrefix(name, "VACATE_SERVICE_") || strings.HasPrefix(name, "VACATE_PORT")
}

func envKey(name string) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, "VACATE_")), "__", ".")
}

func envName(key string) string {
	return "VACATE_" + strings.ToUpper(strings.ReplaceAll(key, ".", "__"))
}

func (l *loader) environ(environ []string) {
	if environ == nil {
		environ = os.Environ()
	}
	layer := koanf.New(".")
	err := layer.Load(env.Provider("", env.Opt{
		Prefix:      "VACATE_",
		EnvironFunc: func() []string { return environ },
		TransformFunc: func(name, value string) (string, any) {
			if foreign(name) {
				return "", nil
			}
			return envKey(name), value
		},
	}), nil)
	if err != nil {
		l.faults = append(l.faults, Fault{Source: "environment", Why: err.Error()})
		return
	}
	l.merge(layer, envName)
}

func (l *loader) flags(set *pflag.FlagSet) {
	if set == nil {
		return
	}
	flagOf := make(map[string]string)
	layer := koanf.New(".")
	err := layer.Load(posflag.ProviderWithFlag(set, ".", nil, func(f *pflag.Flag) (string, any) {
		key := flagKeys[f.Name]
		flagOf[key] = "--" + f.Name
		if list, ok := f.Value.(pflag.SliceValue); ok {
			parts := []any{}
			for _, part := range list.GetSlice() {
				parts = append(parts, part)
			}
			return key, parts
		}
		return key, f.Value.String()
	}), nil)
	if err != nil {
		l.faults = append(l.faults, Fault{Source: "flags", Why: err.Error()})
		return
	}
	l.merge(layer, func(key string) string { return flagOf[key] })
}

// decode turns the merged keys into a Config and checks it.
func (l *loader) decode() (Config, error) {
	values := l.raw.All()
	c := Default()
	for _, key := range slices.Sorted(maps.Keys(values)) {
		f := fieldOf(key)
		if f == nil {
			l.faults = append(l.faults, l.unknown(key, values[key]))
			continue
		}
		if err := f.set(&c, values[key]); err != nil {
			l.faults = append(l.faults, Fault{key, show(values[key]), l.from[key], err.Error(), "write " + f.write})
		}
	}
	l.applyDev(&c, values)
	broken := make(map[string]bool) // keys that are reported already
	for _, f := range l.faults {
		broken[f.Key] = true
	}
	for _, f := range c.faults() {
		if broken[f.Key] {
			continue
		}
		if f.Source = l.from[f.Key]; f.Source == "" {
			f.Source = "default"
		}
		l.faults = append(l.faults, f)
	}
	return c, l.faults.orNil()
}

// applyDev makes dev absolute and derives the folders from it.
func (l *loader) applyDev(c *Config, values map[string]any) {
	if c.Dev == "" {
		return
	}
	for _, key := range []string{"state_dir", "run_dir"} {
		if _, set := values[key]; set {
			l.faults = append(l.faults, Fault{key, show(values[key]), l.from[key],
				"dev keeps everything under one folder, so this has no place beside it", "leave out " + key + " or dev"})
		}
	}
	dir, err := filepath.Abs(c.Dev)
	if err != nil {
		l.faults = append(l.faults, Fault{"dev", c.Dev, l.from["dev"], err.Error(), "write an absolute path"})
		return
	}
	c.UseDev(dir)
}

func (l *loader) unknown(key string, v any) Fault {
	f := Fault{Key: key, Value: show(v), Source: l.from[key], Why: "there is no such key"}
	if best := nearest(key); best != "" {
		f.Write = "did you mean " + best + "?"
	} else {
		f.Write = "remove it, or see docs/config.md for the keys there are"
	}
	return f
}

// show prints a value as it might have been written, in one line.
func show(v any) string {
	s := fmt.Sprint(v)
	switch v := v.(type) {
	case nil:
		return "null"
	case string:
		s = fmt.Sprintf("%q", v)
	}
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 80 {
		s = s[:77] + "…"
	}
	return strings.ToValidUTF8(s, "�")
}

// readBounded reads a file that must not be longer than maxFile.
func readBounded(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", path)
	}
	if st.Size() > maxFile {
		return nil, fmt.Errorf("%s has %d bytes, more than the %d a configuration may have", path, st.Size(), maxFile)
	}
	return os.ReadFile(path)
}

// YAML is c as a file that would give it: what --check-config prints.
func (c Config) YAML() []byte {
	ko := koanf.New(".")
	values := make(map[string]any)
	for _, f := range fields {
		if c.Dev != "" && (f.key == "state_dir" || f.key == "run_dir") || c.Dev == "" && f.key == "dev" {
			continue // derived, or absent
		}
		values[f.key] = f.get(&c)
	}
	if err := ko.Load(confmap.Provider(values, "."), nil); err != nil {
		panic("config: own values do not load: " + err.Error())
	}
	b, err := yamlv3.Marshal(ko.Raw())
	if err != nil {
		panic("config: own values do not marshal: " + err.Error())
	}
	return b
}
