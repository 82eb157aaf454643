"""A DICOM client that breaks the rules, or keeps them in ways that few do: bytes on a socket, no DICOM library.

Runs one case (--list names them) and prints one JSON object:
  pdus      what came back, in order: "AC", "RJ result/source/reason", "DATA", "RELEASE-RQ", "RELEASE-RP", "ABORT source/reason"
  statuses  of the DIMSE answers among them, hexadecimal, with the command: "8030:0000"
  accepted  result of each presentation context, when there was an AC
  longest   longest P-DATA PDU that came back, in bytes after its head
  closed    whether the other end closed the connection, within --within seconds of the last byte that we sent; after a release
            it is for us to close, and it gets a moment only
  seconds   from the first byte until the end
Cases that send something lawful end it with a release, and then "RELEASE-RP" is among the PDUs.
"""
import argparse
import json
import socket
import struct
import time

VERIFICATION, CT = b"1.2.840.10008.1.1", b"1.2.840.10008.5.1.4.1.1.2"
IMPLICIT, EXPLICIT = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1"
UID = b"1.2.826.0.1.3680043.10.999.7.1"
FLOOD = 64 << 20  # bytes of a case that never ends by itself
REASONS = {3: lambda b: f"RJ {b[7]}/{b[8]}/{b[9]}", 7: lambda b: f"ABORT {b[8]}/{b[9]}"}
NAMES = {1: "RQ", 2: "AC", 4: "DATA", 5: "RELEASE-RQ", 6: "RELEASE-RP"}

parser = argparse.ArgumentParser()
parser.add_argument("case", nargs="?")
parser.add_argument("--to", help="HOST:PORT")
parser.add_argument("--called", default="WARDGATE")
parser.add_argument("--calling", default="MODALITY")
parser.add_argument("--within", type=float, default=5.0, help="seconds to wait for answers and for the end of the connection")
parser.add_argument("--pause", type=float, default=0.2, help="seconds between the bytes of the slow cases")
parser.add_argument("--count", type=int, default=200, help="connections of the case 'connections'")
parser.add_argument("--list", action="store_true")
args = parser.parse_args()


def pdu(kind, body, length=None):
    return struct.pack(">BxI", kind, len(body) if length is None else length) + body


def item(kind, body):
    return struct.pack(">BxH", kind, len(body)) + body


def context(number, abstract, syntaxes, more=b""):
    return item(0x20, bytes([number, 0, 0, 0]) + item(0x30, abstract) + b"".join(item(0x40, s) for s in syntaxes) + more)


CONTEXTS = context(1, VERIFICATION, [IMPLICIT]) + context(3, CT, [EXPLICIT])


def request(contexts=CONTEXTS, version=1, maximum=16384, more=b"", user=b"", called=None, application=b"1.2.840.10008.3.1.1.1"):
    """A-ASSOCIATE-RQ, PS3.8 section 9.3.2."""
    titles = (called or args.called.encode()).ljust(16) + args.calling.encode().ljust(16)
    user = item(0x51, struct.pack(">I", maximum)) + item(0x52, UID) + user
    return pdu(1, struct.pack(">Hxx", version) + titles + bytes(32) + item(0x10, application) + contexts + more + item(0x50, user))


def pdv(number, data, command=False, last=True, length=None):
    return struct.pack(">IBB", len(data) + 2 if length is None else length, number, command | last << 1) + data


def element(number, value):
    return struct.pack("<HHI", 0, number, len(value) + len(value) % 2) + value + b"\0" * (len(value) % 2)


def command(field, sop_class=None, uid=None, data=False, message=1, more=b""):
    """A command set, implicit VR little endian, PS3.7 section 6.3.1."""
    short = lambda number, value: element(number, struct.pack("<H", value))
    body = element(2, sop_class) if sop_class is not None else b""
    body += short(0x100, field) + short(0x110, message) + (short(0x700, 0) if field == 1 else b"")
    body += short(0x800, 0 if data else 0x101) + (element(0x1000, uid) if uid is not None else b"") + more
    return element(0, struct.pack("<I", len(body))) + body


def echo(message=1):
    return pdv(1, command(0x30, VERIFICATION, message=message), command=True)


def store(uid=UID, message=1, sop_class=CT):
    return pdv(3, command(1, sop_class, uid, data=True, message=message), command=True)


