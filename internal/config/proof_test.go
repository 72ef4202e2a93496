package config

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestProofKeys(t *testing.T) {
	const remote = "proof: {log_url: 'https://log.example.org/a', client_cert: /c, client_key: /k, client_ca: /ca, witness_policy: /w}"
	tests := []struct {
		name, text string
		want       func(*Config)
		logDir     string
	}{
		{"defaults", "", func(*Config) {}, "/var/lib/vacate/log"},
		{"own log", "proof: {log_dir: /srv/log, origin: log.example.org/a, spool_max: 64}",
			func(c *Config) {
				c.Proof.LogDir, c.Proof.Origin, c.Proof.SpoolMax = "/srv/log", "log.example.org/a", 64
			}, "/srv/log"},
		{"another's log", remote, func(c *Config) {
			c.Proof.LogURL, c.Proof.WitnessPolicy = "https://log.example.org/a", "/w"
			c.Proof.ClientCert, c.Proof.ClientKey, c.Proof.ClientCA = "/c", "/k", "/ca"
		}, ""},
		{"TPM", "proof: {node_key: tpm, tpm: /run/swtpm.sock, measured: true}",
			func(c *Config) { c.Proof.NodeKey, c.Proof.TPM, c.Proof.Measured = "tpm", "/run/swtpm.sock", true }, "/var/lib/vacate/log"},
		{"days", "certificates: {keep: 400d}", func(c *Config) { c.Certificates.Keep = 400 * Day }, "/var/lib/vacate/log"},
		{"years", "certificates: {keep: 7y}", func(c *Config) { c.Certificates.Keep = 7 * Year }, "/var/lib/vacate/log"},
		{"hours", "certificates: {keep: 36h}", func(c *Config) { c.Certificates.Keep = 36 * time.Hour }, "/var/lib/vacate/log"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := load(t, tt.text, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			want := Default()
			tt.want(&want)
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("configuration (-want +got):\n%s", d)
			}
			if got.LogDir() != tt.logDir {
				t.Errorf("LogDir = %q, want %q", got.LogDir(), tt.logDir)
			}
			back, err := load(t, string(got.YAML()), nil, nil)
			if err != nil {
				t.Fatalf("loading what YAML printed: %v", err)
			}
			if d := cmp.Diff(got, back); d != "" {
				t.Errorf("through YAML (-want +got):\n%s", d)
			}
		})
	}
}

func TestProofFaults(t *testing.T) {
	tests := []struct {
		text string
		want []string // keys with a fault
	}{
		{"proof: {log_dir: log}", []string{"proof.log_dir"}},
		{"proof: {log_dir: /dev/log}", []string{"proof.log_dir"}},
		{"proof: {log_url: 'http://log'}", []string{"proof.log_url", "proof.client_cert", "proof.client_key", "proof.client_ca", "proof.witness_policy"}},
		{"proof: {log_url: 'https://log', log_dir: /a, origin: b, client_cert: /c, client_key: /k, client_ca: /ca, witness_policy: /w}",
			[]string{"proof.log_dir", "proof.origin"}},
		{"proof: {origin: 'a b'}", []string{"proof.origin"}},
		{"proof: {origin: 'a+b'}", []string{"proof.origin"}},
		{"proof: {origin: " + strings.Repeat("a", 129) + "}", []string{"proof.origin"}},
		{"proof: {node_key: cloud, operator_key: ''}", []string{"proof.node_key", "proof.operator_key"}},
		{"proof: {measured: true, tpm: ''}", []string{"proof.tpm"}},
		{"proof: {spool_max: 63}", []string{"proof.spool_max"}},
		{"proof: {witness_policy: w}", []string{"proof.witness_policy"}},
		{"certificates: {keep: 6}", []string{"certificates.keep"}},
		{"certificates: {keep: 1h}", []string{"certificates.keep"}},
		{"certificates: {keep: 101y}", []string{"certificates.keep"}},
		{"certificates: {keep: -1y}", []string{"certificates.keep"}},
		{"certificates: {keep: 18446744073709551616d}", []string{"certificates.keep"}},
	}
	for _, tt := range tests {
		_, err := load(t, tt.text, nil, nil)
		var faults Faults
		errors.As(err, &faults)
		var got []string
		for _, f := range faults {
			got = append(got, f.Key)
			if f.Why == "" || f.Write == "" {
				t.Errorf("%s: the fault of %s does not say what to do", tt.text, f.Key)
			}
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s: keys with faults (-want +got):\n%s\n%v", tt.text, d, err)
		}
	}
}
