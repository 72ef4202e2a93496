package config

import (
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"time"
)

// A field is one key of the configuration.
type field struct {
	key   string
	write string // what to write, for faults and for the reference
	set   func(c *Config, v any) error
	get   func(c *Config) any // as YAML would hold it
}

// fields are all keys there are, in the order in which they are printed.
var fields = []field{
	{"dev", "a folder that holds everything, without root",
		func(c *Config, v any) error { return setString(&c.Dev, v) },
		func(c *Config) any { return c.Dev }},
	{"state_dir", "the absolute path of a folder on a disk that survives a reboot",
		func(c *Config, v any) error { return setString(&c.StateDir, v) },
		func(c *Config) any { return c.StateDir }},
	{"run_dir", "the absolute path of a folder for sockets",
		func(c *Config, v any) error { return setString(&c.RunDir, v) },
		func(c *Config) any { return c.RunDir }},
	{"drive_dirs", "a list of absolute paths of folders, as /dev",
		func(c *Config, v any) error { return setStrings(&c.DriveDirs, v) },
		func(c *Config) any { return c.DriveDirs }},
	{"device_dir", "the absolute path of a folder for links to block devices, as /dev/vacate, or nothing",
		func(c *Config, v any) error { return setString(&c.DeviceDir, v) },
		func(c *Config) any { return c.DeviceDir }},
	{"drive_engine", "auto, io_uring, mmap or pread",
		func(c *Config, v any) error { return setString(&c.DriveEngine, v) },
		func(c *Config) any { return c.DriveEngine }},
	{"poll_budget", "a time with its unit, from 0s to 50us",
		func(c *Config, v any) error { return setDuration(&c.PollBudget, v) },
		func(c *Config) any { return c.PollBudget.String() }},
	{"max_connections", "a number from 1 to 65536",
		func(c *Config, v any) error { return setInt(&c.MaxConnections, v) },
		func(c *Config) any { return c.MaxConnections }},
	{"drain_deadline", "a time with its unit, from 1ms to 10m, as 2s",
		func(c *Config, v any) error { return setDuration(&c.DrainDeadline, v) },
		func(c *Config) any { return c.DrainDeadline.String() }},
	{"operators", "a list of uids as `id -u NAME` prints them",
		func(c *Config, v any) error { return setUIDs(&c.Operators, v) },
		func(c *Config) any { return c.Operators }},
	{"auditors", "a list of uids as `id -u NAME` prints them",
		func(c *Config, v any) error { return setUIDs(&c.Auditors, v) },
		func(c *Config) any { return c.Auditors }},
	{"log.level", "debug, info, warn or error",
		func(c *Config, v any) error { return setLevel(&c.Log.Level, v) },
		func(c *Config) any { return strings.ToLower(c.Log.Level.String()) }},
	{"log.format", "text or json",
		func(c *Config, v any) error { return setString(&c.Log.Format, v) },
		func(c *Config) any { return c.Log.Format }},
	{"metrics.per_lease", "true or false",
		func(c *Config, v any) error { return setBool(&c.Metrics.PerLease, v) },
		func(c *Config) any { return c.Metrics.PerLease }},
	{"proof.log_dir", "the absolute path of a folder that is beneath no drive's",
		func(c *Config, v any) error { return setString(&c.Proof.LogDir, v) },
		func(c *Config) any { return c.Proof.LogDir }},
	{"proof.log_url", "the address of a log that others run, as https://log.example.org",
		func(c *Config, v any) error { return setString(&c.Proof.LogURL, v) },
		func(c *Config) any { return c.Proof.LogURL }},
	{"proof.client_cert", "the absolute path of a certificate in PEM",
		func(c *Config, v any) error { return setString(&c.Proof.ClientCert, v) },
		func(c *Config) any { return c.Proof.ClientCert }},
	{"proof.client_key", "the absolute path of the certificate's key in PEM",
		func(c *Config, v any) error { return setString(&c.Proof.ClientKey, v) },
		func(c *Config) any { return c.Proof.ClientKey }},
	{"proof.client_ca", "the absolute path of the certificates in PEM that the log's is checked against",
		func(c *Config, v any) error { return setString(&c.Proof.ClientCA, v) },
		func(c *Config) any { return c.Proof.ClientCA }},
	{"proof.witness_policy", "the absolute path of a file with lines of a C2SP tlog-policy",
		func(c *Config, v any) error { return setString(&c.Proof.WitnessPolicy, v) },
		func(c *Config) any { return c.Proof.WitnessPolicy }},
	{"proof.origin", "the log's name, as log.example.org/region, without blanks and plus signs",
		func(c *Config, v any) error { return setString(&c.Proof.Origin, v) },
		func(c *Config) any { return c.Proof.Origin }},
	{"proof.node_key", "file or tpm",
		func(c *Config, v any) error { return setString(&c.Proof.NodeKey, v) },
		func(c *Config) any { return c.Proof.NodeKey }},
	{"proof.operator_key", "file or tpm",
		func(c *Config, v any) error { return setString(&c.Proof.OperatorKey, v) },
		func(c *Config) any { return c.Proof.OperatorKey }},
	{"proof.tpm", "the absolute path of a TPM's device, or of a software TPM's socket",
		func(c *Config, v any) error { return setString(&c.Proof.TPM, v) },
		func(c *Config) any { return c.Proof.TPM }},
	{"proof.measured", "true or false",
		func(c *Config, v any) error { return setBool(&c.Proof.Measured, v) },
		func(c *Config) any { return c.Proof.Measured }},
	{"proof.spool_max", "a number from 64 to 1048576",
		func(c *Config, v any) error { return setInt(&c.Proof.SpoolMax, v) },
		func(c *Config) any { return c.Proof.SpoolMax }},
	{"certificates.keep", "a number of years or days, as 6y or 400d",
		func(c *Config, v any) error { return setAge(&c.Certificates.Keep, v) },
		func(c *Config) any { return age(c.Certificates.Keep) }},
	{"danger_zone.enabled", "true or false",
		func(c *Config, v any) error { return setBool(&c.DangerZone.Enabled, v) },
		func(c *Config) any { return c.DangerZone.Enabled }},
	{"danger_zone.force_forward", "a list of absolute paths of drives",
		func(c *Config, v any) error { return setStrings(&c.DangerZone.ForceForward, v) },
		func(c *Config) any { return c.DangerZone.ForceForward }},
	{"danger_zone.sandbox", "on or off",
		func(c *Config, v any) error { return setOff(&c.DangerZone.SandboxOff, v) },
		func(c *Config) any { return map[bool]string{false: "on", true: "off"}[c.DangerZone.SandboxOff] }},
	{"danger_zone.locked_memfd", "true or false",
		func(c *Config, v any) error { return setBool(&c.DangerZone.LockedMemfd, v) },
		func(c *Config) any { return c.DangerZone.LockedMemfd }},
}

