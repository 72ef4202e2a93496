package config

import (
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Proof says where records go, and who signs them.
type Proof struct {
	// LogDir is the folder of the log that the daemon keeps itself; empty for
	// [Config.LogDir]'s default. Absolute, and not beneath a drive's folder.
	LogDir string `json:"logDir,omitempty"`
	// LogURL is a log that is kept elsewhere. With it there is none of our own.
	LogURL string `json:"logUrl,omitempty"`
	// ClientCert, ClientKey and ClientCA are files in PEM, for LogURL.
	ClientCert string `json:"clientCert,omitempty"`
	ClientKey  string `json:"clientKey,omitempty"`
	ClientCA   string `json:"clientCa,omitempty"`
	// WitnessPolicy is a file with witnesses and their quorum, and with LogURL the
	// log's key.
	WitnessPolicy string `json:"witnessPolicy,omitempty"`
	// Origin names the daemon's own log; empty for a name made from the node's id.
	Origin string `json:"origin,omitempty"`
	// NodeKey and OperatorKey say where the keys lie: one of [KeyPlaces].
	NodeKey     string `json:"nodeKey"`
	OperatorKey string `json:"operatorKey"`
	// TPM is a device, or the socket of a software TPM. Absolute.
	TPM string `json:"tpm"`
	// Measured has the TPM quote with each OPEN and CLOSE.
	Measured bool `json:"measured"`
	// SpoolMax is how many records may wait for the log before no lease is opened.
	SpoolMax int `json:"spoolMax"` // 64 to 1048576
}

// KeyPlaces are the places in which a key may lie.
var KeyPlaces = []string{"file", "tpm"}

// Certificates says how long they are kept.
type Certificates struct {
	Keep time.Duration `json:"keep"` // at least a day
}

// Day and Year are what the ages of certificates are counted in. A year is never
// shorter than one of the calendar's.
const (
	Day  = 24 * time.Hour
	Year = 366 * Day
)

const (
	minSpool = 64
	maxSpool = 1 << 20
	maxName  = 128 // bytes of an origin
)

// LogDir is the folder of the daemon's own log; empty where it has none.
func (c Config) LogDir() string {
	switch {
	case c.Proof.LogURL != "":
		return ""
	case c.Proof.LogDir != "":
		return c.Proof.LogDir
	}
	return filepath.Join(c.StateDir, "log")
}

// KeysDir is the folder of the keys of node, operator and log.
func (c Config) KeysDir() string { return filepath.Join(c.StateDir, "keys") }

// CertificatesDir is the folder of the certificates.
func (c Config) CertificatesDir() string { return filepath.Join(c.StateDir, "certificates") }

// DevPolicy is the path at which --dev leaves the policy that a tenant pins; empty
// without --dev.
func (c Config) DevPolicy() string {
	if c.Dev == "" {
		return ""
	}
	return filepath.Join(c.Dev, "policy")
}

// UsesTPM tells whether anything is asked of a TPM.
func (c Config) UsesTPM() bool {
	return c.Proof.NodeKey == "tpm" || c.Proof.OperatorKey == "tpm" || c.Proof.Measured
}

func (c Config) proofFaults() Faults {
	var fs Faults
	p := c.Proof
	add := func(key, value, why string) {
		fs = append(fs, Fault{Key: key, Value: value, Why: why, Write: "write " + fieldOf(key).write})
	}
	for _, f := range []struct{ key, path string }{
		{"proof.log_dir", p.LogDir}, {"proof.client_cert", p.ClientCert}, {"proof.client_key", p.ClientKey}, {"proof.client_ca", p.ClientCA},
		{"proof.witness_policy", p.WitnessPolicy}, {"proof.tpm", p.TPM},
	} {
		if f.path != "" && !filepath.IsAbs(f.path) {
			add(f.key, strconv.Quote(f.path), "is not an absolute path")
		}
	}
	fs = append(fs, c.logFaults()...)
	if strings.ContainsFunc(p.Origin, badInName) || len(p.Origin) > maxName {
		add("proof.origin", strconv.Quote(p.Origin), "cannot be the name of a log")
	}
	for _, f := range []struct{ key, place string }{{"proof.node_key", p.NodeKey}, {"proof.operator_key", p.OperatorKey}} {
		if !slices.Contains(KeyPlaces, f.place) {
			add(f.key, strconv.Quote(f.place), "is no place for a key")
		}
	}
	if c.UsesTPM() && p.TPM == "" {
		add("proof.tpm", `""`, "is empty, and a key or proof.measured needs one")
	}
	if p.SpoolMax < minSpool || p.SpoolMax > maxSpool {
		add("proof.spool_max", strconv.Itoa(p.SpoolMax), "is out of range")
	}
	if c.Certificates.Keep < Day {
		add("certificates.keep", age(c.Certificates.Keep), "is less than a day")
	}
	return fs
}

// badInName: what C2SP signed-note forbids in a key's name, and control characters.
func badInName(r rune) bool {
	return r == '+' || unicode.IsSpace(r) || unicode.IsControl(r) || r == unicode.ReplacementChar
}

// logFaults: a log is kept here or elsewhere, never where a drive's data can lie.
func (c Config) logFaults() Faults {
	var fs Faults
	p := c.Proof
	if p.LogURL == "" {
		for _, dir := range c.DriveDirs {
			if rel, err := filepath.Rel(dir, c.LogDir()); p.LogDir != "" && err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
				fs = append(fs, Fault{Key: "proof.log_dir", Value: strconv.Quote(p.LogDir),
					Why: fmt.Sprintf("lies beneath %s, where the engine can write", dir), Write: "name a folder that is beneath none of drive_dirs"})
			}
		}
		return fs
	}
	if u, err := url.Parse(p.LogURL); err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.User != nil {
		fs = append(fs, Fault{Key: "proof.log_url", Value: strconv.Quote(p.LogURL), Why: "is not the address of a log over TLS",
			Write: "write " + fieldOf("proof.log_url").write})
	}
	if p.LogDir != "" {
		fs = append(fs, Fault{Key: "proof.log_dir", Value: strconv.Quote(p.LogDir), Why: "has no place beside proof.log_url, which is another log",
			Write: "leave out one of the two"})
	}
	if p.Origin != "" {
		fs = append(fs, Fault{Key: "proof.origin", Value: strconv.Quote(p.Origin), Why: "names the daemon's own log, and proof.log_url is another",
			Write: "leave out one of the two"})
	}
	for _, f := range []struct{ key, path string }{
		{"proof.client_cert", p.ClientCert}, {"proof.client_key", p.ClientKey}, {"proof.client_ca", p.ClientCA}, {"proof.witness_policy", p.WitnessPolicy},
	} {
		if f.path == "" {
			fs = append(fs, Fault{Key: f.key, Value: `""`, Why: "is empty, and proof.log_url needs it", Write: "write " + fieldOf(f.key).write})
		}
	}
	return fs
}

// setAge takes a number of years, of days, or a time with Go's units.
func setAge(dst *time.Duration, v any) error {
	s, ok := v.(string)
	if !ok {
		return setDuration(dst, v)
	}
	for suffix, unit := range map[string]time.Duration{"y": Year, "d": Day} {
		digits, ok := strings.CutSuffix(s, suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 32)
		if err != nil {
			return fmt.Errorf("is not a number of years or days")
		}
		if n > uint64(100*Year/unit) {
			return fmt.Errorf("is more than a hundred years")
		}
		*dst = time.Duration(n) * unit
		return nil
	}
	return setDuration(dst, v)
}

// age writes a duration as setAge reads it.
func age(d time.Duration) string {
	switch {
	case d > 0 && d%Year == 0:
		return strconv.FormatInt(int64(d/Year), 10) + "y"
	case d > 0 && d%Day == 0:
		return strconv.FormatInt(int64(d/Day), 10) + "d"
	}
	return d.String()
}
