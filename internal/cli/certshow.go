package cli

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"vacate/proof"
)

func (a *app) certificateShowCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "show FILE",
		Short: "Show what a certificate holds: its records and the annex, without judging them",
		Long: "Show prints the records of a certificate and the fields of its annex, each with where it comes from. It verifies nothing: " +
			"`vacate certificate verify` does.",
		Args: needArgs(1, 1, "one file"),
		RunE: func(_ *cobra.Command, args []string) error {
			b, err := a.readFile(args[0], maxCertificates)
			if err != nil {
				return err
			}
			for i, one := range bundles(b) {
				if i > 0 {
					fmt.Fprintln(a.out)
				}
				if err := a.showCertificate(args[0], one); err != nil {
					return err
				}
			}
			return nil
		},
	}
	return c
}

// bundleView is what a certificate holds.
type bundleView struct {
	Records     []proof.Record     `json:"records"`
	Annex       *proof.Annex       `json:"annex,omitempty"` // with what persons added
	Missing     []string           `json:"missing"`         // fields that require human entry
	Completions []proof.Completion `json:"completions"`
	Verified    bool               `json:"verified"` // always false
}

func readBundle(b []byte) (v bundleView, err error) {
	bundle, err := proof.ParseBundle(b)
	if err != nil {
		return v, err
	}
	if v.Records, err = bundle.Parsed(); err != nil {
		return v, err
	}
	v.Missing, v.Completions = []string{}, []proof.Completion{}
	var all []proof.Completed
	for _, e := range bundle.Completions {
		c, err := proof.ReadCompletion(e)
		if err != nil {
			return v, err
		}
		v.Completions = append(v.Completions, c)
		all = append(all, proof.Completed{Completion: c})
	}
	if len(bundle.Annex) == 0 {
		return v, nil
	}
	annex, err := proof.ParseAnnex(bundle.Annex)
	if err != nil {
		return v, err
	}
	filled := annex.Filled(all)
	v.Annex, v.Missing = &filled, orEmpty(filled.Missing())
	return v, nil
}

func (a *app) showCertificate(file string, b []byte) error {
	v, err := readBundle(b)
	if err != nil {
		return &ExitError{Code: ExitVerify, Err: fmt.Errorf("%s is no certificate: %w", file, err), Next: "give it as `vacate certificate get` wrote it"}
	}
	if a.format != formatTable {
		return encode(a.out, a.format, v)
	}
	p := a.paint(a.out)
	fmt.Fprintln(a.out, p.yellow("not verified: this is what the file says (vacate certificate verify judges it)"))
	var rows [][]cell
	for _, r := range v.Records {
		size := ""
		if r.Bytes > 0 {
			size = formatSize(r.Bytes)
		}
		rows = append(rows, []cell{plain(string(r.Type)), plain(dash(r.LeaseID)), plain(shortID(r.NodeID)), plain(strconv.FormatUint(r.NodeSeq, 10)),
			plain(size), plain(string(r.KeyMode)), plain(r.Result)})
	}
	table(a.out, p, []string{"RECORD", "LEASE", "NODE", "NUMBER", "SIZE", "KEY", "RESULT"}, rows)
	if v.Annex == nil {
		return nil
	}
	fmt.Fprintln(a.out)
	rows = nil
	for _, f := range v.Annex.Fields() {
		source := cell{text: printable(f.Fact.Source)}
		if f.Fact.Source == proof.SourceHuman {
			source.paint = p.yellow
		}
		rows = append(rows, []cell{plain(f.Path), source, plain(dash(f.Fact.Value))})
	}
	table(a.out, p, []string{"FIELD", "SOURCE", "VALUE"}, rows)
	return nil
}
