package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// A record is a row that was measured, as it is kept beside the page: so a run of
// some rows leaves the others as they were.
type record struct {
	Date     string    `json:"date"`
	Machine  string    `json:"machine"`
	Commit   string    `json:"commit"`
	Rounds   int       `json:"rounds"`
	Span     string    `json:"span"`
	Unit     string    `json:"unit"`
	Busy     float64   `json:"busy"` // part of the machine that something else used
	Lines    []line    `json:"lines"`
	Verdicts []verdict `json:"verdicts"`
}

// A line is a contestant's medians.
type line struct {
	Name   string  `json:"name"`
	Kind   string  `json:"kind,omitempty"`
	Median float64 `json:"median"`
	Least  float64 `json:"least"`
	Most   float64 `json:"most"`
	CPU    float64 `json:"cpuNs,omitempty"`
	Client float64 `json:"client,omitempty"`
	P50    float64 `json:"p50Ns,omitempty"`
	P999   float64 `json:"p999Ns,omitempty"`
	Slow   float64 `json:"slowest,omitempty"`
}

// keep makes a record of a result.
func (r *result) keep(machine, commit string, rounds int, span time.Duration) record {
	rec := record{Date: time.Now().Format("2006-01-02"), Machine: machine, Commit: commit, Rounds: rounds, Span: span.String(), Unit: r.row.unit, Busy: r.busy}
	for i, name := range r.names {
		l := line{Name: name, Kind: r.kind(i)}
		all := r.samples[i]
		l.Median, l.Least, l.Most = spread(all, rate)
		l.CPU, _, _ = spread(all, cpu)
		l.Client, _, _ = spread(all, func(s sample) float64 { return s.Client })
		l.P50, _, _ = spread(all, func(s sample) float64 { return float64(s.P50) })
		l.P999, _, _ = spread(all, func(s sample) float64 { return float64(s.P999) })
		l.Slow, _, _ = spread(all, func(s sample) float64 { return s.Least })
		rec.Lines = append(rec.Lines, l)
	}
	for _, b := range r.row.bars {
		rec.Verdicts = append(rec.Verdicts, b.judge(r))
	}
	return rec
}

const (
	pageName    = "performance.md"
	plotFolder  = "performance" // beside the page
	resultsName = "results.json"
)

