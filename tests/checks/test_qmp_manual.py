#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""docs/varve-qmp.pod: each command, argument and event stands in it, and each example is true.

An example is a verbatim block of lines "-> what is sent" and "<- what comes", which may be continued on
the next line.  They run in the page's order, against disks vda and vdb of 64 MiB in a stack of their
own, whose paths the page calls /var/lib/varve, /run/varve and /srv.  Of an answer the keys have to
be the documented ones, no fewer and no more, strings and booleans too; numbers only have to be numbers,
"..." in a string stands for anything, and ends a list.  `=for example ACTION` does what ACTIONS says.

    test_qmp_manual.py --write        writes into the page what was really answered, where that differs
                                      or is missing: give the lines that send, and read what came of it
"""
import json
import os
import re
import shutil
import sys
import textwrap

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")
sys.path[:0] = [os.path.join(TOP, "tests/e2e"), os.path.join(TOP, "tests/server")]
import test_argument_errors  # noqa: E402
from harness import K, M, Stack  # noqa: E402
from qmpclient import QMP  # noqa: E402
import tap  # noqa: E402
from tap import diag, main, test  # noqa: E402

tap.tests.clear()  # that file's own

PAGE = os.path.join(TOP, "docs/varve-qmp.pod")
HOOK = """#!/bin/sh
[ "$1" = freeze ] || [ ! -e %s ] || { echo "it is stuck"; exit 1; }
"""


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def sections(text):
    """{heading of level 2: its text}"""
    parts = re.split(r"^=head2 (.*)$", re.sub(r"^=head1 .*$", "=head2 -", text, flags=re.MULTILINE),
                     flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def items(section):
    """What the section's lists name: C<disk>, or C<disks[].since>."""
    return set(re.findall(r"^=item C<([^>]+)>", section, re.MULTILINE))


# --- what an example says ---------------------------------------------------------------------------


def messages(block):
    """[(direction, JSON, its lines)] of a verbatim block."""
    out = []
    for line in block:
        m = re.match(r"\s+(->|<-) (.*)$", line)
        if m:
            out.append([m.group(1), m.group(2), [line]])
        else:
            out[-1][1] += " " + line.strip()
            out[-1][2].append(line)
    return [(way, json.loads(text), lines) for way, text, lines in out]


def steps(text):
    """The page's lines in pieces: ("do", words), ("say", messages), ("text", lines)."""
    block = []
    for line in text.split("\n") + [""]:
        if re.match(r"\s+\S", line) and (block or re.match(r"\s+(->|<-) ", line)):
            block.append(line)
            continue
        if block:
            yield "say", messages(block)
            block = []
        if line.startswith("=for example "):
            yield "do", (line.split()[2:], line)
        else:
            yield "text", line


def fits(told, real):
    """Whether what is told may be said of what was answered."""
    if isinstance(told, dict):
        return isinstance(real, dict) and told.keys() == real.keys() and all(
            fits(told[k], real[k]) for k in told)
    if isinstance(told, list):
        if told[-1:] == ["..."]:
            told, real = told[:-1], real[:len(told) - 1]
        return isinstance(real, list) and len(told) == len(real) and all(map(fits, told, real))
    if isinstance(told, str):
        return isinstance(real, str) and re.fullmatch(
            ".*".join(map(re.escape, told.split("..."))), real, re.DOTALL) is not None
    if isinstance(told, bool) or told is None:
        return told is real
    return isinstance(real, (int, float)) and not isinstance(real, bool)


# --- the stack that they run in ---------------------------------------------------------------------


