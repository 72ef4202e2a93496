package cli

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/internal/translog"
	"vacate/proof"
)

func (a *app) logCommand() *cobra.Command {
	return group("log", "The transparency log: serve, browse, audit and witness it",
		a.logShowCommand(), a.logStatusCommand(), a.logAuditCommand(), a.logServeCommand(), a.logWitnessCommand(), a.logNodeLostCommand())
}

// A logSource is a log that is read: the daemon's, a folder, or a URL.
type logSource interface {
	Checkpoint(ctx context.Context) ([]byte, error)
	Leaves(ctx context.Context, from, to uint64, each func(index uint64, leaf []byte) error) error
}

// A logFlag names the log to read.
type logFlag struct{ where, ca string }

func (l *logFlag) add(c *cobra.Command) {
	c.Flags().StringVar(&l.where, "log", "", "the log: its URL, or its folder (default: the daemon's)")
	c.Flags().StringVar(&l.ca, "log-ca", "", "file with the certificates, in PEM, that a log's URL is trusted by (default: this host's)")
}

// read calls f with the log.
func (l *logFlag) read(a *app, f func(ctx context.Context, log logSource) error) error {
	return a.call(func(ctx context.Context, c *client.Client) error {
		switch {
		case l.where == "":
			return f(ctx, daemonLog{c})
		case strings.Contains(l.where, "://"):
			remote, err := translog.NewClient(translog.ClientConfig{URL: l.where, CAFile: l.ca})
			if err != nil {
				return err
			}
			defer remote.Close() //nolint:errcheck // it was only read
			return unreached(f(ctx, remote))
		}
		if _, err := os.Stat(l.where); err != nil {
			return &ExitError{Code: ExitNotFound, Err: fmt.Errorf("there is no log: %w", err), Next: "name the folder that the log was made in, or its URL with https:// in front"}
		}
		folder, err := translog.OpenFolder(l.where)
		if err != nil {
			return err
		}
		return f(ctx, folder)
	})
}

// unreached adds what to do where a log could not be asked.
func unreached(err error) error {
	var ca x509.UnknownAuthorityError
	var dial *net.OpError
	switch {
	case errors.As(err, &ca):
		return &ExitError{Code: ExitFailed, Err: err, Next: "name the file with its authority's certificate: --log-ca FILE"}
	case errors.As(err, &dial) && dial.Op == "dial":
		return &ExitError{Code: ExitFailed, Err: err, Next: "check the log's URL, and that it runs"}
	}
	return err
}

// A daemonLog is the log that a daemon writes to, read through it.
type daemonLog struct{ c *client.Client }

// Checkpoint implements logSource.
func (d daemonLog) Checkpoint(ctx context.Context) ([]byte, error) {
	res, err := d.c.Log.Status(ctx, &vacatev1.LogServiceStatusRequest{})
	if err == nil && len(res.GetCheckpoint()) == 0 {
		err = translog.ErrNotFound
	}
	return res.GetCheckpoint(), err
}

// Leaves implements logSource.
func (d daemonLog) Leaves(ctx context.Context, from, to uint64, each func(index uint64, leaf []byte) error) error {
	for from < to {
		res, err := d.c.Log.Records(ctx, &vacatev1.LogServiceRecordsRequest{From: from, Limit: uint32(min(to-from, 256))})
		if err != nil {
			return err
		}
		if len(res.GetLeaves()) == 0 {
			return fmt.Errorf("leaf %d: %w", from, translog.ErrNotFound)
		}
		for _, l := range res.GetLeaves() {
			if l.GetIndex() != from || from == to {
				return fmt.Errorf("the daemon answered with leaf %d where %d was asked for", l.GetIndex(), from)
			}
			if err := each(from, l.GetEnvelope()); err != nil {
				return err
			}
			from++
		}
	}
	return nil
}

// leafView is a leaf as people browse it. Nothing of it is verified.
type leafView struct {
	Index  uint64        `json:"index"`
	Record *proof.Record `json:"record,omitempty"`
	KeyIDs []string      `json:"keyIds,omitempty"` // that the envelope says have signed
	Error  string        `json:"error,omitempty"`  // the leaf is no record
}

