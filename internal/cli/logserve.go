package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"vacate/internal/keyring"
	"vacate/internal/translog"
	"vacate/internal/translog/witness"
	"vacate/proof"
)

// untilSignal runs a process that serves until it is told to stop.
func untilSignal(c *cobra.Command, run func(ctx context.Context) error) error {
	ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil && !(ctx.Err() != nil && errors.Is(err, context.Canceled)) {
		return err
	}
	return nil
}

// logger writes what a process of its own tells, to standard error.
func (a *app) logger() *slog.Logger { return slog.New(slog.NewTextHandler(a.err, nil)) }

func (a *app) logServeCommand() *cobra.Command {
	var cfg translog.ServeConfig
	var witnesses, keys string
	c := &cobra.Command{
		Use:   "serve --dir DIR --origin NAME --policy FILE --listen ADDRESS --cert FILE --key FILE --client-ca FILE",
		Short: "Run a transparency log for a fleet, on a machine of its own",
		Long: "Serve takes records of the nodes that the policy names, over mutual TLS, and publishes them for everybody to read. It runs until it is " +
			"stopped. Its key is made at the first start, in DIR/keys. The policy file is read again when it changes: add a node's line to let it in. " +
			"See docs/guide/log.md.",
		Example: "vacate log serve --dir /var/lib/vacate-log --origin log.example/1 --policy nodes.policy --listen :7443 \\\n" +
			"  --cert server.pem --key server.key --client-ca nodes-ca.pem --listen-tiles :7080 --witnesses witnesses.policy",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			for _, f := range []struct{ name, value string }{{"dir", cfg.Dir}, {"origin", cfg.Origin}, {"policy", cfg.PolicyFile}, {"listen", cfg.Listen},
				{"cert", cfg.CertFile}, {"key", cfg.KeyFile}, {"client-ca", cfg.ClientCAFile}} {
				if f.value == "" {
					return usageErrorf("--%s is missing", f.name)
				}
			}
			if keys == "" {
				keys = cfg.Dir + "/keys"
			}
			if witnesses != "" {
				var err error
				if cfg.Witnesses, err = a.readWitnesses(witnesses); err != nil {
					return err
				}
			}
			if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
				return err
			}
			ring, err := keyring.Open(keys, keyring.Options{LogName: cfg.Origin, LogOnly: true})
			if err != nil {
				return err
			}
			cfg.Signer, cfg.Log = ring.Log(), a.logger()
			cfg.Ready = func(listen, tiles net.Addr) { a.serving("log", cfg.Origin, publicKeyOf(ring), listen, tiles) }
			return untilSignal(c, func(ctx context.Context) error { return translog.Serve(ctx, cfg) })
		},
	}
	f := c.Flags()
	f.StringVar(&cfg.Dir, "dir", "", "folder of the log, made at the first start")
	f.StringVar(&cfg.Origin, "origin", "", "what the log calls itself, for ever, as log.example/1")
	f.StringVar(&cfg.PolicyFile, "policy", "", "file with the nodes and operators whose records are taken")
	f.StringVar(&cfg.Listen, "listen", "", "address to listen on for nodes and readers, over TLS")
	f.StringVar(&cfg.CertFile, "cert", "", "file with the server's certificate, in PEM")
	f.StringVar(&cfg.KeyFile, "key", "", "file with its private key, in PEM")
	f.StringVar(&cfg.ClientCAFile, "client-ca", "", "file with the certificates that nodes' certificates are signed by, in PEM")
	f.StringVar(&cfg.ListenTiles, "listen-tiles", "", "address to listen on for readers, over plain HTTP (default: none)")
	f.StringVar(&witnesses, "witnesses", "", "file with witness, group and quorum lines (C2SP tlog-policy): they are asked to cosign")
	f.StringVar(&keys, "keys", "", "folder of the log's key (default DIR/keys)")
	return c
}

