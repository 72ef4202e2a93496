package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"vacate/internal/translog"
	"vacate/proof"
)

func (a *app) logAuditCommand() *cobra.Command {
	var log logFlag
	var policy policyFlag
	var kept []string
	var keep output
	c := &cobra.Command{
		Use:   "audit --policy FILE",
		Short: "Read the whole log and name what is wrong: leases not closed, late, overlapping; records missing or forged",
		Long: "Audit reads every record of the log, from the first to the last, and checks that each lease was closed, and by its deadline; " +
			"that no two leases held the same space; that each node's records are all there, in order, signed by keys of the policy; and that " +
			"they are the tree of the log's checkpoint. What it finds is named, and the exit code is 5. " +
			"Keep the checkpoint of each audit with --keep, and give it to the next with --kept: a log that was rewritten meanwhile is found out.",
		Example: "vacate log audit --policy policy --log https://log.example:7443 --keep checkpoint\n" +
			"vacate log audit --policy policy --log /var/lib/vacate/log --kept checkpoint",
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, trust, err := policy.read(a)
			if err != nil {
				return err
			}
			if err := keep.free(); err != nil { // before a log is read that may be long
				return err
			}
			auditor := proof.NewAuditor(trust)
			for _, file := range kept {
				b, err := a.readFile(file, maxDocument)
				if err != nil {
					return err
				}
				if err := auditor.AddCheckpoint(b); err != nil {
					return &ExitError{Code: ExitVerify, Err: fmt.Errorf("%s: %w", file, err), Next: "give the file as --keep wrote it, and the policy of that log"}
				}
			}
			return log.read(a, func(ctx context.Context, src logSource) error {
				v, checkpoint, err := a.audit(ctx, src, auditor)
				if err != nil {
					return err
				}
				if len(v.Findings) == 0 && keep.path != "" {
					if err := a.write(keep, checkpoint); err != nil {
						return err
					}
				}
				return a.printAudit(v)
			})
		},
	}
	log.add(c)
	policy.add(c)
	c.Flags().StringArrayVar(&kept, "kept", nil, "file with a checkpoint that an earlier audit kept: the log has to agree with it")
	keep.force = true // the newest replaces the one before
	c.Flags().StringVar(&keep.path, "keep", "", "file to write the checkpoint to, if nothing is wrong")
	return c
}

// auditView is what an audit found.
type auditView struct {
	Origin   string          `json:"origin"`
	Size     uint64          `json:"size"`
	OK       bool            `json:"ok"`
	Summary  proof.Summary   `json:"summary"`
	Findings []proof.Finding `json:"findings"`
}

// audit gives a log's leaves to the auditor, up to the newest checkpoint.
func (a *app) audit(ctx context.Context, src logSource, auditor *proof.Auditor) (auditView, []byte, error) {
	checkpoint, err := src.Checkpoint(ctx)
	if errors.Is(err, translog.ErrNotFound) {
		return auditView{}, nil, &ExitError{Code: ExitNotFound, Err: errors.New("the log has no checkpoint: it is empty"), Next: "open and close a lease first"}
	}
	if err != nil {
		return auditView{}, nil, err
	}
	head, err := proof.ParseCheckpoint(checkpoint)
	if err != nil {
		return auditView{}, nil, &ExitError{Code: ExitVerify, Err: fmt.Errorf("the log's checkpoint: %w", err)}
	}
	bar := a.tally("records", head.Size)
	err = src.Leaves(ctx, 0, head.Size, func(index uint64, leaf []byte) error {
		auditor.Add(index, bytes.Clone(leaf))
		bar.at(index + 1)
		return nil
	})
	bar.end()
	if err != nil {
		return auditView{}, nil, err
	}
	findings := auditor.Finish(checkpoint, a.now())
	if findings == nil {
		findings = []proof.Finding{}
	}
	return auditView{Origin: head.Origin, Size: head.Size, OK: len(findings) == 0, Summary: auditor.Summary(), Findings: findings}, checkpoint, nil
}

func (a *app) printAudit(v auditView) error {
	if a.format != formatTable {
		if err := encode(a.out, a.format, v); err != nil {
			return err
		}
	} else {
		a.showAudit(v)
	}
	if v.OK {
		return nil
	}
	word := "findings"
	if len(v.Findings) == 1 {
		word = "finding"
	}
	return &ExitError{Code: ExitVerify, Err: fmt.Errorf("the log %s is not in order: %d %s", v.Origin, len(v.Findings), word),
		Next: "ask the operator about each; keep the log's checkpoint as evidence"}
}

func (a *app) showAudit(v auditView) {
	p := a.paint(a.out)
	for _, f := range v.Findings {
		fmt.Fprintf(a.out, "%s  record %d  %s\n", p.red(f.Code), f.Index, printable(f.Text))
	}
	s := v.Summary
	lines := []pair{
		{"log", cell{text: printable(v.Origin), paint: p.bold}},
		{"records", plain(strconv.FormatUint(s.Leaves, 10))},
		{"nodes", plain(strconv.Itoa(s.Nodes))},
		{"leases", plain(fmt.Sprintf("%d opened: %d closed, %d lost with their node, %d open", s.Opened, s.Closed, s.Lost, s.Open))},
		{"deadlines", plain(fmt.Sprintf("%d met, %d missed, %d that no checkpoint shows", s.DeadlinesMet, s.DeadlinesMissed, s.DeadlinesUnknown))},
		{"findings", cell{text: "none", paint: p.green}},
	}
	if n := len(v.Findings); n > 0 {
		lines[len(lines)-1].value = cell{text: strconv.FormatUint(uint64(n)+s.FindingsDropped, 10), paint: p.red}
	}
	pairs(a.out, p, lines)
	if v.OK {
		fmt.Fprintln(a.out, p.dim("A lease that was never logged is not found here: its tenant's receipt shows it (vacate certificate verify --opened)."))
	}
}