def data_set(size=2000, uid=UID):
    def explicit(group, number, vr, value):
        value += b"\0" * (len(value) % 2)
        length = struct.pack("<xxI", len(value)) if vr == b"OW" else struct.pack("<H", len(value))
        return struct.pack("<HH", group, number) + vr + length + value
    return (explicit(8, 0x16, b"UI", CT) + explicit(8, 0x18, b"UI", uid) + explicit(8, 0x60, b"CS", b"CT")
            + explicit(0x10, 0x20, b"LO", b"TEST-1") + explicit(0x20, 0xD, b"UI", UID + b".1")
            + explicit(0x20, 0xE, b"UI", UID + b".2") + explicit(0x7FE0, 0x10, b"OW", bytes(size)))


RELEASE = pdu(5, bytes(4))
ABORT = pdu(7, bytes(4))


class Peer:
    """The other end: what we send it and what it says."""

    def __init__(self):
        host, port = args.to.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began, self.heard, self.closed, self.taken = time.monotonic(), b"", False, 0
        self.seen = []

    def send(self, data):
        """Whether it was taken. What the other end said before it took no more can still be heard."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return not self.closed

    def slowly(self, data):
        for byte in data:
            if not self.send(bytes([byte])) or self.listen(args.pause, lambda: False):
                return

    def flood(self, block):
        sent = 0
        self.socket.settimeout(args.within)
        while sent < FLOOD and self.send(block):
            sent += len(block)

    def listen(self, within, enough):
        """Reads until `enough`, the end, or the time is over; tells whether it is the end."""
        end = time.monotonic() + within
        while not self.closed and not enough():
            self.socket.settimeout(max(end - time.monotonic(), 0.001))
            try:
                block = self.socket.recv(65536)
            except TimeoutError:
                break
            except OSError:
                block = b""
            self.closed = not block
            self.heard += block
            self.take()
        return self.closed

    def take(self):
        while len(self.heard) - self.taken >= 6:
            length = struct.unpack(">I", self.heard[self.taken + 2:self.taken + 6])[0]
            if len(self.heard) - self.taken < 6 + length:
                return
            self.seen.append(self.heard[self.taken:self.taken + 6 + length])
            self.taken += 6 + length

    def associated(self, **changes):
        self.send(request(**changes))
        self.expect(1)
        return bool(self.seen) and self.seen[0][0] == 2

    def expect(self, count):
        """Until so many PDUs came."""
        self.listen(args.within, lambda: len(self.seen) >= count)

    def release(self, answers=0):
        """After so many more answers."""
        self.expect(len(self.seen) + answers)
        self.send(RELEASE)
        self.listen(args.within, lambda: any(p[0] == 6 for p in self.seen))

    def result(self):
        ended = time.monotonic() - self.began
        released = bool(self.seen) and self.seen[-1][0] == 6
        self.listen(0.05 if released else args.within, lambda: False)
        ended = ended if not self.closed else time.monotonic() - self.began
        names = [REASONS[p[0]](p) if p[0] in REASONS else NAMES.get(p[0], hex(p[0])) for p in self.seen]
        return {"pdus": names, "statuses": self.statuses(), "accepted": self.accepted(), "closed": self.closed,
                "longest": max((len(p) - 6 for p in self.seen if p[0] == 4), default=0), "seconds": round(ended, 3),
                "bytes": len(self.heard)}

    def accepted(self):
        results = {}
        for p in self.seen:
            at = 74
            while p[0] == 2 and at + 4 <= len(p):
                kind, length = p[at], struct.unpack(">H", p[at + 2:at + 4])[0]
                if kind == 0x21:
                    results[p[at + 4]] = p[at + 6]
                at += 4 + length
        return [results[number] for number in sorted(results)]

    def statuses(self):
        whole, found = b"", []
        for p in self.seen:
            at = 6
            while p[0] == 4 and at + 6 <= len(p):
                length, _, flags = struct.unpack(">IBB", p[at:at + 6])
                whole += p[at + 6:at + 4 + length]
                at += 4 + length
                if flags == 3:
                    found.append(self.status(whole))
                    whole = b""
        return found

    def status(self, body):
        values, at = {}, 0
        while at + 8 <= len(body):
            _, number, length = struct.unpack("<HHI", body[at:at + 8])
            values[number] = body[at + 8:at + 8 + length]
            at += 8 + length
        number = lambda key: "%04X" % struct.unpack("<H", values.get(key, b"\xff\xff"))[0]
        return number(0x100) + ":" + number(0x900)


def lawful(*pdus, answers=1, **changes):
    """Associates, sends P-DATA PDUs of these PDVs, waits for so many answers, releases."""
    def run(peer):
        if peer.associated(**changes):
            for body in pdus:
                peer.send(pdu(4, body))
            peer.release(answers)
    return run


def raw(data, before=None):
    """Sends bytes; after an association when `before` says so."""
    return lambda peer: (before is None or peer.associated()) and peer.send(data)


def flooding(first, block):
    return lambda peer: peer.associated() and peer.send(first) and peer.flood(block)


def connections(peer):
    idle = [Peer() for _ in range(args.count)]
    lawful(echo())(peer)
    return idle


def release_twice(peer):
    if peer.associated():
        peer.send(RELEASE + RELEASE)


def slow_store(peer):
    if peer.associated():
        peer.send(pdu(4, store()))
        peer.slowly(pdu(4, pdv(3, data_set(20))))


def broken(*pieces):
    """Sends pieces of a store and closes the connection without a word."""
    def run(peer):
        if peer.associated():
            for piece in pieces:
                peer.send(piece)
            peer.socket.shutdown(socket.SHUT_WR)
    return run


half = len(data_set()) // 2
many = b"".join(context(2 * i + 3, CT + b".%d" % i, [EXPLICIT + b".99.%d.1234567890" % s for s in range(38)]) for i in range(127))
VERY_MANY = context(1, VERIFICATION, [IMPLICIT]) + many
asked = command(0x30, VERIFICATION)


def pieces(data, size):
    return [data[i:i + size] for i in range(0, len(data), size)]


def split_echo(size):
    """All fragments of a command in one PDU."""
    parts = pieces(asked, size)
    return b"".join(pdv(1, part, command=True, last=i == len(parts) - 1) for i, part in enumerate(parts))


whole = data_set()
CASES = {
    # Not DICOM, or not for long.
    "http": raw(b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"),
    "tls": raw(bytes.fromhex("16030100c8010000c40303") + bytes(194)),
    "idle": lambda peer: peer.listen(args.within, lambda: False),
    "connections": connections,
    "huge-request": lambda peer: peer.send(pdu(1, b"", length=0xFFFFFFFF)) and peer.flood(bytes(1 << 20)),
    "request-of-300k": raw(request(contexts=many + many)),
    "unknown-pdu": raw(pdu(0x42, bytes(16))),
    "data-first": raw(pdu(4, echo())),
    "slow-request": lambda peer: peer.slowly(request()),
    "cut-request": lambda peer: (peer.send(request()[:80]), peer.socket.shutdown(socket.SHUT_WR)),
    "item-past-the-end": raw(pdu(1, request()[6:][:-2])),
    "no-user-information": raw(pdu(1, request()[6:74] + CONTEXTS)),
    # Requests that are lawful, and odd.
    "request-of-148k": lawful(echo(), contexts=VERY_MANY),
    "version-3": lawful(echo(), version=3),
    "version-2": raw(request(version=2)),
    "unknown-item": lawful(echo(), more=item(0x60, b"later")),
    "unknown-user-item": lawful(echo(), user=item(0x5F, b"later")),
    "unknown-sub-item": lawful(echo(), contexts=context(1, VERIFICATION, [IMPLICIT], item(0x41, b"later"))),
    "private-syntax-only": lawful(contexts=context(3, CT, [b"1.2.840.113619.5.2"]), answers=0),
    "no-contexts": lawful(contexts=b"", answers=0),
    "even-context": lawful(contexts=context(2, VERIFICATION, [IMPLICIT]), answers=0),
    "same-context-twice": lawful(contexts=context(1, VERIFICATION, [IMPLICIT]) * 2, answers=0),
    "no-syntaxes": lawful(contexts=context(1, VERIFICATION, []), answers=0),
    "window-0-0": lawful(echo(), user=item(0x53, bytes(4))),
    "identity": lawful(echo(), user=item(0x58, b"\2\1" + struct.pack(">H", 4) + b"user" + struct.pack(">H", 4) + b"word")),
    "other-application": raw(request(application=b"1.2.3.4")),
    "other-called": raw(request(called=b"SOMEBODY-ELSE")),
    "empty-called": raw(request(called=b" " * 16)),
    "zero-max-pdu": lawful(echo(), maximum=0),
    "tiny-max-pdu": lawful(echo(), maximum=16, answers=5),
    "max-pdu-of-4": lawful(echo(), maximum=4, answers=0),
    # P-DATA, lawful.
    "command-with-data": lawful(store() + pdv(3, whole)),
    "command-after-data": lawful(store(), pdv(3, whole) + echo(2), answers=2),
    "all-in-one": lawful(store() + pdv(3, whole) + store(UID + b".9", 2) + pdv(3, data_set(uid=UID + b".9")) + echo(3), answers=3),
    "split-command": lawful(split_echo(2)),
    "empty-fragments": lawful(store(), *[pdv(3, b"", last=False)] * 50, pdv(3, whole, last=False), pdv(3, b"")),
    "small-fragments": lawful(store(), *(pdv(3, part, last=False) for part in pieces(whole, 6)), pdv(3, b"")),
    "two-echoes-at-once": lawful(echo(1) + echo(2), answers=2),
    "slow-store": slow_store,
    # P-DATA, unlawful.
    "odd-fragments": lawful(split_echo(1), store(message=2), *(pdv(3, part, last=False) for part in pieces(whole, 7)), pdv(3, b""), answers=2),
    "huge-data": flooding(pdu(4, b"", length=0xFFFFFFF0), bytes(1 << 20)),
    "data-beyond-maximum": flooding(pdu(4, store()) + pdu(4, b"", length=8 << 20), bytes(1 << 20)),
    "fragment-past-the-end": raw(pdu(4, pdv(1, b"1234", command=True, length=4000)), before=True),
    "fragment-of-one-byte": raw(pdu(4, struct.pack(">IB", 1, 1)), before=True),
    "fragment-of-length-0": raw(pdu(4, struct.pack(">I", 0) + bytes(8)), before=True),
    "empty-data-pdu": raw(pdu(4, b""), before=True),
    "unknown-context": raw(pdu(4, pdv(9, command(0x30, VERIFICATION), command=True)), before=True),
    "data-without-command": raw(pdu(4, pdv(3, whole)), before=True),
    "data-in-other-context": raw(pdu(4, store()) + pdu(4, pdv(1, whole)), before=True),
    "command-in-data": raw(pdu(4, store()) + pdu(4, pdv(3, whole[:half], last=False)) + pdu(4, echo(2)), before=True),
    "endless-command": flooding(b"", pdu(4, pdv(1, bytes(16000), command=True, last=False)) * 16),
    "command-that-lies": raw(pdu(4, pdv(1, struct.pack("<HHI", 0, 2, 700 << 20) + b"1.2", command=True)), before=True),
    "empty-command": raw(pdu(4, pdv(1, b"", command=True)), before=True),
    "noise-command": raw(pdu(4, pdv(1, bytes(range(256)) * 8, command=True)), before=True),
    "unknown-command": lawful(pdv(1, command(0x0FF0, VERIFICATION), command=True)),
    "answer-as-command": raw(pdu(4, pdv(1, command(0x8030, VERIFICATION), command=True)), before=True),
    "cancel": lawful(pdv(1, command(0x0FFF), command=True) + echo(2)),
    "find": lawful(pdv(1, command(0x20, VERIFICATION, data=True), command=True) + pdv(1, b"")),
    "store-without-data": lawful(pdv(3, command(1, CT, UID), command=True)),
    "store-without-instance": lawful(pdv(3, command(1, CT, data=True), command=True) + pdv(3, whole)),
    "store-of-other-class": lawful(store(sop_class=CT + b".999") + pdv(3, whole)),
    "store-of-path": lawful(store(uid=b"../../../../tmp/wardgate-escaped") + pdv(3, whole)),
    "store-of-nul": lawful(store(uid=b"1.2\0/../3") + pdv(3, whole)),
    "store-of-long-instance": lawful(store(uid=b"1.2." + b"9" * 200) + pdv(3, whole)),
    # Endings.
    "half-store": broken(pdu(4, store()), pdu(4, pdv(3, whole[:half], last=False))),
    "half-pdu": broken(pdu(4, store()), pdu(4, pdv(3, whole))[:half]),
    "abort-in-store": broken(pdu(4, store()), pdu(4, pdv(3, whole[:half], last=False)), ABORT),
    "release-in-store": raw(pdu(4, store()) + pdu(4, pdv(3, whole[:half], last=False)) + RELEASE, before=True),
    "release-twice": release_twice,
    "data-after-release": raw(RELEASE + pdu(4, echo()), before=True),
    "release-answer-unasked": raw(pdu(6, bytes(4)), before=True),
    "request-twice": raw(request(), before=True),
    "half-closed-after-store": broken(pdu(4, store()), pdu(4, pdv(3, whole))),
}
if args.list:
    print("\n".join(CASES))
else:
    other = Peer()
    held = CASES[args.case](other)
    print(json.dumps({"case": args.case, **other.result()}))
