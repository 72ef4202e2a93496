package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/proof"
)

func (a *app) policyCommand() *cobra.Command {
	return group("policy", "The file that a tenant pins before its lease: whom to trust", a.policyExportCommand(), a.policyShowCommand())
}

func (a *app) policyExportCommand() *cobra.Command {
	var out output
	c := &cobra.Command{
		Use:   "export",
		Short: "Write the policy: the keys of log, witnesses, node and operator",
		Long: "Export prints the policy of the daemon, for tenants to keep before they open a lease: a certificate is checked against it. " +
			"It holds public keys only. A tenant should compare it with what it gets elsewhere (the operator's site, another tenant).",
		Example: "vacate policy export > policy",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			if out.path == "" {
				out.path = "-"
			}
			return a.query(func(ctx context.Context, c *client.Client) error {
				return a.fetch(ctx, out, "policy", func(ctx context.Context) ([]byte, error) {
					res, err := c.Trust.Policy(ctx, &vacatev1.TrustServicePolicyRequest{})
					return res.GetPolicy(), err
				})
			})
		},
	}
	out.add(c, "file to write (default -)")
	return c
}

// policyView is what a policy says.
type policyView struct {
	Logs      []policyKeyView `json:"logs"`
	Witnesses []policyKeyView `json:"witnesses"`
	Groups    []groupView     `json:"groups"`   // of witnesses and other groups
	Quorum    bool            `json:"quorum"`   // witnesses are needed
	QuorumOf  string          `json:"quorumOf"` // the witness or group that has to sign, or none
	Nodes     []policyKeyView `json:"nodes"`
	Operators []policyKeyView `json:"operators"`
	Persons   []policyKeyView `json:"persons"`
	TPMs      []policyTPMView `json:"tpms"`
}

type groupView struct {
	Name    string   `json:"name"`
	Need    string   `json:"need"` // all, any, or how many
	Members []string `json:"members"`
}

type policyTPMView struct {
	NodeID string `json:"nodeId"`
	Key    string `json:"key"`
	Boots  string `json:"boots"` // digests of the boots that are known; - for any
}

type policyKeyView struct {
	Name      string `json:"name"`
	Key       string `json:"key"`
	URL       string `json:"url,omitempty"`
	NotBefore string `json:"notBefore,omitempty"`
	NotAfter  string `json:"notAfter,omitempty"`
}

func (a *app) policyShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show FILE",
		Short: "Check a policy's form and show whom it trusts: offline",
		Args:  needArgs(1, 1, "one file"),
		RunE: func(_ *cobra.Command, args []string) error {
			_, policy, err := (&policyFlag{path: args[0]}).read(a)
			if err != nil {
				return err
			}
			return a.printPolicy(policy)
		},
	}
}

func (a *app) printPolicy(policy *proof.Policy) error {
	v := policyView{Logs: []policyKeyView{}, Witnesses: []policyKeyView{}, Groups: []groupView{}, TPMs: []policyTPMView{}, Quorum: policy.NeedsWitnesses(),
		Nodes: pinnedViews(policy.Nodes()), Operators: pinnedViews(policy.Operators()), Persons: pinnedViews(policy.Persons())}
	for _, l := range policy.Logs() {
		v.Logs = append(v.Logs, policyKeyView{Name: l.Origin, Key: l.VKey, URL: l.URL})
	}
	for _, w := range policy.Witnesses() {
		v.Witnesses = append(v.Witnesses, policyKeyView{Name: w.Name, Key: w.VKey, URL: w.URL})
	}
	for line := range strings.Lines(string(policy.Marshal())) { // its one form: no comments, fields with a blank between
		switch f := strings.Fields(line); f[0] {
		case "group":
			v.Groups = append(v.Groups, groupView{Name: f[1], Need: f[2], Members: f[3:]})
		case "quorum":
			v.QuorumOf = f[1]
		case "tpm":
			v.TPMs = append(v.TPMs, policyTPMView{NodeID: f[1], Key: f[2], Boots: f[3]})
		}
	}
	if a.format != formatTable {
		return encode(a.out, a.format, v)
	}
	a.showPolicy(v)
	return nil
}

