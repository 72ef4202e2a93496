package main

import (
	"fmt"
	"html"
	"strings"
)

// A chart is horizontal bars, one a line, as SVG.
type chart struct {
	title, unit string
	lines       []chartLine
}

// A chartLine is one bar: a median, and how far the rounds went.
type chartLine struct {
	label              string
	value, least, most float64
	text               string // the value as it is shown
	ours, plain        bool
}

// Sizes in pixels.
const (
	chartWidth  = 760
	chartLeft   = 230 // where bars begin
	chartRight  = 640 // where the longest may end
	chartTop    = 44
	chartStep   = 26 // from one bar to the next
	chartBar    = 16 // a bar's height
	chartBottom = 30
)

// Colours: what is ours, encrypted peers, plain peers.
const (
	colourOurs      = "#1f6feb"
	colourEncrypted = "#8a63d2"
	colourPlain     = "#b8bec7"
)

// svg draws the chart. It needs no fonts, no scripts and no style sheet, and has a
// background of its own, so that it can be read on a dark page.
func (c chart) svg() string {
	most := 0.0
	for _, l := range c.lines {
		most = max(most, l.value, l.most)
	}
	if most == 0 {
		most = 1
	}
	x := func(v float64) float64 { return chartLeft + (chartRight-chartLeft)*v/most }
	height := chartTop + len(c.lines)*chartStep + chartBottom
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="system-ui,sans-serif" font-size="13" role="img">`+"\n", chartWidth, height)
	fmt.Fprintf(&b, "<title>%s</title>\n", html.EscapeString(c.title))
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", chartWidth, height)
	fmt.Fprintf(&b, `<text x="16" y="26" font-weight="600" fill="#1f2328">%s</text>`+"\n", html.EscapeString(c.title))
	for i, l := range c.lines {
		top := chartTop + i*chartStep
		middle := float64(top) + chartBar/2
		fmt.Fprintf(&b, `<text x="%d" y="%.1f" text-anchor="end" fill="#1f2328">%s</text>`+"\n", chartLeft-8, middle+4.5, html.EscapeString(l.label))
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", chartLeft, top, max(1, x(l.value)-chartLeft), chartBar, l.colour())
		end := x(l.value)
		if l.most > l.least {
			low, high, top := x(l.least), x(l.most), middle-4
			fmt.Fprintf(&b, `<path d="M%.1f %.1fH%.1fM%.1f %.1fv8M%.1f %.1fv8" stroke="#1f2328" fill="none"/>`+"\n", low, middle, high, low, top, high, top)
			end = max(end, x(l.most))
		}
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" fill="#1f2328">%s</text>`+"\n", end+6, middle+4.5, html.EscapeString(l.text))
	}
	fmt.Fprintf(&b, `<text x="16" y="%d" font-size="11" fill="#59636e">%s; thin lines: least and most of the rounds</text>`+"\n", height-10, html.EscapeString(c.legend()))
	b.WriteString("</svg>\n")
	return b.String()
}

func (c chart) legend() string {
	text := c.unit
	for _, l := range c.lines {
		if l.plain {
			return text + "; blue: Vacate, violet: encrypted, grey: plain"
		}
	}
	return text
}

func (l chartLine) colour() string {
	switch {
	case l.ours:
		return colourOurs
	case l.plain:
		return colourPlain
	}
	return colourEncrypted
}
