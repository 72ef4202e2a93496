package cli

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"vacate/proof"
)

// verifyFlags are what a verifier adds to a certificate.
type verifyFlags struct {
	policy                policyFlag
	opened, revealed, aud string
	html                  string // certificate verify only
}

func (f *verifyFlags) add(c *cobra.Command) {
	f.policy.add(c)
	c.Flags().StringVar(&f.opened, "opened", "", "file with the receipt of the lease's opening: the certificate must be of that very lease")
	c.Flags().StringVar(&f.revealed, "revealed-key", "", "file with a key that turned up: 64 bytes, or 128 hexadecimal digits")
	c.Flags().StringVar(&f.aud, "ciphertext-audit", "", "file with the report of `vacate certificate audit-ciphertext`")
}

// options reads the files that the flags name.
func (f *verifyFlags) options(a *app) (o proof.Options, err error) {
	if f.opened != "" {
		b, err := a.readFile(f.opened, maxDocument)
		if err != nil {
			return o, err
		}
		if o.Opened, err = proof.ParseReceipt(b); err != nil {
			return o, &ExitError{Code: ExitVerify, Err: fmt.Errorf("%s: %w", f.opened, err), Next: "give the file as `vacate lease open --receipt` wrote it"}
		}
	}
	if f.revealed != "" {
		b, err := a.readFile(f.revealed, 4096)
		if err != nil {
			return o, err
		}
		if o.RevealedKey, err = keyBytes(b); err != nil {
			return o, usageErrorf("%s: %v", f.revealed, err)
		}
	}
	if f.aud != "" {
		if o.CiphertextAudit, err = a.readFile(f.aud, maxDocument); err != nil {
			return o, err
		}
	}
	return o, nil
}

// keyBytes takes a key as bytes or as hexadecimal digits.
func keyBytes(b []byte) ([]byte, error) {
	const n = 64
	if len(b) == n {
		return b, nil
	}
	b = bytes.TrimSpace(b)
	if len(b) != 2*n {
		return nil, errors.New("a lease's key has 64 bytes, or 128 hexadecimal digits")
	}
	return hex.AppendDecode(nil, b)
}

// verifyView is what is known of one certificate.
type verifyView struct {
	File   string        `json:"file"`
	Number int           `json:"number"` // of the certificate within the file, from 1
	OK     bool          `json:"ok"`
	Step   int           `json:"step,omitempty"` // the first that failed
	Name   string        `json:"name,omitempty"`
	Error  string        `json:"error,omitempty"`
	Result *proof.Result `json:"result,omitempty"`
}

func (a *app) certificateVerifyCommand() *cobra.Command {
	var flags verifyFlags
	c := &cobra.Command{
		Use:   "verify FILE… --policy FILE",
		Short: "Check certificates: offline, without the daemon, trusting nobody but the policy",
		Long: "Verify checks certificates in eleven steps, and names the first that fails (exit code 5). It prints what each claim " +
			"proves and what it does not. A file may hold several certificates, one a line, as `vacate tenant close` writes them. " +
			"It needs no network, no daemon, and no other file than these.",
		Example: "vacate certificate verify examples/good.json --policy examples/policy\n" +
			"# this very lease, and no other\n" +
			"vacate certificate verify ID.certificate.json --policy policy --opened ID.receipt.json\n" +
			"# one page to print and to file\n" +
			"vacate certificate verify ID.certificate.json --policy policy --html ID.certificate.html",
		Args: needArgs(1, -1, "at least one file"),
		RunE: func(_ *cobra.Command, files []string) error {
			policy, _, err := flags.policy.read(a)
			if err != nil {
				return err
			}
			opts, err := flags.options(a)
			if err != nil {
				return err
			}
			views := make([]verifyView, 0, len(files))
			var last []byte
			for _, file := range files {
				b, err := a.readFile(file, maxCertificates)
				if err != nil {
					return err
				}
				for i, bundle := range bundles(b) {
					views, last = append(views, verify(file, i+1, bundle, policy, opts)), bundle
				}
			}
			if flags.html == "-" {
				return usageErrorf("--html names a file: standard output has the result")
			}
			if flags.html != "" && len(views) != 1 {
				return usageErrorf("--html makes the page of one certificate, and these are %d: give them one by one", len(views))
			}
			if err := a.printVerified(views); err != nil || flags.html == "" {
				return err
			}
			return a.writePage(flags.html, last, policy, views[0].Result)
		},
	}
	flags.add(c)
	c.Flags().StringVar(&flags.html, "html", "", "write one certificate, where it is valid, as a page for an auditor's folder to this file")
	return c
}

// bundles are the certificates of a file, one a line, each with its line's end. A
// file that does not begin with one is a single one, to be rejected once.
func bundles(b []byte) [][]byte {
	if !bytes.HasPrefix(b, []byte(`{"v":`)) {
		return [][]byte{b}
	}
	all := bytes.SplitAfter(b, []byte{'\n'})
	if n := len(all) - 1; n > 0 && len(all[n]) == 0 {
		all = all[:n] // nothing after the last line's end
	}
	return all
}

func verify(file string, number int, bundle, policy []byte, o proof.Options) verifyView {
	v := verifyView{File: file, Number: number}
	res, err := proof.Verify(bundle, policy, o)
	if err == nil {
		v.OK, v.Result = true, res
		return v
	}
	v.Error = err.Error()
	if ve := (*proof.VerifyError)(nil); errors.As(err, &ve) {
		v.Step, v.Name, v.Error = int(ve.Step), ve.Name, ve.Err.Error()
	}
	return v
}

// errRejected is how verify ends where it rejected a certificate.
func errRejected(v verifyView) error {
	where := v.File
	if v.Number > 1 {
		where = fmt.Sprintf("%s, certificate %d", v.File, v.Number)
	}
	next := "do not rely on it; if it is as the operator gave it to you, ask for another and keep this one as evidence"
	switch {
	case v.Step == int(proof.StepWitnessed):
		next = "do not rely on it; ask for it again when the witnesses have signed (`vacate certificate get ID --force`)"
	case v.Step == int(proof.StepAnnex) && strings.HasPrefix(v.Error, "completion of "):
		next = "verify the certificate as the node gave it; or, if you believe that person, add its line to your policy (`vacate keys make` printed it)"
	}
	return &ExitError{Code: ExitVerify, Err: fmt.Errorf("%s is NOT valid: it fails at step %d of %d, %s: %s", where, v.Step, int(proof.StepClaims), v.Name, v.Error), Next: next}
}

func (a *app) printVerified(views []verifyView) error {
	if a.format != formatTable {
		if err := encode(a.out, a.format, views); err != nil {
			return err
		}
	}
	var first error
	for i, v := range views {
		switch {
		case v.OK && a.format == formatTable:
			if i > 0 {
				fmt.Fprintln(a.out)
			}
			fmt.Fprintf(a.out, "%s  %s\n\n%s", a.paint(a.out).green("valid"), printable(v.File), v.Result.Text())
		case v.OK:
		case first == nil:
			first = errRejected(v)
		default:
			a.printError(a.err, errRejected(v))
		}
	}
	return first
}
