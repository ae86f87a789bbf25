#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Every command of the control socket with every argument missing, of a wrong type, unknown, or out
of range, alone and as an action of a transaction: the class of the error, what its message names,
and that nothing has changed.

A command that query-commands tells and that has no row here fails the test: give it one; so this is
as long as the list of commands."""
import json
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
import backups  # noqa: E402
from bitmaps import G64, PREFIX, add, infos  # noqa: E402
from harness import M, Stack  # noqa: E402
from qmpclient import QMP, QMPError  # noqa: E402
from tap import main, test  # noqa: E402

LONG_NAME = "n" * 1024
VALUES = {"string": "vda", "boolean": True, "integer": 1, "array": ["vda"], "object": {"a": 1}}
EVERYTHING = ("query-jobs", "query-block-exports", "query-block", "query-named-block-nodes", "query-checkpoints", "query-backups",
              "query-disks")


class Row:
    """valid: arguments that would be accepted.  types: {argument: its JSON type}; those in `valid`
    of which `optional` does not speak must be there.  bad: [(change to valid, pattern, class)]."""

    def __init__(self, valid, types, bad=(), optional=(), action=False):
        self.valid, self.types, self.bad, self.optional = valid, types, bad, optional
        self.action = action


NO_DISK = "There is no disk '%s.*'.*query-disks lists"
NODEV = "DeviceNotFound"


def bad_disks(key, wrap=lambda name: name):
    return [({key: wrap(name)}, NO_DISK % re.escape(name[:40]), NODEV)
            for name in ("no", "a@b", "a+b", "../vda", "ä", "x" * 64, LONG_NAME, "x" + "ä" * 600)] + [
        ({key: wrap("")}, NO_DISK % "", NODEV),
        ({key: wrap("unknown")}, "Disk 'unknown' cannot be used")]


def bad_names(key):
    """Of what is made: checkpoints, exports, backups."""
    return [({key: name}, "^%s '%s.*' is not allowed: use letters" % (key, re.escape(name[0])))
            for name in ("@", "a@b", "a+b", "a/b", ".a", "-a", "a b", "a\n", "ä")] + [
        ({key: ""}, "the %s is empty" % key),
        ({key: "x" * 65}, "the %s has 65 characters: at most 64 are allowed" % key),
        ({key: LONG_NAME}, "the %s has 1024 characters" % key)]


BITMAP = {"node": "string", "name": "string"}
BUSY = "Bitmap '%s' is currently in use by another operation and cannot be used.*end backup 'one'"
INCONSISTENT = "Bitmap '%s' is inconsistent and cannot be used.*remove it.*Disk 'vda'.*epoch"


def old_bitmap(key, inconsistent=True):
    """Of a bitmap that has to be there, and free."""
    return [({key: name}, "Dirty bitmap '%s.*' not found.*query-block.*disk 'vda'" %
             re.escape(name[:50])) for name in ("no", "B", "b ", LONG_NAME, "x" + "ä" * 511)] + [
        ({key: ""}, "Dirty bitmap '' not found"),
        ({key: "busy"}, BUSY % "busy")] + (
        [({key: "hurt"}, INCONSISTENT % "hurt")] if inconsistent else [])


def new_bitmap(key):
    return [({key: name}, "Bitmap already exists: %s: choose another name on disk 'vda'" % name)
            for name in ("b", "busy", "hurt", "passing")] + [
        ({key: ""}, "Bitmap name cannot be empty.*disk 'vda'"),
        ({key: LONG_NAME}, "Bitmap name too long.*disk 'vda'.*1024 bytes.*1023"),
        ({key: "ä" * 512}, "Bitmap name too long.*1024 bytes")]


def plain(inconsistent=True):
    return Row({"node": "vda", "name": "b"}, BITMAP, bad_disks("node") +
               old_bitmap("name", inconsistent), action=True)


GRANULARITY = "^Granularity.*power of 2 and at least 512.*2 GiB.*'new'.*disk 'vda'"


def disks_of(what):
    """Bad entries of `disks` in backup-begin and backup-estimate."""
    def on(more, pattern, cls="GenericError"):
        return ({"disks": [dict({"disk": "vda"}, **more)]}, pattern, cls)
    bad = [({"disks": []}, "'disks' must not be empty"),
           ({"disks": ["vda"]}, "'disks', expected: array of objects"),
           ({"disks": [{}]}, "'disk' is missing"),
           ({"disks": [{"disk": "vda"}, {"disk": "vda", "export": "other"}]},
            "Disk 'vda' is named twice"),
           ({"disks": [{"disk": "vda"}, {"disk": "no"}]}, NO_DISK % "no", NODEV),
           ({"disks": [{"disk": "vda"}] * 257}, "at most 256 disks"),
           on({"x": 1}, "'x' is unexpected"),
           on({"since": "no"}, "Disk 'vda' has no checkpoint 'no'.*query-checkpoints"),
           on({"since": ""}, "Disk 'vda' has no checkpoint ''.*query-checkpoints"),
           on({"since": LONG_NAME}, "Disk 'vda' has no checkpoint 'nnn.*query-checkpoints"),
           on({"since": "later"}, "Disk 'vda'.*checkpoint 'later'.*backup 'one'.*end that first"),
           on({"since": "a", "bitmap": "b"}, "'since' and 'bitmap' exclude each other"),
           on({"bitmap-mode": "always"}, "without a bitmap"),
           on({"since": "a", "bitmap-mode": "never"}, "without a bitmap"),
           on({"bitmap": "b", "bitmap-mode": "Never"}, "'bitmap-mode' does not accept.*'Never'"),
           on({"bitmap": "b", "bitmap-mode": ""}, "'bitmap-mode' does not accept"),
           on({"exportbitmap": ""}, "exportbitmap of disk 'vda'"),
           on({"exportbitmap": LONG_NAME}, "exportbitmap of disk 'vda'.*1023")]
    bad += [on(change_, pattern, *cls) for change_, pattern, *cls in
            bad_names("export") + old_bitmap("bitmap") +
            [(c, p, *rest) for c, p, *rest in bad_disks("disk")]]
    for key, kind in (("disk", "string"), ("since", "string"), ("bitmap", "string"),
                      ("export", "string"), ("exportbitmap", "string"), ("bitmap-mode", "string")):
        bad += [on({key: value}, "type for '%s', expected: %s" % (key, kind))
                for value in wrong_values(kind)]
    if what == "begin":
        bad += [on({"export": "one"}, "Export 'one' exists already.*end the backup"),
                ({"disks": [{"disk": "vda", "export": "e"}, {"disk": "vdb", "export": "e"}]},
                 "Two disks.*export name 'e'")]
    return bad


def wrong_values(kind):
    out = [None, 1.5] + [v for k, v in VALUES.items() if k != kind]
    return out if kind != "boolean" else out + [0, "on"]


UNIX = {"type": "unix", "data": {"path": "/no/such"}}


def bad_addresses(start):
    inet = {"type": "inet", "host": "127.0.0.1", "port": "0"}
    bad = [({}, "'type' is missing"), ({"type": 1}, "'type', expected: string"),
           ({"type": "fd"}, "'type' does not accept value 'fd'"),
           ({"type": LONG_NAME}, "'type' does not accept value 'n"),
           ({"type": "unix"}, "'path' is missing"),
           ({"type": "unix", "path": 1}, "'path', expected: string"),
           ({"type": "unix", "path": "a"}, "'path' must be an absolute path"),
           ({"type": "unix", "path": "/" + LONG_NAME}, "'path' must be.*at most 107 bytes"),
           ({"type": "unix", "path": "/a\n"}, "'path' holds a control character"),
           ({"type": "unix", "path": "/a", "x": 1}, "'x' is unexpected"),
           ({"type": "unix", "data": []}, "'data', expected: object"),
           ({"type": "unix", "data": {"type": "unix", "path": "/a"}}, "'data', expected: object"),
           ({"type": "unix", "data": {"path": "/a"}, "path": "/a"}, "'path' is unexpected"),
           (dict(inet, host=""), "'host' must be a name or an address"),
           (dict(inet, host="[::1]"), "'host' must be a name or an address"),
           (dict(inet, host="x" * 256), "'host' must be a name or an address"),
           (dict(inet, host="a\n"), "'host' holds a control character"),
           (dict(inet, port=1), "'port', expected: string"),
           (dict(inet, port="nbd"), "'port' must be a number"),
           (dict(inet, port=""), "'port' must be a number"),
           (dict(inet, ipv6=True), "'ipv6' is not available"),
           ({"type": "vsock", "cid": "3", "port": "1"}, "'cid' must be"),
           ({"type": "vsock", "port": "-1"}, "'port' must be a number")]
    if start:
        bad += [({"type": "unix", "path": "/no/such/socket"}, "/no/such/socket"),
                (dict(inet, port="65536"), "65536"), (dict(inet, port="9999999999"), "9999999999")]
    return [({"addr": addr}, pattern) for addr, pattern in bad]


def bad_bases():
    """Of block-export-add."""
    names = [(name, "Dirty bitmap '%s.*' not found.*query-block.*'vda'.*query-checkpoints" %
              re.escape(name[:20])) for name in ("", "no", "B", LONG_NAME, "x" + "ä" * 600)] + [
        ("hurt", "cannot tell what changed since 'hurt'.*Disk 'vda'.*epoch"),
        ("later", "checkpoint 'later' belongs to backup 'one', which still runs")]
    return [({"bitmaps": [name]}, pattern) for name, pattern in names] + [
        ({"bitmaps": [{"node": node, "name": name}]}, pattern) for name, pattern in names
        for node in ("vda", "one")] + [
        ({"bitmaps": [{"node": "vdb", "name": "b"}]}, "Bitmap 'b' of 'vdb' cannot be told by.*'vda'"),
        ({"bitmaps": ["a", "b"]}, "'bitmaps' names 2: an export has one.*add an export for each"),
        ({"bitmaps": [1]}, "'bitmaps', expected: array of names"),
        ({"bitmaps": [["b"]]}, "'bitmaps', expected: array of names"),
        ({"bitmaps": [{}]}, "'node' is missing"), ({"bitmaps": [{"node": "vda"}]}, "'name' is missing"),
        ({"bitmaps": [{"node": "vda", "name": "b", "x": 1}]}, "'x' is unexpected")]


NO_JOB = [(name, "Job not found: there is no '%s.*query-jobs" % name[:9])
          for name in ("", "no", LONG_NAME, "ä" * 512)]
NONE = Row({}, {})
FILE = {"disk": "string", "name": "string", "file": "string"}
BAD_FILES = [({"file": name}, "'file' must be an absolute path") for name in ("", "a", "./a")] + [
    ({"file": "/a\n"}, "'file' holds a control character")]
BAD_DIGESTS = [({"digest": text}, "'digest' is no SHA-256") for text in ("", "0", "G" * 64, "0" * 65)]


def bad_paths(key):
    return [({key: name}, "'%s' must be an absolute path" % key)
            for name in ("", "a", "./a", "/", "/" + "n" * 4096)] + [
        ({key: "/a\n"}, "'%s' holds a control character" % key)]


ROWS = {
    "query-version": NONE,
    "query-commands": NONE,
    "nbd-server-start": Row({"addr": UNIX}, {"addr": "object"}, bad_addresses(True)),
    "nbd-server-stop": Row({"addr": UNIX}, {"addr": "object"}, bad_addresses(False) + [
        ({"addr": UNIX}, "NBD server not running at unix:/no/such: .*query-nbd-server"),
        ({"addr": KeyError}, "NBD server not running: .*query-nbd-server")], optional=("addr",)),
    "block-export-add": Row(
        {"type": "nbd", "id": "new", "node-name": "one", "name": "new", "description": "x",
         "bitmaps": ["b"], "writable": False},
        {"type": "string", "id": "string", "node-name": "string", "name": "string",
         "description": "string", "bitmaps": "array", "writable": "boolean"},
        bad_disks("node-name") + bad_names("id") + bad_names("name") + bad_bases() +
        [({"type": "vhost-user-blk"}, "'type' does not accept value 'vhost-user-blk'"),
         ({"type": LONG_NAME}, "'type' does not accept value 'n"),
         ({"id": "one"}, "Block export id 'one' is already in use.*query-block-exports"),
         ({"name": "one"}, "Export 'one' exists already: give another name as 'name'"),
         ({"name": KeyError}, "Export 'one' exists already: give another name as 'name'"),
         ({"node-name": "vdb"}, "Disk 'vdb' has no running backup: backup-begin"),
         ({"node-name": "before"}, NO_DISK % "before", NODEV),
         ({"description": "x" * 4097}, "'description' has 4097 bytes: at most 4096"),
         ({"description": "disk a at the start of its epoch 7"}, "'description' reads as one"),
         ({"description": "x, changes since y"}, "'description' reads as one"),
         ({"writable": True}, "Cannot export read-only node as writable"),
         ({"iothread": "x"}, "'iothread' is not available")],
        optional=("name", "description", "bitmaps", "writable")),
    "block-export-del": Row(
        {"id": "no", "mode": "safe"}, {"id": "string", "mode": "string"},
        [({"id": name}, "Export '%s.*' is not found: query-block-exports" % re.escape(name[:9]))
         for name in ("", "no", "ONE", "one+delta", "one@a", LONG_NAME, "ä" * 512)] +
        [({"id": "one"}, "Export 'one' is what backup 'one' is read by.*backup-end"),
         ({"mode": "soft"}, "'mode' does not accept value 'soft'"),
         ({"mode": ""}, "'mode' does not accept value ''"),
         ({"mode": LONG_NAME}, "'mode' does not accept value 'n")], optional=("mode",)),
    "query-block-exports": NONE,
    "query-block": NONE,
    "query-backups": NONE,
    "query-nbd-server": NONE,
    "query-metrics": NONE,
    "quit": NONE,
    "qmp_capabilities": Row({"enable": []}, {"enable": "array"},
                            [({"enable": ["oob"]}, "no capability")], optional=("enable",)),
    "query-named-block-nodes": Row({"flat": True}, {"flat": "boolean"}, optional=("flat",)),
    "disk-adopt": Row({"disk": "vdb", "trust": True, "image": "/no/such"},
                      {"disk": "string", "trust": "boolean", "image": "string"},
                      bad_disks("disk") + [
                          ({"disk": "vda"}, "Disk 'vda' is served by process.*stop"),
                          ({"image": "no/such"}, "Disk 'vdb'.*absolute"),
                          ({"image": "/no/such"}, "Disk 'vdb': cannot open image /no/such"),
                          ({"image": "/"}, "Disk 'vdb': / is neither"),
                          ({"image": "/" + "n" * 4096}, "Disk 'vdb'.*absolute")],
                      optional=("image",)),
    "disk-export": Row({"disk": "vda", "directory": "/no/such", "digest": "0" * 64},
                       {"disk": "string", "directory": "string", "digest": "string"},
                       bad_disks("disk") + bad_paths("directory") + BAD_DIGESTS + [
                           ({"disk": "vda"}, "Disk 'vda' is served by process.*stop"),
                           ({"disk": "vdb"}, "/no/such is no folder that disk-export made"),
                           ({"disk": "vdb", "directory": "/no/such/folder", "digest": KeyError},
                            "cannot make /no/such/folder.tmp")],
                       optional=("digest",)),
    "disk-import": Row({"directory": "/no/such", "image": "/no/such", "disk": "new", "digest": "0" * 64,
                        "mtime-ns": 1, "trust": True},
                       {"directory": "string", "image": "string", "disk": "string",
                        "digest": "string", "mtime-ns": "integer", "trust": "boolean"},
                       bad_paths("directory") + bad_paths("image") + BAD_DIGESTS + bad_names("disk") + [
                           ({"mtime-ns": -1}, "'mtime-ns'"),
                           ({"disk": "new"}, "/no/such is no folder that disk-export made")],
                       optional=("disk", "digest", "mtime-ns", "trust")),
    "disk-resize": Row({"disk": "vdb", "size": 1 << 20}, {"disk": "string", "size": "integer"},
                       bad_disks("disk") + [
                           ({"disk": "vda"}, "Disk 'vda' is served by process.*stop"),
                           ({"size": 0}, "Disk 'vdb': 'size' must be at least 1"),
                           ({"size": -1}, "'size' must not be negative"),
                           ({"size": (1 << 63) - 1}, "Disk 'vdb': the map of .*free")]),
    "disk-forget": Row({"disk": "vda"}, {"disk": "string"}, bad_disks("disk") + [
        ({"disk": "vda"}, "Disk 'vda' is served by process.*stop")]),
    # One that cannot be used can be asked for.
    "query-disks": Row({"disk": "vda"}, {"disk": "string"}, bad_disks("disk")[:-1],
                       optional=("disk",)),
    "query-checkpoints": Row({"disk": "vda", "exported": True},
                             {"disk": "string", "exported": "boolean"}, bad_disks("disk"),
                             optional=("disk", "exported")),
    "query-changes": Row(
        {"disk": "vda", "bitmap": "b", "cells": 1},
        {"disk": "string", "bitmap": "string", "cells": "integer"},
        bad_disks("disk") + old_bitmap("bitmap") +
        [({"since": "a"}, "'since' and 'bitmap' exclude each other"),
         ({"since": 1}, "'since', expected: string"),
         ({"bitmap": KeyError, "since": "no"}, "Disk 'vda' has no checkpoint 'no'.*query-checkpoints"),
         ({"bitmap": KeyError, "since": "later"}, "Disk 'vda'.*checkpoint 'later'.*backup 'one'"),
         ({"export": "e"}, "'export' is unexpected"),
         ({"cells": 0}, "'cells' must be from 1 to 65536"), ({"cells": 65537}, "'cells' must be from 1"),
         ({"cells": -1}, "'cells' must not be negative")],
        optional=("bitmap", "cells")),
    PREFIX + "add": Row(
        {"node": "vda", "name": "new", "granularity": 65536, "persistent": True, "disabled": False},
        dict(BITMAP, granularity="integer", persistent="boolean", disabled="boolean"),
        bad_disks("node") + new_bitmap("name") +
        [({"granularity": n}, GRANULARITY) for n in
         (0, 1, 256, 511, 513, 65535, 65537, 3 << 20, 1 << 32, (1 << 31) + 1, (1 << 63) - 1)] +
        [({"granularity": n}, "'granularity' must not be negative") for n in (-1, -512, -1 << 63)],
        optional=("granularity", "persistent", "disabled"), action=True),
    PREFIX + "remove": plain(inconsistent=False),
    PREFIX + "clear": plain(),
    PREFIX + "enable": plain(),
    PREFIX + "disable": plain(),
    PREFIX + "copy": Row({"node": "vda", "name": "b", "target": "new"},
                         dict(BITMAP, target="string"),
                         bad_disks("node") + old_bitmap("name") + new_bitmap("target"), action=True),
    PREFIX + "merge": Row(
        {"node": "vda", "target": "b", "bitmaps": ["passing"]},
        {"node": "string", "target": "string", "bitmaps": "array"},
        bad_disks("node") + old_bitmap("target") +
        [({"bitmaps": ["passing", c["name"]]}, p, *rest) for c, p, *rest in old_bitmap("name")] +
        [({"bitmaps": ["passing", {"node": "vda", "name": c["name"]}]}, p, *rest)
         for c, p, *rest in old_bitmap("name")] +
        [({"bitmaps": [{"node": c["node"], "name": "b"}]}, p, *rest)
         for c, p, *rest in bad_disks("node")] +
        [({"bitmaps": [1]}, "'bitmaps', expected: array of names"),
         ({"bitmaps": [None]}, "'bitmaps', expected: array of names"),
         ({"bitmaps": [["b"]]}, "'bitmaps', expected: array of names"),
         ({"bitmaps": [{}]}, "'node' is missing"),
         ({"bitmaps": [{"node": "vda"}]}, "'name' is missing"),
         ({"bitmaps": [{"node": 1, "name": "b"}]}, "'node', expected: string"),
         ({"bitmaps": [{"node": "vda", "name": "b", "x": 1}]}, "'x' is unexpected"),
         ({"bitmaps": [{"node": "vdb", "name": "b"}]},
          "different sizes.*'b'.*disk 'vda'.*'b'.*disk 'vdb'")], action=True),
    PREFIX + "diff": Row(
        {"job-id": "new", "node": "vda", "name": "new", "reference": "/dev/null", "speed": 0,
         "on-error": "report", "resize": False},
        dict(BITMAP, reference="string", speed="integer", resize="boolean",
             **{"job-id": "string", "on-error": "string"}),
        bad_disks("node") + bad_names("job-id") + new_bitmap("name")[-3:] +
        [({"name": "busy"}, BUSY % "busy"),
         ({"speed": -1}, "'speed' must not be negative"),
         ({"on-error": "stop"}, "'on-error' does not accept value 'stop'"),
         ({"on-error": LONG_NAME}, "'on-error' does not accept value 'n"),
         ({"reference": "/" + "n" * 4096}, "'reference' must be an absolute path or an NBD URI"),
         ({"reference": "nbd:///" + "n" * 4096}, "'reference' must be an absolute path or an NBD")] +
        [({"reference": name}, "'reference' must be an absolute path or an NBD URI.*'%s" % name)
         for name in ("", "copy.img", "./copy.img", "http://a/b")],
        optional=("job-id", "speed", "on-error", "resize"), action=True),
    "query-jobs": NONE,
    "job-cancel": Row({"id": "no"}, {"id": "string"}, [({"id": n}, p) for n, p in NO_JOB]),
    "job-pause": Row({"id": "no"}, {"id": "string"}, [({"id": n}, p) for n, p in NO_JOB]),
    "job-resume": Row({"id": "no"}, {"id": "string"}, [({"id": n}, p) for n, p in NO_JOB]),
    "job-dismiss": Row({"id": "no"}, {"id": "string"}, [({"id": n}, p) for n, p in NO_JOB]),
    "block-job-set-speed": Row(
        {"device": "no", "speed": 1}, {"device": "string", "speed": "integer"},
        [({"device": n}, p) for n, p in NO_JOB] + [({"speed": -1}, "'speed' must not be negative")]),
    "checkpoint-create": Row(
        {"name": "new", "disks": ["vda", "vdb"]}, {"name": "string", "disks": "array"},
        bad_names("name") + bad_disks("disks", lambda n: ["vda", n]) +
        [({"name": "a"}, "Disk 'vda' has a checkpoint 'a' already"),
         ({"name": "later"}, "Disk 'vda' has a checkpoint 'later' already"),
         ({"disks": []}, "'disks' must not be empty"),
         ({"disks": ["vda", 1]}, "'disks', expected: array of strings"),
         ({"disks": ["vda", "vdb", "vda"]}, "Disk 'vda' is named twice")], action=True),
    "checkpoint-delete": Row(
        {"name": "a", "disks": ["vda"], "exported": True},
        {"name": "string", "disks": "array", "exported": "boolean"},
        bad_disks("disks", lambda n: ["vda", n]) +
        [({"name": name}, "Disk 'vda' has no checkpoint '%s.*query-checkpoints" % name[:9])
         for name in ("", "no", "A", "a@b", "x" * 65, LONG_NAME, "ä" * 512)] +
        [({"name": "no", "disks": KeyError}, "There is no checkpoint 'no'.*query-checkpoints"),
         ({"name": LONG_NAME, "disks": KeyError}, "There is no checkpoint 'n.*query-checkpoints"),
         ({"disks": ["vdb"]}, "Disk 'vdb' has no checkpoint 'a'"),
         ({"name": "later"}, "Disk 'vda'.*checkpoint 'later'.*backup 'one'.*end that first"),
         ({"disks": []}, "'disks' must not be empty"),
         ({"disks": [1]}, "'disks', expected: array of strings"),
         ({"disks": ["vda", "vda"]}, "Disk 'vda' is named twice")],
        optional=("disks", "exported"), action=True),
    "checkpoint-export": Row(
        {"disk": "vda", "name": "a", "file": "/dev/null"}, FILE,
        bad_disks("disk") + bad_names("name") + BAD_FILES +
        [({"name": "no"}, "Disk 'vda' has no checkpoint 'no'.*query-checkpoints"),
         ({"disk": "vdb"}, "Disk 'vdb' has no checkpoint 'a'.*query-checkpoints"),
         ({"name": "later"}, "Disk 'vda'.*checkpoint 'later'.*backup 'one'.*end that first"),
         ({}, "Disk 'vda': checkpoint 'a' cannot be exported: /dev/null exists already: give"),
         ({"file": "/" + LONG_NAME}, "Disk 'vda': checkpoint 'a' cannot be exported.*too long"),
         ({"file": "/no/" + "\u00e4/" * 600}, "Disk 'vda': checkpoint 'a'.*No such file")]),
    "checkpoint-import": Row(
        {"disk": "vda", "name": "new", "file": "/dev/null"}, FILE,
        bad_disks("disk") + bad_names("name") + BAD_FILES +
        [({}, "Disk 'vda': checkpoint 'new' cannot be imported: /dev/null is not a regular file"),
         ({"file": "/" + LONG_NAME}, "Disk 'vda': checkpoint 'new' cannot be imported.*too long"),
         ({"file": "/no/" + "\u00e4/" * 600}, "Disk 'vda': checkpoint 'new'.*No such file")],
        action=True),
    "backup-estimate": Row({"disks": [{"disk": "vda"}]}, {"disks": "array"}, disks_of("estimate")),
    "backup-begin": Row(
        {"id": "new", "ttl": 0, "speed": 0, "adaptive": False, "release": False, "preserve": "all",
         "freeze": False, "checkpoint": "new", "disks": [{"disk": "vda"}]},
        {"id": "string", "ttl": "integer", "speed": "integer", "adaptive": "boolean",
         "release": "boolean", "preserve": "string", "freeze": "boolean", "checkpoint": "string",
         "disks": "array"},
        disks_of("begin") + bad_names("id") + bad_names("checkpoint") +
        [({"id": "one"}, "There is a backup 'one' already.*choose another id"),
         ({"id": "before"}, "There is a backup 'before' already.*choose another id"),
         ({"checkpoint": "a"}, "Disk 'vda' has a checkpoint 'a' already.*choose another name"),
         ({"ttl": -1}, "'ttl' must not be negative"),
         ({"speed": -1}, "'speed' must not be negative"),
         ({"preserve": "none"}, "'preserve' does not accept value 'none'"),
         ({"preserve": "d" * 600}, "'preserve' does not accept value 'd"),
         ({"preserve": ""}, "'preserve' does not accept value ''"),
         ({"freeze": True}, "no freeze hook.*--freeze-hook")],
        optional=("id", "ttl", "speed", "adaptive", "release", "preserve", "freeze", "checkpoint"),
        action=True),
    "backup-push": Row(
        {"job-id": "new", "disk": "vda", "target": "/nowhere/new", "bitmap": "b",
         "bitmap-mode": "never", "speed": 0, "checkpoint": "new", "freeze": False,
         "overwrite": False},
        {"job-id": "string", "disk": "string", "target": "string", "bitmap": "string",
         "bitmap-mode": "string", "speed": "integer", "checkpoint": "string", "freeze": "boolean",
         "overwrite": "boolean"},
        bad_disks("disk") + bad_names("job-id") + bad_names("checkpoint") + old_bitmap("bitmap") +
        [({"checkpoint": "a", "target": "nbd:"}, "Disk 'vda' has a checkpoint 'a' already"),
         ({"since": "a"}, "'since' and 'bitmap' exclude each other"),
         ({"since": "no", "bitmap": KeyError, "bitmap-mode": KeyError},
          "Disk 'vda' has no checkpoint 'no'"),
         ({"bitmap": KeyError}, "without a bitmap"),
         ({"bitmap-mode": "Never"}, "'bitmap-mode' does not accept.*'Never'"),
         ({"speed": -1}, "'speed' must not be negative"),
         ({"freeze": True, "target": "nbd:"}, "no freeze hook.*--freeze-hook"),
         ({}, "the folder of /nowhere/new: No such file"),
         ({"target": "/" + LONG_NAME}, "'?/n*: File name too long"),
         ({"target": "/" + "n" * 4096}, "'target' must be an absolute path or an NBD URI"),
         ({"target": "nbd:///" + "n" * 4096}, "'target' must be an absolute path or an NBD URI"),
         ({"target": "/dev/zero"}, "neither a regular file nor a block device"),
         ({"target": "/"}, "is no name of a file|Is a directory")] +
        [({"target": name}, "'target' must be an absolute path or an NBD URI.*'%s" % name)
         for name in ("", "copy.img", "./copy.img", "http://a/b")],
        optional=("job-id", "bitmap", "bitmap-mode", "speed", "checkpoint", "freeze", "overwrite"),
        action=True),
    "backup-end": Row(
        {"id": "one", "success": True}, {"id": "string", "success": "boolean"},
        [({"id": name}, "There is no backup '%s.*query-backups" % name[:9])
         for name in ("", "no", "ONE", LONG_NAME, "ä" * 512)] +
        [({"id": "before", "success": False}, "Backup 'before' has ended before, as completed")],
        optional=("success",)),
    "transaction": Row(
        {"actions": [], "properties": {"completion-mode": "individual"}},
        {"actions": "array", "properties": "object"},
        [({"actions": [1]}, "'actions', expected: array of objects"),
         ({"actions": [{"data": {}}]}, "'type' is missing"),
         ({"actions": [{"type": "abort"}]}, "'data' is missing"),
         ({"actions": [{"type": 1, "data": {}}]}, "'type', expected: string"),
         ({"actions": [{"type": "abort", "data": []}]}, "'data', expected: object"),
         ({"actions": [{"type": "abort", "data": {}, "x": 1}]}, "'x' is unexpected"),
         ({"actions": [{"type": "abort", "data": {"x": 1}}]}, "'x' is unexpected"),
         ({"actions": [{"type": "quit", "data": {}}]}, "'type' does not accept value 'quit'"),
         ({"actions": [{"type": "backup-end", "data": {"id": "one"}}]},
          "'type' does not accept value 'backup-end'"),
         ({"actions": [{"type": "abort", "data": {}}]}, "aborted using Abort action"),
         ({"actions": [{"type": "abort", "data": {}}] * 4097}, "at most 4096 actions"),
         ({"properties": {"x": 1}}, "'x' is unexpected"),
         ({"properties": {"completion-mode": 1}}, "'completion-mode', expected: string"),
         ({"properties": {"completion-mode": "both"}}, "does not accept value 'both'"),
         ({"properties": {"completion-mode": "grouped"}}, "grouped is not supported")],
        optional=("properties",)),
}


class World:
    """Two disks, one of them not served, and one whose folder tells nothing; a running backup of
    the first one with a checkpoint; bitmaps: free, busy, transient, inconsistent."""

    def __init__(self):
        self.s = s = Stack()
        try:
            self.build(s)
        except BaseException:
            s.close(show=True)
            raise

    def build(self, s):
        s.start("vda", 64 * M, granularity="64K")
        vdb = s.start("vdb", 32 * M, granularity="4K")
        s.stop(vdb.process)
        s.wait_disk("vdb", "offline")
        os.mkdir(s.state + "/unknown")
        with open(s.state + "/unknown/disk.json", "w") as f:
            f.write("{}")
        self.q = q = s.qmp()
        add(q, "hurt")
        first = q.cmd("query-disks", disk="vda")[0]["epoch"]
        for name in ("b", "busy"):
            add(q, name)
        add(q, "passing", persistent=False)
        add(q, "b", "vdb")
        with s.disks["vda"].connect() as c:
            c.write(0, b"x" * M)
            q.cmd("checkpoint-create", name="a", disks=["vda"])
            c.write(5 * M, b"x" * G64)
            c.disc()
        ident, _ = backups.begin(q, ["vdb"], id="before")
        backups.end(q, ident)
        backups.begin(q, [{"disk": "vda", "bitmap": "busy", "export": "one"}], id="one",
                      checkpoint="later")
        os.unlink("%s/vda/epoch-%d-%d.map" % (s.state, first, first))
        got = infos(q)
        assert got["hurt"]["inconsistent"] and got["busy"]["busy"] and not got["b"]["inconsistent"]
        assert q.cmd("query-disks", disk="unknown")[0]["state"] == "inconsistent"
        self.before = self.look()
        del q.events[:]

    def look(self):
        """All that can be asked for, and the names of the files that hold epochs and blocks."""
        return {c: self.q.cmd(c) for c in EVERYTHING}, sorted(
            f for d in ("vda", "vdb") for f in os.listdir(self.s.state + "/" + d)
            if f.startswith(("epoch-", "blocks-")))

    def unchanged(self, why):
        after = self.look()
        assert after == self.before, "%s has changed something: %s" % (
            why, [(c, self.before[0][c], after[0][c]) for c in EVERYTHING
                  if self.before[0][c] != after[0][c]] or after[1])

    def refused(self, command, args, pattern, cls="GenericError"):
        """None, or what is wrong."""
        q = self.q if command != "qmp_capabilities" else QMP(self.s.control, negotiate=False)
        try:
            answer = q.execute(command, args)
        except QMPError as e:
            if e.cls == cls and re.search(pattern, e.desc, re.DOTALL) and e.desc.isprintable():
                return None
            return "%s %s: expected %s %r, got %s" % (command, short(args), cls, pattern, e)
        except EOFError:
            return "%s %s: the connection was closed" % (command, short(args))
        finally:
            if q is not self.q:
                q.close()
        return "%s %s: accepted: %s" % (command, short(args), short(answer))

    def __enter__(self):
        return self

    def __exit__(self, kind, value, tb):
        self.q.close()
        return self.s.__exit__(kind, value, tb)


def short(value):
    text = json.dumps(value)
    return text if len(text) < 200 else text[:200] + "..."


def trials(row):
    """(arguments, pattern, class) of all that a row says must be refused."""
    for key in row.valid:
        if key not in row.optional:
            yield ({k: v for k, v in row.valid.items() if k != key}, "'%s' is missing" % key,
                   "GenericError")
    for key, kind in row.types.items():
        for value in wrong_values(kind):
            yield (dict(row.valid, **{key: value}), "type for '%s', expected: %s" % (key, kind),
                   "GenericError")
    for key in ("x", "no-such-argument", "", "Name", "k" * 900):
        yield dict(row.valid, **{key: 1}), "'%s.*' is unexpected" % key[:50], "GenericError"
    for change_, pattern, *cls in row.bad:
        args = dict(row.valid, **change_)
        yield ({k: v for k, v in args.items() if v is not KeyError}, pattern,
               cls[0] if cls else "GenericError")


@test
def every_command_has_a_row():
    with Stack() as s:
        s.start_daemon()
        names = {c["name"] for c in s.command("query-commands")}
        assert names == set(ROWS), "no row: %s; no command: %s" % (names - set(ROWS),
                                                                   set(ROWS) - names)


@test
def wrong_arguments_are_refused_by_name_and_change_nothing():
    with World() as w:
        wrong, n = [], 0
        for command, row in ROWS.items():
            for args, pattern, cls in trials(row):
                wrong.append(w.refused(command, args, pattern, cls))
                n += 1
            if not any(wrong):
                w.unchanged(command)
        wrong = [x for x in wrong if x]
        assert not wrong, "%d of %d:\n%s" % (len(wrong), n, "\n".join(wrong[:20]))
        assert w.q.events == [], w.q.events


@test
def wrong_arguments_of_an_action_undo_the_others():
    """Behind actions that were fine: a bitmap, a checkpoint, a backup; the same words, no trace."""
    good = [{"type": PREFIX + "clear", "data": {"node": "vda", "name": "b"}},
            {"type": PREFIX + "add", "data": {"node": "vda", "name": "tmp"}},
            {"type": "checkpoint-create", "data": {"name": "tmp", "disks": ["vda", "vdb"]}},
            {"type": "backup-begin", "data": {"id": "tmp", "disks": [
                {"disk": "vdb", "export": "tmp"}]}}]
    with World() as w:
        wrong, n = [], 0
        for command, row in ROWS.items():
            for args, pattern, cls in trials(row) if row.action else ():
                action = {"type": command, "data": args}
                wrong.append(w.refused("transaction", {"actions": good + [action]}, pattern, cls))
                wrong.append(w.refused("transaction", {"actions": [action] + good}, pattern, cls))
                n += 2
            if not any(wrong):
                w.unchanged("transaction of " + command)
        wrong = [x for x in wrong if x]
        assert not wrong, "%d of %d:\n%s" % (len(wrong), n, "\n".join(wrong[:20]))
        assert w.q.events == [], w.q.events


@test
def arguments_are_an_object_of_text():
    """For every command: not a list, a word or a number; no bytes that are no UTF-8, no half a pair
    of surrogates, no key twice, no number that no machine can count to."""
    with World() as w:
        for command in ROWS:
            for raw, pattern in ((b"[]", "'arguments'.*object"), (b'"x"', "'arguments'.*object"),
                                 (b"1", "'arguments'.*object"), (b"null", "'arguments'.*object"),
                                 (b'{"name": "\xff"}', "not JSON"),
                                 (b'{"name": "\xc3"}', "not JSON"),
                                 (b'{"name": "\\ud800"}', "not JSON"),
                                 (b'{"name": "b\\u0000c"}', "not JSON: .u0000 is not allowed at"),
                                 (b'{"name": "a", "name": "b"}', "not JSON"),
                                 (b'{"ttl": 9223372036854775808}', "not JSON"),
                                 (b'{"granularity": -9223372036854775809}', "not JSON")):
                w.q.send_raw(b'{"execute": "%s", "arguments": %s}\n' % (command.encode(), raw))
                m = w.q.message()
                assert m.get("error", {}).get("class") == "GenericError" and re.search(
                    pattern, m["error"]["desc"]), (command, raw, m)
        w.unchanged("all of that")


if __name__ == "__main__":
    main()
