#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The rules once more, under TLS: what is said before the transmission phase.

Each of these files is run as it is, with clients that begin by STARTTLS (NBD_TEST_TLS)."""
import os
import sys

TOPICS = ["clients", "handshake", "info", "list", "metactx", "options"]

run = os.path.join(os.path.dirname(os.path.abspath(__file__)), "run")
words = [a for w in sys.argv[1:] for a in ("-k", w)]
os.environ["NBD_TEST_TLS"] = "1"
os.execv(sys.executable, [sys.executable, run] + words + TOPICS)