// writePage brings the page, its plots and what they were made from up to date
// with the rows that were measured.
func writePage(dir string, fresh map[string]record) error {
	plots := filepath.Join(dir, plotFolder)
	if err := os.MkdirAll(plots, 0o755); err != nil {
		return err
	}
	kept := make(map[string]record)
	results := filepath.Join(plots, resultsName)
	b, err := os.ReadFile(results)
	if err == nil {
		err = json.Unmarshal(b, &kept)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("reading what was measured before: %w", err)
	}
	for name, r := range fresh {
		kept[name] = r
	}
	if b, err = json.MarshalIndent(kept, "", "\t"); err != nil {
		return err
	}
	if err := os.WriteFile(results, append(b, '\n'), 0o644); err != nil {
		return err
	}
	before, err := os.ReadFile(filepath.Join(dir, pageName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, r := range rows {
		rec, ok := kept[r.name]
		if !ok {
			continue
		}
		if err := os.WriteFile(filepath.Join(plots, r.name+".svg"), []byte(rec.chart(r).svg()), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, pageName), []byte(page(kept, notes(string(before)))), 0o644)
}

// chart draws a record.
func (rec record) chart(r row) chart {
	c := chart{title: r.title, unit: rec.Unit}
	for _, l := range rec.Lines {
		c.lines = append(c.lines, chartLine{
			label: l.Name, value: l.Median, least: l.Least, most: l.Most, text: quantity(l.Median, rec.Unit),
			ours: r.stages || l.ours(), plain: l.Kind == "plain",
		})
	}
	return c
}

// ours reports whether the line is of Vacate.
func (l line) ours() bool {
	return l.Kind == "encrypted" && !strings.HasPrefix(l.Name, "qemu") && !strings.HasPrefix(l.Name, "nbdkit") && l.Name != "openssl"
}

// A person's words on a row stand on the page between two comments, and survive
// its being written again.
var noteBlock = regexp.MustCompile(`(?s)<!-- note ([a-z0-9-]+) -->\n(.*?)<!-- /note -->\n`)

func notes(page string) map[string]string {
	all := make(map[string]string)
	for _, m := range noteBlock.FindAllStringSubmatch(page, -1) {
		all[m[1]] = m[2]
	}
	return all
}

// preamble opens the page.
const preamble = `# Performance

Written by ` + "`make bench-peers`" + ` ([test/peers](../test/peers/main.go)), which measures all of it in one run of about a quarter of an hour;
` + "`make bench-peers PEERS=\"-only 4k-reads\"`" + ` brings one row up to date. Figures of different days or machines compare badly: **read the ratios**.

- Contestants come from Debian's packages and serve the same amount of data that was written before. Each is measured once a
  round, in turn (A B A B); a first round does not count. Medians, with the least and the most of the rounds.
- Server and client have a core each, where a row does not say otherwise. The client is the same for all
  (internal/nbdclient, internal/vhostclient): it sends and receives many requests at once, and sleeps when there is nothing to do,
  unless a row says that it polls. *Client* is how busy its core was: below 100 % it held nobody up, and one that polls is always busy.
- One failed request fails the run. A read counts only when all of it was told.
- *Server* is processor time a request of all threads of the serving process, from ` + "`/proc/PID/task/*/schedstat`" + `.
- Encrypted: AES-256-XTS. Plain peers are shown because QEMU's LUKS is slow for a reason of its own (nettle ciphers one block at a time).
- Text between ` + "`<!-- note ROW -->`" + ` and ` + "`<!-- /note -->`" + ` is written by people, and kept.

`

// page writes the page.
func page(kept map[string]record, notes map[string]string) string {
	var b strings.Builder
	b.WriteString(preamble)
	for _, m := range machines(kept) {
		fmt.Fprintf(&b, "%s.\n\n", m)
	}
	note := func(name string) {
		fmt.Fprintf(&b, "<!-- note %s -->\n%s<!-- /note -->\n\n", name, notes[name])
	}
	note("summary")
	b.WriteString("## Bars\n\n| row | what | measured | bar | |\n|---|---|---|---|---|\n")
	for _, r := range rows {
		for _, v := range kept[r.name].Verdicts {
			fmt.Fprintf(&b, "| [%s](#%[1]s) | %s |\n", r.name, v.cells())
		}
	}
	b.WriteString("\n")
	for _, r := range rows {
		rec, ok := kept[r.name]
		if !ok {
			continue
		}
		fmt.Fprintf(&b, "## %s\n\n%s.", r.name, r.title)
		if r.note != "" {
			b.WriteString(" " + r.note)
		}
		fmt.Fprintf(&b, "\n\n![%s](%s/%s.svg)\n\n", r.title, plotFolder, r.name)
		rec.table(&b)
		for _, v := range rec.Verdicts {
			fmt.Fprintf(&b, "- %s\n", v)
		}
		if rec.Busy > quiet {
			fmt.Fprintf(&b, "\n**%.0f %% of the machine was busy with something else: these figures are worth little.**\n", 100*rec.Busy)
		}
		fmt.Fprintf(&b, "\n%s, commit %s, %d rounds of %s.\n\n", rec.Date, rec.Commit, rec.Rounds, rec.Span)
		note(r.name)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// machines lists where and when the rows were measured, each once.
func machines(kept map[string]record) (all []string) {
	seen := make(map[string]bool)
	for _, r := range rows {
		rec, ok := kept[r.name]
		text := "Measured on " + rec.Date + ": " + rec.Machine
		if ok && !seen[text] {
			seen[text] = true
			all = append(all, text)
		}
	}
	return all
}

// cells are a verdict's columns in the table of bars.
func (v verdict) cells() string {
	bar := fmt.Sprintf("≥ "+v.Format, v.Limit)
	if v.AtMost {
		bar = fmt.Sprintf("≤ "+v.Format, v.Limit)
	}
	switch {
	case !v.Applies:
		return fmt.Sprintf("%s | does not apply here | %s | –", v.What, bar)
	case v.Reached:
		return fmt.Sprintf("%s | "+v.Format+" | %s | reached", v.What, v.Value, bar)
	}
	return fmt.Sprintf("%s | "+v.Format+" | %s | **not reached**", v.What, v.Value, bar)
}

// table writes the contestants; columns that nobody fills are left out.
func (rec record) table(b *strings.Builder) {
	type column struct {
		head string
		of   func(line) string
	}
	number := func(format string, scale float64, of func(line) float64) func(line) string {
		return func(l line) string {
			if of(l) == 0 {
				return ""
			}
			return fmt.Sprintf(format, of(l)/scale)
		}
	}
	columns := []column{
		{"", func(l line) string { return l.Name }},
		{"data", func(l line) string { return l.Kind }},
		{rec.Unit, func(l line) string { return quantity(l.Median, rec.Unit) }},
		{"least–most", func(l line) string { return quantity(l.Least, rec.Unit) + "–" + quantity(l.Most, rec.Unit) }},
		{"server, µs a request", number("%.2f", 1e3, func(l line) float64 { return l.CPU })},
		{"client", number("%.0f %%", 0.01, func(l line) float64 { return l.Client })},
		{"p50, µs", number("%.1f", 1e3, func(l line) float64 { return l.P50 })},
		{"p99.9, µs", number("%.0f", 1e3, func(l line) float64 { return l.P999 })},
		{"slowest / mean", number("%.2f", 1, func(l line) float64 { return l.Slow })},
	}
	head, rule := "|", "|"
	var used []column
	for i, c := range columns {
		filled := i == 0
		for _, l := range rec.Lines {
			filled = filled || c.of(l) != ""
		}
		if filled {
			used, head, rule = append(used, c), head+" "+c.head+" |", rule+"---|"
		}
	}
	fmt.Fprintf(b, "%s\n%s\n", head, rule)
	for _, l := range rec.Lines {
		b.WriteString("|")
		for _, c := range used {
			fmt.Fprintf(b, " %s |", c.of(l))
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
}
