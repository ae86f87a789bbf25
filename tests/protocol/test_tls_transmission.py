#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The rules once more, under TLS: requests, replies, limits, and peers that mean harm.

Each of these files is run as it is, with clients that begin by STARTTLS (NBD_TEST_TLS)."""
import os
import sys

TOPICS = ["errors", "extended", "hostile", "limits", "lost", "read", "shutdown", "status", "writes"]

run = os.path.join(os.path.dirname(os.path.abspath(__file__)), "run")
words = [a for w in sys.argv[1:] for a in ("-k", w)]
os.environ["NBD_TEST_TLS"] = "1"
os.execv(sys.executable, [sys.executable, run] + words + TOPICS)
