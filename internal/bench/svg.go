package bench

import (
	"bytes"
	"fmt"
	"html"
	"strings"
)

// The plot's measures, in its own units.
const (
	svgWidth   = 860
	svgLeft    = 230 // where bars begin
	svgBar     = 380 // the longest one
	svgRow     = 52  // height of a row of two bars
	svgThick   = 15
	svgTop     = 96
	svgSpeed   = 26 // height of a row of the processor
	svgRaw     = "#9aa5b1"
	svgVolume  = "#2f6fde"
	svgCipher  = "#3a9d6a"
	svgProblem = "#c0392b"
)

// SVG draws the report: for each workload a bar of the raw drive and one of the
// volume, each pair to its own scale, and below the processor's speeds. It needs
// nothing from outside, and shows on light and dark backgrounds.
func SVG(r Report) []byte {
	var d drawing
	height := svgTop + svgRow*len(r.Rows) + 50
	if len(r.Processor) > 0 {
		height += 40 + svgSpeed*len(r.Processor)
	}
	fmt.Fprintf(&d.b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" font-family="system-ui, sans-serif" font-size="13">`+"\n",
		svgWidth, height, svgWidth, height)
	fmt.Fprintf(&d.b, "<title>%s</title>\n", html.EscapeString("vacate bench of "+clean(r.Drive.Path)))
	fmt.Fprintf(&d.b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", svgWidth, height)
	d.text(20, 30, 17, "#1c2733", "start", "vacate bench: "+driveName(r.Drive))
	d.text(20, 52, 12, "#5b6875", "start", fmt.Sprintf("%s, %d cores, Linux %s, %s, %s", r.Host.Processor, r.Host.Cores, r.Host.Kernel, r.Host.Version, r.StartedAt[:min(len(r.StartedAt), 10)]))
	d.legend()
	y := svgTop
	for _, row := range r.Rows {
		d.row(y, row)
		y += svgRow
	}
	if len(r.Processor) > 0 {
		d.processor(y+14, r.Processor)
		y += 40 + svgSpeed*len(r.Processor)
	}
	if r.Errors > 0 {
		d.text(20, y+24, 13, svgProblem, "start", fmt.Sprintf("%d requests failed: these figures are not worth much", r.Errors))
	} else {
		d.text(20, y+24, 12, "#5b6875", "start", "Each pair of bars has its own scale. The volume is reached over NBD, and encrypted with AES-256-XTS.")
	}
	d.b.WriteString("</svg>\n")
	return d.b.Bytes()
}

// driveName is the model, if there is one, and the path.
func driveName(d Drive) string {
	if d.Model != "" {
		return d.Model + " (" + d.Path + ")"
	}
	return d.Path + " (" + d.Kind + ")"
}

type drawing struct{ b bytes.Buffer }

// clean leaves out what XML 1.0 forbids.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0xfffe || r == 0xffff || r == 0xfffd {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
}

func (d *drawing) text(x, y, size int, fill, anchor, s string) {
	fmt.Fprintf(&d.b, `<text x="%d" y="%d" font-size="%d" fill="%s" text-anchor="%s">%s</text>`+"\n", x, y, size, fill, anchor, html.EscapeString(clean(s)))
}

// bar draws a bar of part of the longest one, 0 ≤ part ≤ 1, and what it stands for.
func (d *drawing) bar(y int, part float64, fill, label string) {
	w := max(1, int(part*svgBar+0.5))
	fmt.Fprintf(&d.b, `<rect x="%d" y="%d" width="%d" height="%d" rx="2" fill="%s"/>`+"\n", svgLeft, y, w, svgThick, fill)
	d.text(svgLeft+w+8, y+svgThick-3, 12, "#1c2733", "start", label)
}

func (d *drawing) legend() {
	fmt.Fprintf(&d.b, `<rect x="%d" y="66" width="12" height="12" rx="2" fill="%s"/>`+"\n", svgLeft, svgRaw)
	d.text(svgLeft+18, 77, 12, "#1c2733", "start", "raw drive")
	fmt.Fprintf(&d.b, `<rect x="%d" y="66" width="12" height="12" rx="2" fill="%s"/>`+"\n", svgLeft+110, svgVolume)
	d.text(svgLeft+128, 77, 12, "#1c2733", "start", "encrypted volume")
}

func (d *drawing) row(y int, r Row) {
	d.text(svgLeft-12, y+svgThick+5, 13, "#1c2733", "end", r.Name)
	raw, volume := Parts(r)
	d.bar(y, raw, svgRaw, Label(r, r.Raw))
	d.bar(y+svgThick+3, volume, svgVolume, Label(r, r.Volume)+"   "+FormatRatio(r.Ratio))
}

// Label is what a figure's bar stands for: requests a second for small blocks,
// bytes a second for large ones.
func Label(r Row, f Figure) string {
	s := FormatRate(f.BytesPerSecond)
	if r.BlockBytes < 64<<10 {
		s = FormatCount(f.PerSecond) + "/s"
	}
	return s + ", p50 " + FormatTime(f.P50Ns)
}

// Parts are the lengths of a row's bars as parts of the longer one.
func Parts(r Row) (raw, volume float64) {
	longest := max(r.Raw.BytesPerSecond, r.Volume.BytesPerSecond)
	if longest <= 0 {
		return 0, 0
	}
	return r.Raw.BytesPerSecond / longest, r.Volume.BytesPerSecond / longest
}

func (d *drawing) processor(y int, all []Speed) {
	d.text(20, y, 13, "#1c2733", "start", "One core")
	longest := 0.0
	for _, s := range all {
		longest = max(longest, s.BytesPerSecond)
	}
	for i, s := range all {
		at, part := y+12+i*svgSpeed, 0.0
		if longest > 0 {
			part = s.BytesPerSecond / longest
		}
		d.text(svgLeft-12, at+svgThick-3, 13, "#1c2733", "end", s.Name)
		label := FormatRate(s.BytesPerSecond)
		if s.Used {
			label += "   used here"
		}
		d.bar(at, part, svgCipher, label)
	}
}
