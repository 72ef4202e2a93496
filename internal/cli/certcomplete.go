package cli

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vacate/proof"
)

func (a *app) keysMakeCommand() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use:   "make FILE --name NAME",
		Short: "Make a key for a person who completes certificates, and print the policy's line for it",
		Long: "Make writes an Ed25519 key in PEM (PKCS #8), readable by you alone; `openssl genpkey -algorithm ed25519` makes the same. " +
			"It needs no daemon. Whoever shall believe what this person signs adds the line to the policy.",
		Example: "vacate keys make jane.pem --name jane.doe",
		Args:    needArgs(1, 1, "one file"),
		RunE: func(_ *cobra.Command, args []string) error {
			if name == "" || strings.ContainsAny(name, " \t\r\n+") {
				return usageErrorf("--name is missing, or has blanks or plus signs: write it as jane.doe")
			}
			if _, err := os.Lstat(args[0]); err == nil {
				return &ExitError{Code: ExitRefused, Err: fmt.Errorf("%s is there already, and may be a key", args[0]), Next: "name another file"}
			}
			pub, private, err := ed25519.GenerateKey(rand.Reader)
			if err != nil {
				return err
			}
			der, err := x509.MarshalPKCS8PrivateKey(private)
			if err != nil {
				return err
			}
			if err := a.write(output{path: args[0]}, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
				return err
			}
			key, err := proof.NewPublicKey(pub)
			if err != nil {
				return err
			}
			v := madeKeyView{File: args[0], Name: name, PublicKey: key.String(), Line: fmt.Sprintf("person %s %s %s -", name, key, proof.FormatTime(a.now()))}
			if a.format != formatTable {
				return encode(a.out, a.format, v)
			}
			fmt.Fprintln(a.out, v.Line)
			return nil
		},
	}
	c.Flags().StringVar(&name, "name", "", "the person's name in policies, without blanks")
	return c
}

type madeKeyView struct {
	File      string `json:"file"`
	Name      string `json:"name"`
	PublicKey string `json:"publicKey"`
	Line      string `json:"line"`
}

// readPersonKey reads a private key in PEM, which nobody else may be able to read.
func readPersonKey(path string) (crypto.Signer, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, &ExitError{Code: ExitNotFound, Err: fmt.Errorf("reading the key: %w", err), Next: "make one with `vacate keys make`"}
	}
	if st.Mode().Perm()&0o077 != 0 || !st.Mode().IsRegular() || st.Size() > 64<<10 {
		return nil, &ExitError{Code: ExitRefused, Err: fmt.Errorf("%s is not a file that only you can read (%v)", path, st.Mode()), Next: "chmod 600 " + path}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, usageErrorf("%s holds no key in PEM", path)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, usageErrorf("%s: %v", path, err)
	}
	signer, ok := k.(crypto.Signer)
	if !ok {
		return nil, usageErrorf("%s holds a key that cannot sign", path)
	}
	return signer, nil
}

// completeFlags are what a person says.
type completeFlags struct {
	key, role, date, result, method, remarks string
	person                                   proof.Person
	set                                      []string
	out                                      output
}