func (a *app) showPolicy(v policyView) {
	p := a.paint(a.out)
	var rows [][]cell
	for _, kind := range []struct {
		word string
		keys []policyKeyView
	}{{"log", v.Logs}, {"witness", v.Witnesses}, {"node", v.Nodes}, {"operator", v.Operators}, {"person", v.Persons}} {
		for _, k := range kind.keys {
			rows = append(rows, []cell{plain(kind.word), plain(k.Name), plain(dash(k.NotBefore)), plain(dash(k.NotAfter)), plain(k.Key)})
		}
	}
	for _, t := range v.TPMs {
		rows = append(rows, []cell{plain("tpm"), plain(t.NodeID), plain("-"), plain("-"), plain(t.Key)})
	}
	table(a.out, p, []string{"WHO", "NAME", "FROM", "UNTIL", "KEY"}, rows)
	for _, g := range v.Groups {
		fmt.Fprintf(a.out, "group %s is %s of %s\n", printable(g.Name), printable(g.Need), printable(strings.Join(g.Members, ", ")))
	}
	if !v.Quorum {
		fmt.Fprintf(a.out, "%s it wants no witnesses: a certificate then shows nothing against a log that is rewritten\n", p.yellow("note:"))
		return
	}
	fmt.Fprintf(a.out, "%s %s has to sign for every checkpoint\n", p.bold("quorum:"), printable(v.QuorumOf))
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func pinnedViews(keys []proof.PinnedKey) []policyKeyView {
	vs := make([]policyKeyView, 0, len(keys))
	for _, k := range keys {
		v := policyKeyView{Name: k.Name, Key: k.Key.String()}
		if !k.NotBefore.IsZero() {
			v.NotBefore = proof.FormatTime(k.NotBefore)
		}
		if !k.NotAfter.IsZero() {
			v.NotAfter = proof.FormatTime(k.NotAfter)
		}
		vs = append(vs, v)
	}
	return vs
}

func (a *app) keysCommand() *cobra.Command {
	return group("keys", "Show, rotate and make the keys that sign", a.keysShowCommand(), a.keysRotateCommand(), a.keysMakeCommand())
}

func (a *app) keysShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "Show the daemon's keys, where each lies and since when it counts",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.query(func(ctx context.Context, c *client.Client) error {
				res, err := c.Trust.Keys(ctx, &vacatev1.TrustServiceKeysRequest{})
				if err != nil {
					return err
				}
				return a.printKeys(res.GetKeys())
			})
		},
	}
}

type keyView struct {
	Role      string `json:"role"`
	Name      string `json:"name"`
	PublicKey string `json:"publicKey"`
	KeyID     string `json:"keyId"`
	Where     string `json:"where"`
	Since     string `json:"since"`
	Until     string `json:"until,omitempty"`
}

func keyViewOf(k *vacatev1.Key) *keyView {
	if k == nil {
		return nil
	}
	return &keyView{Role: k.GetRole(), Name: k.GetName(), PublicKey: k.GetPublicKey(), KeyID: k.GetKeyId(), Where: k.GetWhere(),
		Since: instant(k.GetSince()), Until: instant(k.GetUntil())}
}

func (a *app) printKeys(keys []*vacatev1.Key) error {
	if a.format != formatTable {
		vs := make([]*keyView, 0, len(keys))
		for _, k := range keys {
			vs = append(vs, keyViewOf(k))
		}
		return encode(a.out, a.format, vs)
	}
	var rows [][]cell
	for _, k := range keys {
		rows = append(rows, []cell{plain(k.GetRole()), plain(dash(k.GetWhere())), plain(shortTime(k.GetSince(), a.loc)),
			plain(dash(shortTime(k.GetUntil(), a.loc))), plain(shortID(k.GetKeyId())), plain(k.GetName()), plain(k.GetPublicKey())})
	}
	table(a.out, a.paint(a.out), []string{"ROLE", "WHERE", "SINCE", "UNTIL", "ID", "NAME", "KEY"}, rows)
	return nil
}

type rotationView struct {
	Old     *keyView `json:"old"`
	New     *keyView `json:"new"`
	NodeSeq uint64   `json:"nodeSeq,omitempty"`
	Rotated bool     `json:"rotated"`
}

func (a *app) keysRotateCommand() *cobra.Command {
	var plan bool
	c := &cobra.Command{
		Use:   "rotate node|operator",
		Short: "Make a new key in place of one, and record that in the log",
		Long: "Rotate makes a new key for the node's records, or for the operator's. The change is a record, signed by both keys, so that " +
			"certificates made before stay good. Tenants that pinned the policy need it anew for leases that they open from now on. " +
			"A log's key is not rotated: another key is another log.",
		Args:      needArgs(1, 1, "node or operator"),
		ValidArgs: []string{"node", "operator"},
		RunE: func(_ *cobra.Command, args []string) error {
			return a.call(func(ctx context.Context, c *client.Client) error {
				res, err := c.Trust.Rotate(ctx, &vacatev1.TrustServiceRotateRequest{Role: args[0], Plan: plan})
				if err != nil {
					return err
				}
				if a.format != formatTable {
					return encode(a.out, a.format, rotationView{Old: keyViewOf(res.GetOld()), New: keyViewOf(res.GetNew()), NodeSeq: res.GetNodeSeq(), Rotated: !plan})
				}
				if plan {
					fmt.Fprintf(a.out, "plan: %s would be replaced by a new key; nothing was changed\n", printable(res.GetOld().GetPublicKey()))
					return nil
				}
				fmt.Fprintf(a.out, "%s  %s\n%s  %s\nrecord  %d\n", "old", printable(res.GetOld().GetPublicKey()),
					"new", printable(res.GetNew().GetPublicKey()), res.GetNodeSeq())
				fmt.Fprintln(a.out, "give the policy anew to tenants, and to a log that is kept elsewhere, which takes no record of a key it does not know: vacate policy export")
				return nil
			})
		},
	}
	c.Flags().BoolVar(&plan, "plan", false, "show what would be done; do nothing")
	return c
}

// now is the verifier's clock.
func (a *app) now() time.Time { return time.Now() }
