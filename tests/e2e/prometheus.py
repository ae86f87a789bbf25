# SPDX-License-Identifier: BSD-3-Clause
"""A strict reader of Prometheus' text format 0.0.4, and promtool where there is one."""
import re
import shutil
import subprocess

LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*"'
SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(%s(?:,%s)*)\})? (\d+(?:\.\d+)?)' % (LABEL, LABEL))


def samples(text):
    """{name and labels as they stand there: number}.  One group of lines for each metric, HELP and TYPE
    first; no sample twice; histograms that add up."""
    assert text.endswith("\n") and "\r" not in text
    out, kinds, current, helped = {}, {}, None, None
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            helped = re.fullmatch(r"# HELP (\S+) \S.*", line).group(1)
            continue
        if line.startswith("# TYPE "):
            current, kind = re.fullmatch(r"# TYPE (\S+) (counter|gauge|histogram)", line).groups()
            assert current == helped and current not in kinds, line
            assert (kind == "counter") == current.endswith("_total"), line
            kinds[current] = kind
            continue
        name, labels, number = SAMPLE.fullmatch(line).groups()
        ends = ("_bucket", "_sum", "_count") if kinds[current] == "histogram" else ("",)
        assert name in [current + e for e in ends], line
        key = name + ("{%s}" % labels if labels else "")
        assert key not in out, line
        out[key] = float(number) if "." in number else int(number)
    for name, kind in kinds.items():
        if kind == "histogram":
            adds_up(out, name)
    return out


def adds_up(out, name):
    bounds = [(float(re.search('le="(.*)"', k).group(1).replace("Inf", "inf")), v)
              for k, v in out.items() if k.startswith(name + "_bucket")]
    assert bounds == sorted(bounds) and bounds[-1] == (float("inf"), out[name + "_count"]), bounds
    assert [v for _, v in bounds] == sorted(v for _, v in bounds), bounds


def judged(text):
    """promtool's complaints, where it is installed."""
    if not shutil.which("promtool"):
        return ""
    r = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True,
                       check=False, timeout=60)
    return r.stdout + r.stderr if r.returncode else ""