func leafViewOf(index uint64, leaf []byte) leafView {
	v := leafView{Index: index}
	env, err := proof.ParseEnvelope(leaf)
	if err == nil {
		for _, s := range env.Signatures {
			v.KeyIDs = append(v.KeyIDs, s.KeyID)
		}
		var r proof.Record
		if r, err = proof.ParsePayload(env.Payload); err == nil {
			v.Record = &r
			return v
		}
	}
	v.Error = err.Error()
	return v
}

// shownLeaves is how many leaves show prints.
const shownLeaves = 20

func (a *app) logShowCommand() *cobra.Command {
	var log logFlag
	var from uint64
	var limit int
	var lease string
	c := &cobra.Command{
		Use:   "show [INDEX]",
		Short: "Browse the log: its newest records, those from an index on, or one of them",
		Long:  "Show prints records as they stand in the log, and verifies nothing: `vacate log audit` does.",
		Example: "vacate log show\nvacate log show 17 -o json\n" +
			"vacate log show --log https://log.example:7443 --lease ID",
		Args: needArgs(0, 1, "at most one index"),
		RunE: func(c *cobra.Command, args []string) error {
			if limit < 1 {
				return usageErrorf("--limit %d: write a number of records, 1 or more", limit)
			}
			return log.read(a, func(ctx context.Context, src logSource) error {
				size, err := logSize(ctx, src)
				if err != nil {
					return err
				}
				switch {
				case len(args) == 1:
					return a.showLeaf(ctx, src, args[0], size)
				case !c.Flags().Changed("from") && lease == "":
					from = size - min(size, uint64(limit))
				}
				return a.listLeaves(ctx, src, from, size, limit, lease)
			})
		},
	}
	log.add(c)
	c.Flags().Uint64Var(&from, "from", 0, "the first index (default: the newest records; with --lease 0)")
	c.Flags().IntVar(&limit, "limit", shownLeaves, "how many records")
	c.Flags().StringVar(&lease, "lease", "", "only records of this lease")
	return c
}

// logSize is how many leaves the newest checkpoint has, as it says itself.
func logSize(ctx context.Context, src logSource) (uint64, error) {
	note, err := src.Checkpoint(ctx)
	if errors.Is(err, translog.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	c, err := proof.ParseCheckpoint(note)
	if err != nil {
		return 0, err
	}
	return c.Size, nil
}

func (a *app) showLeaf(ctx context.Context, src logSource, arg string, size uint64) error {
	index, err := strconv.ParseUint(arg, 10, 64)
	if err != nil {
		return usageErrorf("%q is no index of a record", arg)
	}
	if index >= size {
		return &ExitError{Code: ExitNotFound, Err: fmt.Errorf("the log has %d records, and none at index %d", size, index)}
	}
	return src.Leaves(ctx, index, index+1, func(index uint64, leaf []byte) error {
		f := a.format
		if f == formatTable {
			f = formatYAML // one record has no columns
		}
		return encode(a.out, f, leafViewOf(index, leaf))
	})
}

// errEnough ends a listing.
var errEnough = errors.New("enough")

func (a *app) listLeaves(ctx context.Context, src logSource, from, size uint64, limit int, lease string) error {
	views := []leafView{}
	from = min(from, size)
	bar := a.tally("records", size-from)
	err := src.Leaves(ctx, from, size, func(index uint64, leaf []byte) error {
		bar.at(index + 1 - from)
		v := leafViewOf(index, leaf)
		if lease != "" && (v.Record == nil || v.Record.LeaseID != lease) {
			return nil
		}
		views = append(views, v)
		if len(views) == limit {
			return errEnough
		}
		return nil
	})
	bar.end()
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	if a.format != formatTable {
		return encode(a.out, a.format, views)
	}
	if len(views) == 0 {
		fmt.Fprintln(a.out, "no records")
		return nil
	}
	var rows [][]cell
	for _, v := range views {
		index := numeric(strconv.FormatUint(v.Index, 10))
		if v.Record == nil {
			rows = append(rows, []cell{index, {text: "?", paint: a.paint(a.out).red}, plain("-"), plain("-"), plain("-"), plain(""), plain(v.Error)})
			continue
		}
		r := v.Record
		size := ""
		if r.Bytes > 0 {
			size = formatSize(r.Bytes)
		}
		rows = append(rows, []cell{index, plain(string(r.Type)), plain(dash(r.LeaseID)), plain(shortID(r.NodeID)), plain(strconv.FormatUint(r.NodeSeq, 10)),
			plain(size), plain(r.Result)})
	}
	table(a.out, a.paint(a.out), []string{"INDEX", "RECORD", "LEASE", "NODE", "NUMBER", "SIZE", "RESULT"}, rows)
	return nil
}

// shortID is enough of a node's id to tell it from others.
func shortID(id string) string { return id[:min(len(id), 16)] }

func (a *app) logStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the daemon's log: what waits for it, who witnesses it, which deadlines were kept",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.query(func(ctx context.Context, c *client.Client) error {
				st, err := c.Log.Status(ctx, &vacatev1.LogServiceStatusRequest{})
				if err != nil {
					return err
				}
				return a.printLogStatus(st)
			})
		},
	}
}

