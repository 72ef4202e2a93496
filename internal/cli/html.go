package cli

import (
	"errors"
	"fmt"

	"vacate/internal/certpage"
	"vacate/proof"
)

// writePage writes the page of the one certificate that was verified, for an
// auditor's folder.
func (a *app) writePage(path string, bundle, policy []byte, res *proof.Result) error {
	b, err := certpage.HTML(bundle, policy, res)
	if err != nil {
		return err
	}
	err = a.write(output{path: path}, b)
	if ee := (*ExitError)(nil); errors.As(err, &ee) && ee.Code == ExitRefused {
		ee.Next = "name another file with --html, or remove this one"
	}
	if err != nil || a.format != formatTable {
		return err
	}
	_, err = fmt.Fprintf(a.out, "\nwrote %s: one page, to be opened in a browser or printed\n", printable(path))
	return err
}