func (a *app) certificateCompleteCommand() *cobra.Command {
	var f completeFlags
	c := &cobra.Command{
		Use:   "complete FILE --key FILE --as ROLE --name NAME [--set FIELD=VALUE]…",
		Short: "Add to a certificate what only a person can know, under that person's signature",
		Long: "Complete adds fields that require human entry (property number, categorization, who performed, verified or validated the sanitization), " +
			"and signs them with the person's key. Nothing that the node said is changed. Validation is a person's: no program fills it. " +
			"Without --key it lists what is missing, and changes nothing.",
		Example: "vacate certificate complete ID.certificate.json\n" +
			"vacate certificate complete ID.certificate.json --key jane.pem --as validated --name \"Jane Doe\" --title \"Data protection officer\" \\\n" +
			"  --result accepted --method \"certificate verified against the policy of 1 May\" --set media.0.propertyNumber=A-1234",
		Args: needArgs(1, 1, "one certificate"),
		RunE: func(_ *cobra.Command, args []string) error {
			b, err := a.readFile(args[0], proof.MaxBundle)
			if err != nil {
				return err
			}
			bundle, err := proof.ParseBundle(b)
			if err != nil {
				return &ExitError{Code: ExitVerify, Err: fmt.Errorf("%s: %w", args[0], err), Next: "give one certificate, as `vacate certificate get` wrote it"}
			}
			closing, lease, missing, err := bundle.Incomplete()
			if err != nil {
				return &ExitError{Code: ExitVerify, Err: fmt.Errorf("%s: %w", args[0], err)}
			}
			if f.key == "" {
				return a.printMissing(lease, missing)
			}
			return a.completeCertificate(args[0], b, closing, lease, f)
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.key, "key", "", "file with the person's private key, in PEM")
	fl.StringVar(&f.role, "as", proof.RoleEntered, "what the person did: entered, performed, verified or validated")
	fl.StringVar(&f.person.Name, "name", "", "the person's name")
	fl.StringVar(&f.person.Title, "title", "", "the person's title")
	fl.StringVar(&f.person.Organization, "organization", "", "the person's organization")
	fl.StringVar(&f.person.Location, "location", "", "where it was done")
	fl.StringVar(&f.person.Contact, "contact", "", "how to reach the person")
	fl.StringVar(&f.date, "date", "", "when it was done, as 2026-05-01T12:00:00Z (default: now)")
	fl.StringVar(&f.result, "result", "", "of a validation: accepted or rejected")
	fl.StringVar(&f.method, "method", "", "of a validation: how it was done")
	fl.StringVar(&f.remarks, "remarks", "", "anything else")
	fl.StringArrayVar(&f.set, "set", nil, "a field and its value, as media.0.propertyNumber=A-1234")
	f.out.add(c, "file to write (default: the certificate is replaced)")
	complete(c, "as", proof.RoleEntered, proof.RolePerformed, proof.RoleVerified, proof.RoleValidated)
	complete(c, "result", proof.Accepted, proof.Rejected)
	return c
}

type missingView struct {
	LeaseID string   `json:"leaseId"`
	Missing []string `json:"missing"`
}

func (a *app) printMissing(lease string, missing []string) error {
	if a.format != formatTable {
		return encode(a.out, a.format, missingView{LeaseID: lease, Missing: orEmpty(missing)})
	}
	if len(missing) == 0 {
		fmt.Fprintln(a.out, "nothing requires human entry any more")
		return nil
	}
	fmt.Fprintf(a.out, "%s, of lease %s:\n", proof.SourceHuman, printable(lease))
	for _, path := range missing {
		fmt.Fprintf(a.out, "  %s\n", path)
	}
	return nil
}

func (a *app) completeCertificate(file string, bundle []byte, closing, lease string, f completeFlags) error {
	signer, err := readPersonKey(f.key)
	if err != nil {
		return err
	}
	c := proof.Completion{LeaseID: lease, Closing: closing, Role: f.role, Person: f.person, Date: f.date, Remarks: f.remarks, Fields: []proof.Entered{}}
	if c.Date == "" {
		c.Date = proof.FormatTime(a.now())
	}
	if f.result != "" || f.method != "" {
		c.Outcome = &proof.Outcome{Result: f.result, Method: f.method}
	}
	for _, s := range f.set {
		path, value, ok := strings.Cut(s, "=")
		if !ok {
			return usageErrorf("--set %s: write FIELD=VALUE", s)
		}
		c.Fields = append(c.Fields, proof.Entered{Path: path, Value: value})
	}
	if (c.Role == proof.RoleValidated) != (c.Outcome != nil) {
		return usageErrorf("--as validated, --result accepted or rejected, and --method belong together")
	}
	envelope, err := proof.SignCompletion(c, signer)
	if err != nil {
		return &ExitError{Code: ExitUsage, Err: err, Next: "see `vacate certificate complete --help`"}
	}
	done, err := proof.AddCompletion(bundle, envelope)
	if err != nil {
		return &ExitError{Code: ExitRefused, Err: err, Next: "see what is missing with `vacate certificate complete " + file + "`"}
	}
	out := f.out
	if out.path == "" {
		out = output{path: file, force: true} // "-" goes to standard output
	}
	if err := a.write(out, done); err != nil {
		return err
	}
	return a.wrote(out, fmt.Sprintf("completed by %s (%s)", printable(c.Person.Name), c.Role), done, fileView{File: out.path, SizeBytes: len(done)})
}

// parseInstant reads a time as people write it for --erase-by: RFC 3339, or a
// duration from now.
func parseInstant(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(d), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04Z07:00"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errNoInstant
}

var errNoInstant = errors.New("write a time as 2026-12-24T18:00:00Z, or how long from now as 24h")
