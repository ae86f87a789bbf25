# SPDX-License-Identifier: BSD-3-Clause
"""virtnbdbackup's own code, without libvirt: backs up exports, and restores what it backed up.
Run by test_virtnbdbackup.py with the Python that has the package, 1.9.15, 2.28 or 2.53; argument:
a JSON list of

    {"do": "backup", "disk": NAME, "level": "full"|"inc"|"diff", "to": DIR, "socket": PATH or
     "host": H, "port": N, "tls": BOOL, "qemu": BOOL, "compress": BOOL}
    {"do": "restore", "files": [indexes of backups in this list], "socket": PATH}

Prints a JSON list: of each backup the file and the bytes of data in it.  What is replaced here is
the wait of a second before each connection: these servers listen.
"""
import argparse
import contextlib
import glob
import importlib.machinery
import importlib.util
import inspect
import json
import os
import sys
from types import SimpleNamespace

from libvirtnbdbackup import nbdcli, output
from libvirtnbdbackup.sparsestream import streamer, types

try:
    from libvirtnbdbackup.backup import disk as backup_code
    from libvirtnbdbackup.output import stream as output_stream
    from libvirtnbdbackup.restore import data as restore_code
    OLD = False
except ImportError:
    OLD = True

sys.modules[nbdcli.client.__module__].sleep = lambda seconds: None


def script(name):
    """1.9 has the code of a backup in its program."""
    loader = importlib.machinery.SourceFileLoader(name, "/usr/bin/" + name)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


def writer(args):
    """Where a backup's files go; how that is said differs."""
    if OLD:
        return output.target().Directory(args.output)
    if "repository" in inspect.signature(output_stream.get).parameters:
        return output_stream.get(args, output.target())
    return output_stream.get(args)


def backup(job):
    compress = (2 if OLD else True) if job["compress"] else False
    args = argparse.Namespace(
        type="stream", level=job["level"], level_filename=job["level"], offline=False,
        socketfile=job.get("socket", ""), nbd_port=job.get("port", 0), nbd_ip=job.get("host", ""),
        tls=job.get("tls", False), qemu=job["qemu"], no_sparse_detection=False, output=job["to"],
        stdout=False, compress=compress, noprogress=True, strict=False,
        cpt=SimpleNamespace(name="virtnbdbackup.0", parent=None, file=None))
    disk = SimpleNamespace(target=job["disk"], format="qcow2", filename="", path="",
                           backingstores=[], discardOption=None)
    virt = SimpleNamespace(remoteHost=job.get("host", ""))
    if OLD:
        done = script("virtnbdbackup").backupDisk(
            args, disk, 0, writer(args), virt)
    else:
        _, done = backup_code.backup(args, disk, 0, writer(args), virt)
    assert done is True, "the backup was not done"
    path, = glob.glob(os.path.join(job["to"], "%s.%s.*data" % (job["disk"], job["level"])))
    with open(path, "rb") as f:
        stream = streamer.SparseStream(types)
        _, _, length = stream.readFrame(f)
        return {"file": path, "data": stream.loadMetadata(f.read(length))["dataSize"]}


def restore(job, done):
    args = argparse.Namespace(until=None, noprogress=True, output_target=None, stdout=False,
                              level="full")
    where = nbdcli.Unix("", "", job["socket"])
    connection = (nbdcli.client(where) if OLD else nbdcli.client(where, False)).connect()
    if OLD:
        code = script("virtnbdrestore").restoreData
    else:
        args.inputSource = writer(args)
        code = restore_code.restore
    for i in job["files"]:
        assert code(args, streamer.SparseStream(types), done[i]["file"], "target", connection) is True
    connection.disconnect()
    return {}


done = []
with contextlib.redirect_stdout(sys.stderr):
    for job in json.loads(sys.argv[1]):
        done.append(backup(job) if job["do"] == "backup" else restore(job, done))
print(json.dumps(done))
