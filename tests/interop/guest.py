# SPDX-License-Identifier: BSD-3-Clause
"""A small Linux guest: Debian's kernel, busybox and guest-init.sh as an initramfs, run by QEMU without
KVM.  Nothing is installed: the kernel is that of this machine, or that of a package that
`run --fetch` or VARVE_INTEROP_KERNEL=DIR says is unpacked in DIR.

The guest speaks on its serial console.  A Machine keeps what it said, line by line.
"""
import glob
import lzma
import os
import re
import subprocess
import threading

from clients import ROOT, command, environment, find, need, run
from harness import wait_for
from history import HERE
from tap import Skip

QEMU = "qemu-system-x86_64"
BOOT = 300  # seconds; without KVM, beside others
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "nbd", "crc32c_generic", "ext4")


def kernel():
    """(image, {module's name: its file})"""
    base = os.environ.get("VARVE_INTEROP_KERNEL", "/")
    if base == "/" and os.uname().machine != "x86_64":
        raise Skip("there is no kernel for a guest: this machine's is another architecture's")
    for image in sorted(glob.glob(os.path.join(base, "boot/vmlinuz-*")), reverse=True):
        version = os.path.basename(image)[len("vmlinuz-"):]
        for lib in ("lib", "usr/lib"):
            found = {}
            for d, _, files in os.walk(os.path.join(base, lib, "modules", version)):
                for f in files:
                    if ".ko" in f:
                        found[f.split(".ko")[0].replace("-", "_")] = os.path.join(d, f)
            if found and os.access(image, os.R_OK):
                return image, found
    raise Skip("there is no kernel for a guest: tests/interop/run --fetch gets one")


def content(path):
    with (lzma.open if path.endswith(".xz") else open)(path, "rb") as f:
        return f.read()


def in_order(wanted, files):
    """The modules and what they depend on, each behind what it needs; a name without a file is in the
    kernel."""
    out = {}

    def add(name):
        if name in out or name not in files:
            return
        data = content(files[name])
        for needed in re.search(rb"\0depends=([^\0]*)\0", data).group(1).decode().split(","):
            add(needed.replace("-", "_"))
        out[name] = data
    for name in wanted:
        add(name)
    return list(out.items())


def archive(entries):
    """cpio's newc format, which the kernel unpacks: [(path, mode, data)]"""
    out = bytearray()
    for i, (path, mode, data) in enumerate(entries + [("TRAILER!!!", 0, b"")]):
        name = path.encode() + b"\0"
        head = (i + 1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % n for n in head) + name
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


def programs(h, names):
    """The programs, and the libraries that ldd names."""
    out = {}
    for name in names:
        path = find(name)
        if path is None:
            raise Skip("%s is not installed" % name)
        out[("bin/" if name == "busybox" else "programs/") + name] = path
        for lib in re.findall(r"(/\S+) \(0x", run(h, ["ldd", path], check=False).stdout):
            out[lib.lstrip("/")] = lib
    return [(inside, 0o100755, content(ROOT + path)) for inside, path in out.items()]


def initramfs(h, wanted, names, files):
    entries = programs(h, ["busybox"] + names) + [
        ("modules/%02d-%s" % (i, name), 0o100644, data)
        for i, (name, data) in enumerate(in_order(wanted, files))]
    with open(os.path.join(HERE, "guest-init.sh"), "rb") as f:
        entries.append(("init", 0o100755, f.read()))
    folders = {os.path.dirname(path) for path, _, _ in entries}
    while "" not in folders or any(os.path.dirname(d) not in folders for d in folders):
        folders |= {os.path.dirname(d) for d in folders}
    return archive([(d, 0o040755, b"") for d in sorted(folders - {""})] + entries)


class Machine:
    """A guest that runs; the arguments are QEMU's, the words the kernel's."""

    def __init__(self, h, arguments, words, names=()):
        need(QEMU)
        image, files = kernel()
        # Where a root sees them.
        self.files = [h.s.path("vmlinuz"), h.s.path("initrd")]
        for path, data in zip(self.files, (content(image), initramfs(h, MODULES, list(names), files))):
            with open(path, "wb") as f:
                f.write(data)
        self.lines, self.h = [], h
        cmd = [QEMU, "-accel", "tcg", "-nodefaults", "-no-user-config", "-no-reboot", "-m", "256",
               "-display", "none", "-serial", "stdio", "-kernel", self.files[0],
               "-initrd", self.files[1],
               "-append", "console=ttyS0 quiet panic=-1 " + " ".join(words), *arguments]
        self.log = open(os.path.join(h.s.logs, "qemu.log"), "a", encoding="utf-8")
        self.p = subprocess.Popen(command(cmd), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  stderr=self.log, env=dict(os.environ, **environment(h)))
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for raw in self.p.stdout:
            line = raw.decode(errors="replace").strip()
            self.lines.append(line)
            self.log.write(line + "\n")
            self.log.flush()

    def wait(self, what, condition):
        return wait_for("the guest " + what, condition, self.p, BOOT)

    def durable(self):
        """The newest step of which the guest said that it is durable."""
        said = [int(line.split()[1]) for line in self.lines if re.fullmatch(r"durable \d+", line)]
        return said[-1] if said else 0

    def wait_steps(self, more):
        """The guest does so many steps more; returns the newest."""
        target = self.durable() + more
        self.wait("does step %d" % target, lambda: self.durable() >= target)
        return self.durable()

    def stop(self):
        """The writer stops by itself."""
        self.p.stdin.write(b"stop\n")
        self.p.stdin.flush()

    def ended(self):
        """It has done all, and is off."""
        status = self.p.wait(BOOT)
        self.reader.join(BOOT)
        assert status == 0 and "done" in self.lines, (status, self.lines[-20:])

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.p.poll() is None:
            self.p.kill()
            self.p.wait()
        self.reader.join()
        self.p.stdin.close()
        self.p.stdout.close()
        self.log.close()
        for path in self.files:
            os.unlink(path)
        if exc[0]:
            print("# the guest said last:\n# " + "\n# ".join(self.lines[-30:]))