class Example:
    def __init__(self, stack):
        self.s, self.events, self.last_id = stack, [], 0
        self.paths = [("/var/lib/varve", stack.state), ("/run/varve", stack.runtime),
                      ("/srv", stack.dir)]
        os.makedirs(stack.path("backup"))
        hook = stack.path("hook")
        with open(hook, "w", encoding="utf-8") as f:
            f.write(HOOK % stack.path("stuck"))
        os.chmod(hook, 0o755)
        for name in ("vda", "vdb"):
            stack.serve(name, stack.image(name + ".img", 64 * M, b"\1" * (8 * M)))
        stack.start_daemon("--freeze-hook", hook)
        for name in ("vda", "vdb"):
            stack.wait_disk(name, "live")
        self.q = QMP(stack.control, negotiate=False)
        self.q.cmd("qmp_capabilities")

    def real(self, text):
        for page, real in self.paths:
            text = text.replace(page, real)
        return text

    def page(self, text):
        for page, real in self.paths:
            text = text.replace(real, page)
        return text

    def sent(self, message):
        """Sends it; its answer."""
        self.last_id += 1
        real = json.loads(self.real(json.dumps(message)))
        self.q.send_raw(json.dumps(dict(real, id=self.last_id)).encode() + b"\n")
        while True:
            m = self.message()
            if m.get("id") == self.last_id:
                del m["id"]
                return dict(m, id=message["id"]) if "id" in message else m

    def message(self):
        m = json.loads(self.page(json.dumps(self.q.message())))
        if "event" in m:
            del m["timestamp"]
            self.events.append(m)
        return m

    def event(self, name):
        """The first event of that name that nobody has looked at."""
        while True:
            for m in self.events:
                if m["event"] == name:
                    self.events.remove(m)
                    return m
            self.message()

    def forget_events(self):
        """Those that were sent until now."""
        self.sent({"execute": "query-version"})
        self.events.clear()

    # What =for example can ask for.

    def connect(self):
        """a new connection, which has said nothing yet"""
        self.q.close()
        self.q = QMP(self.s.control, negotiate=False)

    def write(self, disk, off, length):
        """the guest writes: write DISK OFFSET LENGTH"""
        unit = {"K": K, "M": M}
        off, length = (int(x[:-1]) * unit[x[-1]] if x[-1] in unit else int(x) for x in (off, length))
        with self.s.disks[disk].connect() as guest:
            guest.write(off, b"\2" * length)

    def serve(self, disk, *params):
        """nbdkit serves it, with parameters: serve DISK KEY=VALUE..."""
        self.s.serve(disk, self.s.path(disk + ".img") if os.path.exists(self.s.path(disk + ".img"))
                     else self.s.image(disk + ".img", 64 * M, b"\1" * (8 * M)),
                     **dict((p.replace("-", "_")).split("=") for p in params))
        self.s.wait_disk(disk, "live")

    def stop(self, disk):
        """nbdkit ends, nobody serves it: stop DISK"""
        self.s.stop(self.s.disks[disk].process)
        self.s.wait_disk(disk, "offline")

    def touch(self, name):
        """somebody makes a file below /srv, or changes one by a byte: touch NAME"""
        with open(self.s.path(name), "ab") as f:
            f.write(b"x")

    def copy(self, name, to):
        """somebody copies a file below /srv: copy NAME TO"""
        shutil.copyfile(self.s.path(name), self.s.path(to))

    def forget(self, name):
        """a file below /srv goes: forget NAME"""
        os.unlink(self.s.path(name))

    def do(self, words):
        getattr(self, words[0])(*words[1:])


def formatted(way, message, indent="    "):
    lines = textwrap.wrap(json.dumps(message, ensure_ascii=False), 112, break_long_words=False,
                          break_on_hyphens=False)
    return [indent + (way + " " if i == 0 else "   ") + line for i, line in enumerate(lines)]


def run_example(example, block):
    """[(what the page says, what was answered)], as far as they differ, and the lines as they should be."""
    wrong, lines, replied, reply = [], [], True, None
    for way, told, text in block + [("->", None, [])]:
        if way == "->":
            if not replied:
                lines += formatted("<-", reply)
                wrong.append(("no answer", reply))
            if told is None:
                break
            lines += text
            reply, replied = example.sent(told), False
            continue
        if "QMP" in told:
            real = example.q.greeting
        elif "event" in told:
            real = example.event(told["event"])
        else:
            real, replied = reply, True
        if fits(told, real):
            lines += text
        else:
            wrong.append((told, real))
            lines += formatted("<-", real)
    return wrong, lines


def run_page(stack, text):
    example, wrong, lines = Example(stack), [], []
    done = False  # something, which may have caused events
    for kind, what in steps(text):
        if kind == "text":
            lines.append(what)
        elif kind == "do":
            if not done:
                example.forget_events()
            example.do(what[0])
            lines.append(what[1])
            done = True
        else:
            if not done:
                example.forget_events()
            done = False
            w, better = run_example(example, what)
            wrong += [(what[0][1],) + x for x in w]
            lines += better
    example.q.close()
    return wrong, "\n".join(lines)


