#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""varved's web page in a real browser: Chromium without a window.

SHOTS=DIR keeps pictures of it there, wide, dark and as on a phone."""
import collections
import html.parser
import os
import re
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
import backups  # noqa: E402
import rawhttp  # noqa: E402
from harness import M, Stack  # noqa: E402
from tap import Skip, main, test  # noqa: E402

HOSTILE = "<img src=x onerror=\"document.title='owned'\"></option><script>document.title='owned'</script>"


def browse(url, *options):
    """What Chromium says when it has looked at the page: (standard output, its console)."""
    program = shutil.which("chromium")
    if not program:
        raise Skip("chromium is not installed")
    with tempfile.TemporaryDirectory(prefix="c.", ignore_cleanup_errors=True) as home:
        r = subprocess.run(
            ["timeout", "--kill-after=5", "120", program, "--headless", "--no-sandbox", "--disable-gpu",
             "--disable-dev-shm-usage", "--disable-breakpad", "--hide-scrollbars", "--no-first-run",
             "--user-data-dir=" + home, "--virtual-time-budget=3000", "--enable-logging=stderr", *options, url],
            capture_output=True, text=True, errors="replace", check=False,
            env=dict(os.environ, HOME=home, XDG_RUNTIME_DIR=home, TMPDIR=home))
        assert r.returncode == 0, r.stderr
        return r.stdout, "\n".join(line for line in r.stderr.splitlines() if "CONSOLE" in line)


class Page(html.parser.HTMLParser):
    """What Chromium made of the page, taken apart by somebody else."""

    def __init__(self, dom):
        super().__init__()
        self.count, self.attributes, self.scripts, self.texts = collections.Counter(), set(), [], []
        self.feed(dom)
        self.close()
        self.tags = set(self.count)

    def handle_starttag(self, tag, attrs):
        self.count[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        if tag == "script":
            self.scripts.append(dict(attrs).get("src"))

    def handle_data(self, data):
        self.texts.append(data)


def built(s):
    """A daemon with all that the page can show.  Its address."""
    s.start_daemon("--web", "tcp:127.0.0.1:0")
    image = s.image("<b>x&lt;.img", 64 * M, b"\1" * (8 * M))
    vda = s.serve("vda", image, scratch_max="20M")
    s.serve("web-data", s.image("w.img", 256 * M))
    old = s.serve("old", s.image("o.img", 16 * M))
    for name in ("vda", "web-data", "old"):
        s.wait_disk(name, "live")
    s.stop(old.process)
    os.truncate(old.image, 8 * M)
    s.wait_disk("old", "inconsistent")
    with s.qmp() as q, vda.connect() as guest:
        q.cmd("block-dirty-bitmap-add", node="vda", name=HOSTILE)
        q.cmd("checkpoint-create", name="monday", disks=["vda", "web-data"])
        for i in range(0, 60, 3):
            guest.write(i * M, b"x" * (M // (1 + i % 5)))
        ended, _ = backups.begin(q, ["vda"], checkpoint="tuesday")
        backups.end(q, ended)
        q.cmd("block-dirty-bitmap-diff", node="vda", name="found", reference=s.image("r.img", 64 * M),
              **{"job-id": "compare", "speed": 1})
        backups.begin(q, [{"disk": "vda", "since": "monday"}, "web-data"], id="nightly", checkpoint="wednesday")
        guest.write(0, b"y" * (2 * M))
    return "http://127.0.0.1:%d/" % rawhttp.listener(s.daemon, "web page")[1]


@test
def the_page_shows_what_there_is_and_names_do_nothing():
    """Text of names is text, the title is ours, and the console is silent: no script failed, and nothing was
    refused by the policy, because nothing tried."""
    with Stack() as s:
        url = built(s)
        with s.connect("vda") as reader:
            reader.read(0, M)
            dom, console = browse(url, "--dump-dom")
            later, console_later = browse(url, "--dump-dom", "--virtual-time-budget=45000")  # drawn anew and anew
            for name, options in (("wide", ["--window-size=1200,1700"]),
                                  ("dark", ["--window-size=1200,1700", "--force-dark-mode"]),
                                  ("phone", ["--window-size=420,2600"])):
                if os.environ.get("SHOTS"):
                    browse(url, "--screenshot=" + os.path.join(os.environ["SHOTS"], name + ".png"), *options)
        assert console == "" and console_later == "", (console, console_later)
        assert "<title>varve</title>" in dom and "<title>varve</title>" in later
        assert Page(later).count["rect"] == 32 and re.search(r'id="now"[^>]*>as of ', later)
        page = Page(dom)
        assert not page.tags & {"img", "b"} and page.scripts == ["page.js"], dom
        assert not any(a.startswith("on") for a in page.attributes), page.attributes
        shown = "\n".join(page.texts)
        for words in (HOSTILE, "bitmap " + HOSTILE, "<b>x&lt;.img", "vda", "web-data", "old", "inconsistent",
                      "2.0 MiB since the last boundary", "2.0 MiB of 20 MiB", "checkpoint monday",
                      "checkpoint tuesday", "nightly", "since monday: 1.0 MiB read", "full: 0 bytes read",
                      "1 client", "The newest that ended (1)", "compare", "This page changes nothing.",
                      "2.0 MiB of 64 MiB dirty", "64.0 KiB of 64.0 KiB at 0 bytes"):
            assert words in shown or words.replace(".0 KiB", " KiB") in shown, words
        assert "checkpoint wednesday" not in page.texts  # not to be chosen while its backup runs
        assert page.count["rect"] == 32 and page.count["circle"] == 5 and dom.count('class="span"') == 2
        assert re.search(r'id="now"[^>]*>as of ', dom), "it says that varved does not answer"


@test
def a_page_without_disks_says_so_and_one_of_another_name_is_none():
    """What a site that gives its own name our address gets (DNS rebinding), with a real browser."""
    with Stack() as s:
        s.start_daemon("--web", "tcp:127.0.0.1:0")
        url = "http://127.0.0.1:%d/" % rawhttp.listener(s.daemon, "web page")[1]
        dom, _ = browse(url, "--dump-dom", "--host-rules=MAP nowhere.example 127.0.0.1")
        assert "There is no disk yet" in dom and "No backup is running." in dom and "There is no job." in dom
        other, _ = browse(url.replace("127.0.0.1", "nowhere.example"), "--dump-dom",
                          "--host-rules=MAP nowhere.example 127.0.0.1")
        assert "does not know this name" in other and "Disks" not in other


if __name__ == "__main__":
    main()