type logStatusView struct {
	Origin           string   `json:"origin"`
	Where            string   `json:"where"`
	Size             uint64   `json:"size"`
	Witnesses        []string `json:"witnesses"`
	Quorum           bool     `json:"quorum"`
	Spool            uint64   `json:"spool"`
	SpoolMax         uint64   `json:"spoolMax"`
	SpoolOldest      string   `json:"spoolOldest,omitempty"`
	LastError        string   `json:"lastError,omitempty"`
	DeadlinesMet     uint64   `json:"deadlinesMet"`
	DeadlinesMissed  uint64   `json:"deadlinesMissed"`
	DeadlinesPending uint64   `json:"deadlinesPending"`
	Certificates     uint64   `json:"certificates"`
	KeepSeconds      int64    `json:"keepSeconds"`
	Checkpoint       string   `json:"checkpoint"`
}

func (a *app) printLogStatus(st *vacatev1.LogServiceStatusResponse) error {
	if a.format != formatTable {
		return encode(a.out, a.format, logStatusView{Origin: st.GetOrigin(), Where: st.GetWhere(), Size: st.GetSize(), Witnesses: orEmpty(st.GetWitnesses()),
			Quorum: st.GetQuorum(), Spool: st.GetSpool(), SpoolMax: st.GetSpoolMax(), SpoolOldest: instant(st.GetSpoolOldest()), LastError: st.GetLastError(),
			DeadlinesMet: st.GetDeadlinesMet(), DeadlinesMissed: st.GetDeadlinesMissed(), DeadlinesPending: st.GetDeadlinesPending(),
			Certificates: st.GetCertificates(), KeepSeconds: st.GetKeepSeconds(), Checkpoint: string(st.GetCheckpoint())})
	}
	p := a.paint(a.out)
	quorum := cell{text: "yes", paint: p.green}
	switch {
	case !st.GetQuorum():
		quorum = cell{text: "missing: certificates say so until it is there", paint: p.yellow}
	case len(st.GetWitnesses()) == 0:
		quorum = cell{text: "none is asked for: certificates say that nothing is witnessed", paint: p.yellow}
	}
	waits := plain(fmt.Sprintf("%d of at most %d", st.GetSpool(), st.GetSpoolMax()))
	if st.GetSpool() > 0 {
		waits.text += ", the oldest of " + shortTime(st.GetSpoolOldest(), a.loc)
	}
	missed := plain(fmt.Sprintf("%d met, %d missed, %d to come", st.GetDeadlinesMet(), st.GetDeadlinesMissed(), st.GetDeadlinesPending()))
	if st.GetDeadlinesMissed() > 0 {
		missed.paint = p.red
	}
	pairs(a.out, p, []pair{
		{"log", cell{text: printable(st.GetOrigin()), paint: p.bold}},
		{"where", plain(st.GetWhere())},
		{"records", plain(strconv.FormatUint(st.GetSize(), 10))},
		{"witnesses", plain(dash(strings.Join(st.GetWitnesses(), ", ")))},
		{"quorum", quorum},
		{"waiting", waits},
		{"last error", cell{text: printable(oneLine(st.GetLastError())), paint: p.red}},
		{"deadlines", missed},
		{"certificates", plain(fmt.Sprintf("%d, each kept %s after its lease", st.GetCertificates(), days(st.GetKeepSeconds())))},
	})
	return nil
}

// days is a time for which something is kept, in the largest unit that fits.
func days(seconds int64) string {
	const day = 24 * 60 * 60
	switch {
	case seconds >= 366*day && seconds%(366*day) == 0: // as the configuration counts years
		return fmt.Sprintf("%d years", seconds/(366*day))
	case seconds >= day:
		return fmt.Sprintf("%d days", seconds/day)
	}
	return fmt.Sprintf("%d seconds", seconds)
}