// fieldOf is the field of a key, or nil.
func fieldOf(key string) *field {
	for i := range fields {
		if fields[i].key == key {
			return &fields[i]
		}
	}
	return nil
}

// wrongType says what was found where something else belongs.
func wrongType(v any) error {
	switch v.(type) {
	case nil:
		return fmt.Errorf("has no value")
	case string:
		return fmt.Errorf("is not what belongs here")
	case bool:
		return fmt.Errorf("is a truth value")
	case int, int64, uint64, float64:
		return fmt.Errorf("is a number")
	case []any:
		return fmt.Errorf("is a list")
	case map[string]any:
		return fmt.Errorf("holds keys of its own")
	default:
		return fmt.Errorf("is a %T", v)
	}
}

func setString(dst *string, v any) error {
	s, ok := v.(string)
	if !ok {
		return wrongType(v)
	}
	if strings.ContainsRune(s, 0) {
		return fmt.Errorf("holds a zero byte")
	}
	*dst = s
	return nil
}

// setBool takes a truth value, or (from the environment and flags) its name.
func setBool(dst *bool, v any) error {
	switch v := v.(type) {
	case bool:
		*dst = v
		return nil
	case string:
		switch v {
		case "true":
			*dst = true
			return nil
		case "false":
			*dst = false
			return nil
		}
	}
	return wrongType(v)
}

// setOff takes "on" or "off", or a truth value, which the two are in older YAML.
func setOff(dst *bool, v any) error {
	switch v {
	case "on", "true", true:
		*dst = false
	case "off", "false", false:
		*dst = true
	default:
		return wrongType(v)
	}
	return nil
}

func toInt(v any) (int64, error) {
	switch v := v.(type) {
	case int:
		return int64(v), nil
	case int64:
		return v, nil
	case uint64:
		if v > math.MaxInt64 {
			return 0, fmt.Errorf("is out of range")
		}
		return int64(v), nil
	case string:
		n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("is not a whole number")
		}
		return n, nil
	case float64:
		return 0, fmt.Errorf("is not a whole number")
	}
	return 0, wrongType(v)
}

func setInt(dst *int, v any) error {
	n, err := toInt(v)
	if err != nil {
		return err
	}
	*dst = int(n)
	return nil
}

func setDuration(dst *time.Duration, v any) error {
	s, ok := v.(string)
	if !ok {
		if _, err := toInt(v); err == nil {
			return fmt.Errorf("has no unit")
		}
		return wrongType(v)
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("is not a time")
	}
	*dst = d
	return nil
}

func setLevel(dst *slog.Level, v any) error {
	s, _ := v.(string)
	switch s {
	case "debug":
		*dst = slog.LevelDebug
	case "info":
		*dst = slog.LevelInfo
	case "warn":
		*dst = slog.LevelWarn
	case "error":
		*dst = slog.LevelError
	default:
		return fmt.Errorf("is not a level")
	}
	return nil
}

// toList takes a list, or (from the environment and flags) its parts with
// commas between them. The empty string is the empty list.
func toList(v any) ([]any, error) {
	switch v := v.(type) {
	case []any:
		return v, nil
	case string:
		var out []any
		for part := range strings.SplitSeq(v, ",") {
			if part = strings.TrimSpace(part); part != "" {
				out = append(out, part)
			}
		}
		return out, nil
	}
	return nil, wrongType(v)
}

func setStrings(dst *[]string, v any) error {
	list, err := toList(v)
	if err != nil {
		return err
	}
	var out []string
	for _, e := range list {
		var s string
		if err := setString(&s, e); err != nil {
			return fmt.Errorf("holds %v, which %w", e, err)
		}
		out = append(out, s)
	}
	*dst = out
	return nil
}

func setUIDs(dst *[]uint32, v any) error {
	list, err := toList(v)
	if err != nil {
		return err
	}
	var out []uint32
	for _, e := range list {
		n, err := toInt(e)
		if err != nil {
			return fmt.Errorf("holds %v, which %w", e, err)
		}
		// (uid_t)-1 means "no uid" to the kernel.
		if n < 0 || n >= math.MaxUint32 {
			return fmt.Errorf("holds %d, which no user can have", n)
		}
		out = append(out, uint32(n))
	}
	*dst = out
	return nil
}
