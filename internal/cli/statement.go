package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/proof"
)

func (a *app) statementCommand() *cobra.Command {
	var out output
	var policy policyFlag
	c := &cobra.Command{
		Use:   "statement [FILE]",
		Short: "How this host erases, from its live configuration, signed by its node; or what such a file says",
		Long: "Statement asks the daemon how it erases: the fields of NIST SP 800-88 Rev. 2, the ten items of a cryptographic erase statement, what was " +
			"observed of the host, and what cannot be excluded. Each field says where it comes from. With --out it writes the signed " +
			"document; with FILE it shows one, and checks its signature where --policy is given.",
		Args: needArgs(0, 1, "at most one file"),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 {
				b, err := a.readFile(args[0], proof.MaxStatement+1)
				if err != nil {
					return err
				}
				return a.showStatement(b, policy)
			}
			return a.query(func(ctx context.Context, c *client.Client) error {
				res, err := c.Trust.Statement(ctx, &vacatev1.TrustServiceStatementRequest{})
				switch {
				case err != nil:
					return err
				case out.path == "":
					return a.showStatement(res.GetStatement(), policy)
				}
				if err := a.write(out, res.GetStatement()); err != nil {
					return err
				}
				return a.wrote(out, "signed statement", res.GetStatement(), fileView{File: out.path, SizeBytes: len(res.GetStatement())})
			})
		},
	}
	policy.add(c)
	out.add(c, "write the signed document to this file")
	return c
}

// statementView is what a statement says, and whether its signature was checked.
type statementView struct {
	Verified  bool                `json:"verified"`
	Statement proof.HostStatement `json:"statement"`
}

func (a *app) showStatement(b []byte, policy policyFlag) error {
	var v statementView
	var err error
	if policy.path != "" || a.getenv("VACATE_POLICY") != "" {
		var trust *proof.Policy
		if _, trust, err = policy.read(a); err != nil {
			return err
		}
		if v.Statement, _, err = proof.OpenStatement(b, trust); err != nil {
			return &ExitError{Code: ExitVerify, Err: err, Next: "do not rely on it"}
		}
		v.Verified = true
	} else if v.Statement, err = proof.ReadStatement(b); err != nil {
		return &ExitError{Code: ExitVerify, Err: err}
	}
	if a.format != formatTable {
		return encode(a.out, a.format, v)
	}
	p := a.paint(a.out)
	s := v.Statement
	signed := cell{text: "not checked: add --policy FILE", paint: p.yellow}
	if v.Verified {
		signed = cell{text: "by the node's key", paint: p.green}
	}
	pairs(a.out, p, []pair{{"node", cell{text: s.NodeID, paint: p.bold}}, {"at", plain(s.At)}, {"signed", signed}})
	fmt.Fprintln(a.out)
	var rows [][]cell
	for _, f := range s.Config {
		rows = append(rows, []cell{plain(f.Name), plain(f.Fact.Source), plain(dash(f.Fact.Value))})
	}
	for _, f := range s.Fields() {
		if strings.HasPrefix(f.Path, "config.") {
			continue // shown above, by their names
		}
		rows = append(rows, []cell{plain(f.Path), plain(f.Fact.Source), plain(dash(f.Fact.Value))})
	}
	table(a.out, p, []string{"FIELD", "SOURCE", "VALUE"}, rows)
	fmt.Fprintf(a.out, "\n%s\n", p.bold("What this host cannot exclude"))
	for _, l := range s.Limits {
		fmt.Fprintf(a.out, "  %s\n", printable(l))
	}
	return nil
}