# --- the tests --------------------------------------------------------------------------------------


def commands():
    return re.findall(r'^    \{"([a-z_-]+)", (?:varve_command_\w+|NULL)\},', read(
        os.path.join(TOP, "server/commands.c")), re.MULTILINE)


def events():
    out = set()
    for folder, _, files in os.walk(os.path.join(TOP, "server")):
        for name in files:
            for call in re.findall(r"varve_events_send\([^;]*;", read(os.path.join(folder, name))):
                out |= set(re.findall(r'"([A-Z_]{5,})"', call))
    return out


def missing(page, of_commands, of_events, rows):
    """What the page lacks, as sentences that say what to do."""
    there, out = sections(page), []
    for name in of_commands:
        if name not in there:
            out.append("docs/varve-qmp.pod has no '=head2 %s': say what it does, list its arguments with "
                       "=item C<NAME>, give an example; test_qmp_manual.py --write fills in answers" % name)
            continue
        if not re.search(r'"(execute|type)": "%s"' % re.escape(name), page):
            out.append("docs/varve-qmp.pod shows no example of %s" % name)
        for argument in sorted(rows[name].types if name in rows else ()):
            if not any(i.split("[")[0].split(".")[0] == argument for i in items(there[name])):
                out.append("docs/varve-qmp.pod: %s does not list its argument C<%s>" % (name, argument))
    for name in of_events:
        if name not in there:
            out.append("docs/varve-qmp.pod has no '=head2 %s' for the event" % name)
        elif '"event": "%s"' % name not in page:
            out.append("docs/varve-qmp.pod shows no event %s" % name)
    known = set(of_commands) | set(of_events)
    out += ["docs/varve-qmp.pod tells of %s, which is not there" % name for name in there
            if re.fullmatch("[a-z_]+(-[a-z]+)+|[A-Z]+(_[A-Z]+)+|quit", name) and name not in known]
    return out


@test
def every_command_argument_and_event_is_in_the_manual():
    assert len(commands()) > 25 and len(events()) > 5
    page = read(PAGE)
    found = missing(page, commands(), sorted(events()), test_argument_errors.ROWS)
    assert not found, "\n".join(found)
    page = page.replace("=head2 backup-end\n", "=head2 x\n").replace("=item C<success>", "=item C<s>")
    found = missing(page, commands() + ["new-thing"], ["NEW_EVENT"], test_argument_errors.ROWS)
    assert any("'=head2 backup-end'" in x for x in found) and any("new-thing" in x for x in found)
    assert any("NEW_EVENT" in x for x in found)


@test
def every_example_of_the_manual_is_true():
    with Stack() as s:
        wrong, _ = run_page(s, read(PAGE))
        for sent, told, real in wrong:
            diag("%s\n  the manual: %s\n  in truth:   %s" % (
                json.dumps(sent), json.dumps(told), json.dumps(real)))
        assert not wrong, "%d examples are not true; test_qmp_manual.py --write writes what is" % len(wrong)


@test
def an_example_that_is_not_true_is_found():
    for told, real, good in (({"a": 1}, {"a": 2.5}, True), ({"a": 1}, {"a": 1, "b": 1}, False),
                             ({"a": 1, "b": 2}, {"a": 1}, False), ({"a": True}, {"a": False}, False),
                             ({"a": 1}, {"a": True}, False), ("x", "y", False), ("a...c", "abc", True),
                             ([1, "..."], [1, 2, 3], True), ([1], [1, 2], False), (None, 1, False)):
        assert fits(told, real) == good, (told, real)
    block = messages(['    -> {"execute": "query-version"}', '    <- {"return":', '       {}}'])
    assert block[1][1] == {"return": {}}


def write():
    with Stack() as s:
        wrong, text = run_page(s, read(PAGE))
    with open(PAGE, "w", encoding="utf-8") as f:
        f.write(text.rstrip("\n") + "\n")
    print("%d answers written" % len(wrong))


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write()
    else:
        main()
