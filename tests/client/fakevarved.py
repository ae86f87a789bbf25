# SPDX-License-Identifier: BSD-3-Clause
"""A control socket that answers as told: replies = {command: value or callable(arguments)}.

A value is what "return" holds; an Error becomes an error reply; None is never answered.
`seen` lists (command, arguments) without qmp_capabilities."""
import json
import os
import socket
import threading

from harness import Folder

GREETING = {"QMP": {"version": {"varve": {"major": 0, "minor": 1, "micro": 0}, "package": ""},
                    "capabilities": []}}


class Error:
    def __init__(self, desc, cls="GenericError"):
        self.desc, self.cls = desc, cls


class FakeVarved:
    def __init__(self, path, replies=None, greeting=None, split=None, noise=b"", after=b""):
        self.path = path
        self.replies = replies or {}
        self.greeting = json.dumps(GREETING).encode() + b"\r\n" if greeting is None else greeting
        self.split, self.noise = split, noise
        self.after = after  # what comes right behind the handshake
        self.seen = []
        self.closing = False
        self.connections = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(8)
        self.threads = [threading.Thread(target=self.accept)]

    def __enter__(self):
        self.threads[0].start()
        return self

    def __exit__(self, *exc):
        self.closing = True
        self.listener.shutdown(socket.SHUT_RDWR)
        for c in self.connections:
            try:
                c.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for t in self.threads:
            t.join(20)
        self.listener.close()
        os.unlink(self.path)

    def accept(self):
        while not self.closing:
            try:
                c, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(c)
            t = threading.Thread(target=self.serve, args=(c,))
            self.threads.append(t)
            t.start()

    def send(self, c, data):
        step = self.split or len(data)
        for i in range(0, len(data), step or 1):
            c.sendall(data[i:i + step])

    def serve(self, c):
        try:
            self.send(c, self.greeting)
            decoder, text = json.JSONDecoder(), ""
            while True:
                piece = c.recv(65536)
                if not piece:
                    return
                text += piece.decode()
                while text.strip():
                    try:
                        message, end = decoder.raw_decode(text.lstrip())
                    except ValueError:
                        break
                    text = text.lstrip()[end:]
                    if self.answer(c, message):
                        return
        except OSError:
            pass
        finally:
            c.close()

    def answer(self, c, message):
        command, arguments = message["execute"], message.get("arguments")
        if command == "qmp_capabilities":
            value = {}
        else:
            self.seen.append((command, arguments))
            value = self.replies.get(command, Error("The command %s has not been found" % command,
                                                    "CommandNotFound"))
        if callable(value):
            value = value(arguments)
        if value is None:
            return False
        if isinstance(value, Error):
            reply = {"error": {"class": value.cls, "desc": value.desc}}
        else:
            reply = {"return": value}
        if "id" in message:
            reply["id"] = message["id"]
        self.send(c, self.noise + json.dumps(reply).encode() + b"\r\n")
        if command == "qmp_capabilities" and self.after:
            self.send(c, self.after)
        return command == "quit"


class FakeDaemon(Folder):
    """A folder with a daemon that answers as told at `control`."""

    def __init__(self, replies=None, **kw):
        super().__init__()
        self.control = self("c.sock")
        self.daemon = FakeVarved(self.control, replies, **kw)

    def __enter__(self):
        self.daemon.__enter__()
        return self

    def __exit__(self, *exc):
        self.daemon.__exit__(*exc)
        super().__exit__(*exc)
