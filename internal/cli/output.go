package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"golang.org/x/term"
)

// A format is how a command prints what it found.
type format string

const (
	formatTable format = "table"
	formatJSON  format = "json"
	formatYAML  format = "yaml"
)

// Set implements pflag.Value.
func (f *format) Set(s string) error {
	switch format(s) {
	case formatTable, formatJSON, formatYAML:
		*f = format(s)
		return nil
	}
	return fmt.Errorf("there is no output format %q; write table, json or yaml", s)
}

func (f *format) String() string { return string(*f) }

// Type is the word for the value in the help.
func (f *format) Type() string { return "format" }

// encode writes v as JSON or YAML. Both have the same keys in the same order:
// YAML is made from the JSON.
func encode(w io.Writer, f format, v any) error {
	b, err := marshal(v)
	if err != nil {
		return err
	}
	if f == formatYAML {
		var n yaml.Node
		if err := yaml.Unmarshal(b, &n); err != nil {
			return fmt.Errorf("turning JSON into YAML: %w", err)
		}
		block(&n)
		if b, err = yaml.Marshal(&n); err != nil {
			return fmt.Errorf("turning JSON into YAML: %w", err)
		}
	}
	_, err = w.Write(b)
	return err
}

func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // a URI is for copying
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// encodeLine writes v as one document of a stream: a line of JSON, or a YAML
// document.
func encodeLine(w io.Writer, f format, v any) error {
	if f == formatYAML {
		if _, err := io.WriteString(w, "---\n"); err != nil {
			return err
		}
		return encode(w, f, v)
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// block makes a YAML tree that was read from JSON print in block style, with
// quotes only where they are needed.
func block(n *yaml.Node) {
	if n.Kind != yaml.SequenceNode && n.Kind != yaml.MappingNode || len(n.Content) > 0 {
		n.Style = 0
	}
	for _, c := range n.Content {
		block(c)
	}
}

// A painter colours text, or leaves it alone.
type painter struct{ on bool }

// paint is a painter for w: colours only on a terminal, and not where the user
// asked for none (https://no-color.org).
func (a *app) paint(w io.Writer) painter {
	return painter{on: a.terminal(w) && a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb"}
}

// terminal tells whether w is a terminal.
func (a *app) terminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func (p painter) sgr(code, s string) string {
	if !p.on || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p painter) bold(s string) string   { return p.sgr("1", s) }
func (p painter) dim(s string) string    { return p.sgr("2", s) }
func (p painter) red(s string) string    { return p.sgr("31", s) }
func (p painter) green(s string) string  { return p.sgr("32", s) }
func (p painter) yellow(s string) string { return p.sgr("33", s) }

// state paints the word for a state of a lease or drive.
func (p painter) state(s string) string {
	switch s {
	case "open", "ready":
		return p.green(s)
	case "opening", "closing", "erased", "enrolling", "busy":
		return p.yellow(s)
	case "lost", "missing", "refused":
		return p.red(s)
	case "closed":
		return p.dim(s)
	}
	return s
}

// A cell is text in a table, and how it is painted.
type cell struct {
	text  string
	paint func(string) string // nil: plain
	right bool                // numbers stand at the right
}

func plain(s string) cell   { return cell{text: printable(s)} }
func numeric(s string) cell { return cell{text: s, right: true} }

// printable replaces what a terminal might obey: a drive's model and serial are
// whatever its firmware says.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return utf8.RuneError
	}, s)
}

// table writes rows under a head, in columns as wide as their widest cell.
// Nothing is cut off: a table that is too wide for the terminal wraps.
func table(w io.Writer, p painter, head []string, rows [][]cell) {
	width := make([]int, len(head))
	for i, h := range head {
		width[i] = utf8.RuneCountInString(h)
	}
	for _, r := range rows {
		for i, c := range r {
			width[i] = max(width[i], utf8.RuneCountInString(c.text))
		}
	}
	line := func(r []cell) {
		var b strings.Builder
		for i, c := range r {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c.text))
			text := c.text
			if c.paint != nil {
				text = c.paint(text)
			}
			switch {
			case c.right:
				b.WriteString(pad + text)
			case i == len(r)-1:
				b.WriteString(text)
			default:
				b.WriteString(text + pad)
			}
			if i < len(r)-1 {
				b.WriteString("  ")
			}
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
	cells := make([]cell, len(head))
	for i, h := range head {
		cells[i] = cell{text: h, paint: p.bold, right: len(rows) > 0 && rows[0][i].right}
	}
	line(cells)
	for _, r := range rows {
		line(r)
	}
}

// A pair is one line of what `show` prints.
type pair struct {
	name  string
	value cell
}

// pairs writes lines of name and value; those without a value are left out.
func pairs(w io.Writer, p painter, all []pair) {
	width := 0
	for _, l := range all {
		if l.value.text != "" {
			width = max(width, len(l.name))
		}
	}
	for _, l := range all {
		if l.value.text == "" {
			continue
		}
		text := l.value.text
		if l.value.paint != nil {
			text = l.value.paint(text)
		}
		fmt.Fprintf(w, "%s  %s\n", p.bold(fmt.Sprintf("%-*s", width, l.name)), text)
	}
}