// readWitnesses reads whom a log asks to cosign. A file that names nobody would be a
// log without witnesses, unsaid.
func (a *app) readWitnesses(file string) ([]byte, error) {
	text, policy, err := (&policyFlag{path: file}).read(a)
	if err != nil {
		return nil, err
	}
	if !policy.NeedsWitnesses() || !slices.ContainsFunc(policy.Witnesses(), func(w proof.PolicyWitness) bool { return w.URL != "" }) {
		return nil, usageErrorf("%s names no quorum, or no witness with an address: write lines as `witness NAME KEY http://…` and `quorum NAME`", file)
	}
	return text, nil
}

// publicKeyOf is the log's key as a policy has it.
func publicKeyOf(ring *keyring.Keyring) string {
	for _, k := range ring.Infos() {
		if k.Role == keyring.Log && k.Until.IsZero() {
			return k.Public
		}
	}
	return ""
}

// servingView is the first thing that a log or a witness prints.
type servingView struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Key    string `json:"key"` // as it stands in a policy
	Listen string `json:"listen"`
	Tiles  string `json:"tiles,omitempty"`
}

// serving says what policies have to know, and where readers go.
func (a *app) serving(kind, name, key string, listen, tiles net.Addr) {
	v := servingView{Kind: kind, Name: name, Key: key, Listen: listen.String()}
	if tiles != nil {
		v.Tiles = tiles.String()
	}
	if a.format != formatTable {
		if err := encodeLine(a.out, a.format, v); err != nil {
			fmt.Fprintf(a.err, "printing: %v\n", err)
		}
		return
	}
	line := "log " + v.Key
	if kind == "witness" {
		line = "witness " + name + " " + v.Key
	}
	fmt.Fprintf(a.out, "ready on %s\nfor policies: %s\n", v.Listen, line)
}

func (a *app) logWitnessCommand() *cobra.Command {
	var cfg witness.Config
	var policies []string
	c := &cobra.Command{
		Use:   "witness --dir DIR --name NAME --listen ADDRESS (--log-key KEY | --policy FILE)",
		Short: "Run a witness: it signs for logs that only ever grew",
		Long: "Witness cosigns the checkpoints of logs (C2SP tlog-witness), each only if the log has grown from the one before. Whoever trusts it knows that " +
			"the log was not rewritten, nor shows others another history. Tenants and auditors run it, on machines that are not the operator's; two " +
			"nodes can witness each other. Its key is made at the first start; the line for policies is printed.",
		Example: "vacate log witness --dir /var/lib/vacate-witness --name auditor.example/w1 --listen :7444 --policy policy",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			for _, file := range policies {
				_, policy, err := (&policyFlag{path: file}).read(a)
				if err != nil {
					return err
				}
				for _, l := range policy.Logs() {
					cfg.Logs = append(cfg.Logs, l.VKey)
				}
			}
			switch {
			case cfg.Dir == "" || cfg.Name == "" || cfg.Listen == "":
				return usageErrorf("--dir, --name and --listen are needed")
			case len(cfg.Logs) == 0:
				return usageErrorf("no log is named: add --policy FILE with a line that begins with log, or --log-key KEY")
			}
			cfg.Log = a.logger()
			cfg.Ready = func(addr net.Addr, key string) { a.serving("witness", cfg.Name, key, addr, nil) }
			return untilSignal(c, func(ctx context.Context) error { return witness.Serve(ctx, cfg) })
		},
	}
	f := c.Flags()
	f.StringVar(&cfg.Dir, "dir", "", "folder of the witness's key and of what it has signed: never restore it from a copy")
	f.StringVar(&cfg.Name, "name", "", "the witness's name in policies, as witness.example/1")
	f.StringVar(&cfg.Listen, "listen", "", "address to listen on")
	f.StringArrayVar(&cfg.Logs, "log-key", nil, "key of a log to witness, NAME+HASH+KEY")
	f.StringArrayVar(&policies, "policy", nil, "file with log lines: all of them are witnessed")
	f.StringVar(&cfg.CertFile, "cert", "", "file with a certificate, in PEM (default: plain HTTP; a cosignature proves itself)")
	f.StringVar(&cfg.KeyFile, "key", "", "file with its private key, in PEM")
	return c
}
