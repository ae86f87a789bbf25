# SPDX-License-Identifier: BSD-3-Clause
"""The oracle of point in time: is an image the disk at one instant, according to the writers' logs?

Nothing here knows the code under test.  For an image taken at a boundary between `called` (begin
was sent) and `replied` (its answer came):

  1. each writer's marker names the last request that is wholly in the image; all before it are in;
  2. the one request after it may be in by whole pieces (of 1 MiB), each wholly or not at all;
  3. replaying exactly these requests, in the order of the log, gives the image byte for byte;
  4. the cut is an instant: nothing that is in was sent after something that is out had been done,
     nothing that is in was sent after `replied`, nothing that is out had been done before `called`.
"""
from backups import first_difference
from writers import PIECE, SECTOR, describe


class Torn(AssertionError):
    pass


def pieces(event):
    off, stop = event.off, event.off + event.len
    while off < stop:
        n = min(stop, (off // PIECE + 1) * PIECE) - off
        yield off, n
        off += n


class Replay:
    """Replays the log up to the cut of each image; images come in the order of their instants."""

    def __init__(self, guests, initial):
        self.guests = guests
        self.base = bytearray(initial)
        self.cut = [0] * guests.count
        self.position = 0      # events of the log before this one are in base or in `waiting`
        self.waiting = []

    def _markers(self, image):
        g, out = self.guests, []
        for w in range(g.count):
            at = g.markers + w * SECTOR
            sector = image[at:at + SECTOR]
            if not any(sector):
                out.append(0)
                continue
            seq = int.from_bytes(sector[12:20], "little")
            if sector != g.content.data(w, seq, at, SECTOR, b"varve-mk"):
                raise Torn("marker of writer %d is torn: %s" % (w, describe(sector)))
            out.append(seq)
        return out

    def _advance(self, cut):
        """Puts everything up to the cut into base; returns each writer's next event."""
        g = self.guests
        todo = self.waiting + g.log[self.position:]
        self.position += len(todo) - len(self.waiting)
        self.waiting = []
        following = {}
        for e in todo:
            if e.seq <= cut[e.writer]:
                self.base[e.off:e.off + e.len] = g.content.of(e)
                at = g.markers + e.writer * SECTOR
                self.base[at:at + SECTOR] = g.content.data(e.writer, e.seq, at, SECTOR,
                                                           b"varve-mk")
            else:
                self.waiting.append(e)
                if e.seq == cut[e.writer] + 1:
                    following[e.writer] = e
        return following

    def check(self, image, called, replied, what="image"):
        """Raises Torn, with what differs, unless the image is the disk at one instant."""
        log = self.guests.log
        cut = self._markers(image)
        for w, (old, new) in enumerate(zip(self.cut, cut)):
            if new < old:
                raise Torn("%s: writer %d went back from seq %d to %d" % (what, w, old, new))
        last = {}
        for e in log:
            if e.seq == cut[e.writer]:
                last[e.writer] = e
        following = self._advance(cut)
        self.cut = cut
        newest_in = max([e.mark_sent for e in last.values()] or [0])
        oldest_out = min([e.mark_done for e in following.values() if e.mark_done] or [1 << 63])
        expected = bytearray(self.base)
        seen = []
        for e in sorted(following.values(), key=log.index):
            # Then it was sent when the other had been done: what that one left there is what it finds.
            overlapped = any(e.off < s.off + s.len and s.off < e.off + e.len for s in seen)
            seen.append(e)
            for off, n in pieces(e):
                now = image[off:off + n]
                new = self.guests.content.of(e, off, n)
                if now == expected[off:off + n]:
                    if now != new and e.done:
                        oldest_out = min(oldest_out, e.done)
                elif now == new and not overlapped and e.sent:
                    expected[off:off + n] = new
                    newest_in = max(newest_in, e.sent)
                else:
                    at = off + (first_difference(now, expected[off:off + n]) or 0)
                    raise Torn("%s: piece %d+%d of (%s) is torn or wrong; sector %d holds %s" % (
                        what, off, n, e, at // SECTOR, describe(image[at:at + SECTOR])))
        self._compare(image, expected, what)
        if newest_in > replied:
            raise Torn("%s holds a request sent after begin had been answered" % what)
        if oldest_out < called:
            raise Torn("%s lacks a request done before begin was called" % what)
        if newest_in > oldest_out:
            raise Torn("%s is no instant: lacks a request that was done before one was sent "
                       "that it has" % what)

    def _compare(self, image, expected, what):
        at = first_difference(image, expected)
        if at is None:
            return
        bad = [s for s in range(0, len(image), SECTOR)
               if image[s:s + SECTOR] != expected[s:s + SECTOR]]
        lines = ["%s: %d sectors differ from the replay; cut %s" % (what, len(bad), self.cut)]
        for s in bad[:8]:
            lines.append("  offset %d: has %s; should have %s" % (
                s, describe(image[s:s + SECTOR]), describe(expected[s:s + SECTOR])))
        raise Torn("\n".join(lines))
