# SPDX-License-Identifier: BSD-3-Clause
"""A QMP client: greeting, capabilities, commands, events.  One thread at a time."""
import json
import socket


class QMPError(Exception):
    def __init__(self, cls, desc):
        super().__init__("%s: %s" % (cls, desc))
        self.cls, self.desc = cls, desc


class QMP:
    def __init__(self, path, timeout=60, negotiate=True):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(timeout)
        self.sock.connect(path)
        self.buf = b""
        self.events = []
        self.next_id = 1
        self.greeting = self.message()
        assert "QMP" in self.greeting, self.greeting
        if negotiate:
            self.cmd("qmp_capabilities")

    def send_raw(self, data):
        self.sock.sendall(data)

    def message(self):
        """The next JSON message of the server; messages are lines."""
        while b"\n" not in self.buf:
            data = self.sock.recv(1 << 20)
            if not data:
                raise EOFError("the control socket was closed")
            self.buf += data
        line, self.buf = self.buf.split(b"\n", 1)
        return json.loads(line)

    def cmd(self, name, /, **args):
        """Executes a command; underscores in argument names become dashes."""
        return self.execute(name, {k.replace("_", "-"): v for k, v in args.items()})

    def execute(self, name, args=None):
        ident = "e2e-%d" % self.next_id
        self.next_id += 1
        request = {"execute": name, "id": ident}
        if args:
            request["arguments"] = args
        self.send_raw(json.dumps(request).encode() + b"\n")
        while True:
            m = self.message()
            if "event" in m:
                self.events.append(m)
                continue
            # What could not be taken apart is refused without an id.
            assert m.get("id") == ident or "error" in m and "id" not in m, (
                "answer to another command: %s" % m)
            if "error" in m:
                raise QMPError(m["error"]["class"], m["error"]["desc"])
            return m["return"]

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
