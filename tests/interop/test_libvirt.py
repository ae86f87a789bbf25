#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What varve-recipes(7) says of a guest's disk to libvirt: libvirt's schema and its parser take it."""
import json
import os
import re

from clients import client, main, run
from history import HERE
from reach import UNIX
from tap import Skip

PAGE = os.path.join(HERE, "../../docs/varve-recipes.pod")
DOMAIN = """<domain type='test'><name>varve</name><memory>4096</memory><os><type>hvm</type></os>
<devices>%s</devices></domain>"""
DEFINE = """
import json, sys
try:
    import libvirt
except ImportError:
    print(json.dumps({"skip": "python3-libvirt is not installed"}))
    raise SystemExit
libvirt.registerErrorHandler(lambda *a: None, None)
c = libvirt.open("test:///default")
xml = sys.argv[1]
if libvirt.getVersion() < 11000000:
    xml = xml.replace("<reconnect delay='30'/>", "")
try:
    d = c.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    print(json.dumps({"xml": d.XMLDesc()}))
except libvirt.libvirtError as why:
    print(json.dumps({"refused": str(why)}))
"""


def define(h, disk):
    got = json.loads(run(h, ["/usr/bin/python3", "-c", DEFINE, DOMAIN % disk]).stdout)
    if "skip" in got:
        raise Skip(got["skip"])
    return got


@client("python3-libvirt", "the disk of varve-recipes(7) is defined, after libvirt's schema", [UNIX])
def libvirt_takes_the_recipes_disk(h, r):
    """But for <reconnect>, which Debian 12's does not know."""
    with open(PAGE, encoding="utf-8") as f:
        disk = re.search(r"^ libvirt +(<disk .*?</disk>)", f.read(), re.MULTILINE | re.DOTALL).group(1)
    got = define(h, disk)
    assert "xml" in got, got
    for word in ("protocol='nbd'", "transport='unix'", "socket='/run/varve-nbd/vda.sock'",
                 "discard='unmap'"):
        assert word in got["xml"], got["xml"]
    wrong = define(h, disk.replace("discard='unmap'", "discard='always'"))
    assert "refused" in wrong, "libvirt takes everything: %s" % wrong


if __name__ == "__main__":
    main()
