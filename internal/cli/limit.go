package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
)

// limitKeys are what can be limited, in the order in which it is printed.
var limitKeys = []struct {
	name  string
	parse func(string) (uint64, error)
	field func(*vacatev1.Limits) *uint64
}{
	{"iops", parseCount, func(l *vacatev1.Limits) *uint64 { return &l.Iops }},
	{"iops-burst", parseCount, func(l *vacatev1.Limits) *uint64 { return &l.IopsBurst }},
	{"bandwidth", parseBandwidth, func(l *vacatev1.Limits) *uint64 { return &l.BandwidthBytes }},
	{"bandwidth-burst", parseBandwidth, func(l *vacatev1.Limits) *uint64 { return &l.BandwidthBurstBytes }},
}

// limitsFlag is limits as a flag's value, "iops=5000,bandwidth=200MiB" or "none".
// It may be given several times.
type limitsFlag struct {
	limits *vacatev1.Limits // nil: none
	set    bool
	texts  []string
}

func (f *limitsFlag) String() string { return strings.Join(f.texts, ",") }

func (f *limitsFlag) Set(s string) error {
	f.texts = append(f.texts, s)
	if s == "none" && !f.set {
		f.set = true
		return nil
	}
	if s == "none" || f.set && f.limits == nil {
		return errors.New("none takes every limit away, and goes with no other")
	}
	f.set = true
	if f.limits == nil {
		f.limits = &vacatev1.Limits{}
	}
	for part := range strings.SplitSeq(s, ",") {
		if err := setLimit(f.limits, part); err != nil {
			return err
		}
	}
	return nil
}

// Type is the word for the value in the help.
func (f *limitsFlag) Type() string { return "limits" }

// setLimit sets the one that part names: "iops=5000".
func setLimit(l *vacatev1.Limits, part string) error {
	key, value, _ := strings.Cut(part, "=")
	for _, k := range limitKeys {
		if strings.TrimSpace(key) != k.name {
			continue
		}
		at := k.field(l)
		if *at != 0 {
			return fmt.Errorf("%s is given twice", k.name)
		}
		n, err := k.parse(strings.TrimSpace(value))
		if err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
		if n == 0 {
			return fmt.Errorf("%s: a limit of 0 lets nothing through; what is left out is unlimited", k.name)
		}
		*at = n
		return nil
	}
	return fmt.Errorf("%q is not a limit; write iops=5000, iops-burst=20000, bandwidth=200MiB or bandwidth-burst=1GiB, or several with commas", part)
}

func parseCount(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is not a number of requests, as 5000, up to 2^32 - 1", s)
	}
	return n, nil
}

func parseBandwidth(s string) (uint64, error) {
	n, err := parseSize(strings.TrimSuffix(s, "/s"))
	return uint64(n), err
}

// limitsText is limits for people; empty where there are none.
func limitsText(l *vacatev1.Limits) string {
	var parts []string
	add := func(rate, burst string) {
		if burst != "" {
			rate += " (" + burst + " at once after a pause)"
		}
		parts = append(parts, rate)
	}
	if l.GetIops() != 0 {
		burst := ""
		if l.GetIopsBurst() != 0 {
			burst = strconv.FormatUint(l.GetIopsBurst(), 10)
		}
		add(fmt.Sprintf("%d requests/s", l.GetIops()), burst)
	}
	if l.GetBandwidthBytes() != 0 {
		burst := ""
		if l.GetBandwidthBurstBytes() != 0 {
			burst = formatSize(int64(l.GetBandwidthBurstBytes()))
		}
		add(formatSize(int64(l.GetBandwidthBytes()))+"/s", burst)
	}
	return strings.Join(parts, ", ")
}

const limitsUsage = "how fast the volume may be used, as iops=5000,bandwidth=200MiB, with iops-burst= and bandwidth-burst= what may come at once after a pause"

func (a *app) leaseLimitCommand() *cobra.Command {
	var limits limitsFlag
	c := &cobra.Command{
		Use:   "limit ID --limit LIMITS",
		Short: "Limit how fast an open lease's volume may be used",
		Long: "Limit sets all limits of a lease anew, at once and while it is in use: what --limit does not name is unlimited. " +
			"Requests over a limit wait, none fails. Reads and writes count, one longer than 256 KiB as several; a discard is one request of no bytes, a flush is none. " +
			"A burst is how much may come at once after a pause; without one it is what a second grants. " +
			"The limits hold until they are set again, also when the daemon is restarted or upgraded.",
		Example: "vacate lease limit ID --limit iops=5000,bandwidth=200MiB\n" +
			"# 500 requests a second, and 30,000 at once for a VM that boots\n" +
			"vacate lease limit ID --limit iops=500,iops-burst=30000\n" +
			"# as fast as it can\n" +
			"vacate lease limit ID --limit none",
		Args:              needArgs(1, 1, "one lease id"),
		ValidArgsFunction: a.completeLeases,
		RunE: func(_ *cobra.Command, args []string) error {
			if !limits.set {
				return usageErrorf("the limits are missing: write --limit iops=5000,bandwidth=200MiB, or --limit none")
			}
			return a.call(func(ctx context.Context, c *client.Client) error { return a.limitLease(ctx, c, args[0], limits.limits) })
		},
	}
	c.Flags().Var(&limits, "limit", limitsUsage+"; or none")
	a.completeLimits(c)
	return c
}

func (a *app) limitLease(ctx context.Context, c *client.Client, id string, limits *vacatev1.Limits) error {
	res, err := persist(ctx, func(ctx context.Context) (*vacatev1.LeaseServiceLimitResponse, error) {
		return c.Leases.Limit(ctx, &vacatev1.LeaseServiceLimitRequest{Id: id, Limits: limits})
	})
	if err != nil {
		return err
	}
	l := res.GetLease()
	if a.format != formatTable {
		return encode(a.out, a.format, leaseViewOf(l))
	}
	text := limitsText(l.GetLimits())
	if text == "" {
		text = "unlimited"
	}
	_, err = fmt.Fprintf(a.out, "%s  %s\n", l.GetId(), text)
	return err
}

// completeLimits offers what is not limited yet.
func (a *app) completeLimits(c *cobra.Command) {
	err := c.RegisterFlagCompletionFunc("limit", func(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		before := typed[:strings.LastIndexByte(typed, ',')+1]
		var words []string
		for _, k := range limitKeys {
			if !strings.Contains(","+before, ","+k.name+"=") {
				words = append(words, before+k.name+"=")
			}
		}
		if before == "" {
			words = append(words, "none")
		}
		return words, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	})
	if err != nil {
		panic("cli: completing --limit: " + err.Error())
	}
}
