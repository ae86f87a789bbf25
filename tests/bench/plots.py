# SPDX-License-Identifier: BSD-3-Clause
"""A page with one bar for each row of the measurements, as SVG inside HTML: no library is needed."""
import html
import os

WIDTH, BAR, GAP, LEFT = 900, 16, 12, 420


def bar(y, r):
    """The value as a share of its bound: the line in the middle is the bound itself."""
    limit = float(r["bound"].split()[1])
    share = [min(r[k] / limit, 2.0) if limit else 0 for k in ("low", "value", "high")]
    x = [LEFT + s * (WIDTH - LEFT - 20) / 2 for s in share]
    colour = "#2a7" if r["verdict"] == "met" else "#c43"
    title = r["what"] + (": " + r["case"] if r["case"] else "")
    text = "%.3g %s (%s)" % (r["value"], r["unit"], r["bound"])
    return ('<text x="%d" y="%d" text-anchor="end">%s</text>' % (LEFT - 8, y + 12, html.escape(title)) +
            '<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>' % (LEFT, y, max(x[1] - LEFT, 1), BAR, colour) +
            '<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#333"/>' % (x[0], x[2], y + BAR // 2, y + BAR // 2) +
            '<text x="%d" y="%d" fill="#000">%s</text>' % (LEFT + 6, y + 12, html.escape(text)))


def page(folder, results):
    shown = [r for r in results if "value" in r and r["bound"]]
    height = len(shown) * (BAR + GAP) + 20
    middle = LEFT + (WIDTH - LEFT - 20) / 2
    svg = ('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">'
           % (WIDTH, height))
    svg += '<rect width="100%" height="100%" fill="#fff"/>'
    for i, r in enumerate(shown):
        svg += bar(10 + i * (BAR + GAP), r)
    svg += '<line x1="%d" x2="%d" y1="0" y2="%d" stroke="#666" stroke-dasharray="4 3"/></svg>' % (middle, middle, height)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "bench.svg"), "w") as f:
        f.write(svg)
    with open(os.path.join(folder, "bench.html"), "w") as f:
        f.write("<!doctype html><meta charset=utf-8><title>varve: measurements</title>\n<h1>Measurements</h1>\n"
                "<p>Each bar is a share of its bound, which is the dashed line; the thin line is the spread.</p>\n"
                '<img src="bench.svg" alt="bars">\n')
