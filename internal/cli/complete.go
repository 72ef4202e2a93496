package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
)

// completeTimeout bounds how long a press of the tab key may take.
const completeTimeout = time.Second

// ask runs f for a completion: without a daemon there is nothing to complete,
// and nothing to say about it.
func (a *app) ask(f func(ctx context.Context, c *client.Client) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(context.Background(), completeTimeout)
	defer cancel()
	c := client.Dial(a.socket())
	defer c.Close()
	words, err := f(ctx, c)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

// completeLeases offers the open leases that are not given yet.
func (a *app) completeLeases(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.offerLeases(args, false)
}

// completeEnded offers the leases that have ended.
func (a *app) completeEnded(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.offerLeases(args, true)
}

func (a *app) offerLeases(args []string, ended bool) ([]string, cobra.ShellCompDirective) {
	given := make(map[string]bool)
	for _, id := range args {
		given[id] = true
	}
	return a.ask(func(ctx context.Context, c *client.Client) ([]string, error) {
		res, err := c.Leases.List(ctx, &vacatev1.LeaseServiceListRequest{IncludeEnded: ended})
		if err != nil {
			return nil, err
		}
		var words []string
		for _, l := range res.GetLeases() {
			if (!ended || l.GetResult() != "") && !given[l.GetId()] {
				words = append(words, l.GetId()+"\t"+printable(l.GetTenant())+" "+formatSize(l.GetSizeBytes()))
			}
		}
		return words, nil
	})
}

func (a *app) drivePaths() ([]string, cobra.ShellCompDirective) {
	return a.ask(func(ctx context.Context, c *client.Client) ([]string, error) {
		res, err := c.Drives.List(ctx, &vacatev1.DriveServiceListRequest{})
		if err != nil {
			return nil, err
		}
		var words []string
		for _, d := range res.GetDrives() {
			words = append(words, d.GetPath()+"\t"+formatSize(d.GetFreeBytes())+" free")
		}
		return words, nil
	})
}

func (a *app) completeDriveArgs(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.drivePaths()
}

func (a *app) completeDrives(c *cobra.Command, flag string) {
	err := c.RegisterFlagCompletionFunc(flag, func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return a.drivePaths()
	})
	if err != nil {
		panic("cli: completing --" + flag + ": " + err.Error())
	}
}
