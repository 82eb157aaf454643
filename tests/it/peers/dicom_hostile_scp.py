"""A DICOM archive that breaks the rules, or keeps them in ways that few do: bytes on a socket, no DICOM library.

Prints "listening HOST:PORT", serves one CASE for ever (one association at a time), and prints one JSON object in a line for each
association: what the client sent ("RQ", "DATA" for any number in a row, "RELEASE-RQ", "RELEASE-RP", "ABORT source/reason"), the longest P-DATA PDU in bytes
after its head, the objects that came whole, whether the client closed, and the seconds it took. It stores nothing.

  good                 a plain archive: accepts the first transfer syntax of each context, answers 0000
  max-pdu-0            announces no limit for P-DATA
  max-pdu-tiny         takes P-DATA of 64 bytes at most
  max-pdu-4            announces a limit that nothing fits in
  short-rejections     rejects every context but the first, without a transfer syntax sub-item
  unknown-items        answers with items that nobody knows
  other-syntax         accepts with a transfer syntax that was not proposed
  no-contexts          accepts the association and rejects every context: transfer syntaxes not supported
  user-rejections      the same, but as the application's wish
  no-reasons           the same, but without a reason
  left-out             accepts the association and says nothing of any context
  silent               takes the connection and says nothing
  silent-store         takes the first object and never answers
  closes               closes the connection at once
  closes-in-store      closes it in the middle of an object
  abort-in-store       aborts in the middle of an object
  rejects-for-now      A-ASSOCIATE-RJ transient, local limit exceeded
  rejects-for-ever     A-ASSOCIATE-RJ permanent, called AE title not recognized
  http                 answers like a web server
  huge                 answers with a PDU of 4 GiB
  wrong-message        answers another message id
  wrong-instance       answers for another instance
  two-answers          answers each object twice
  split-answers        answers in fragments of two bytes
  collision            asks for release at the same time as the client
  silent-release       never answers the release
"""
import argparse
import json
import socket
import struct
import time

REFUSED = {"no-contexts": 4, "user-rejections": 1, "no-reasons": 2, "left-out": None}  # results of all contexts
MAXIMUM = {"max-pdu-0": 0, "max-pdu-tiny": 64, "max-pdu-4": 4}
UID = b"1.2.826.0.1.3680043.10.999.8"
NAMES = {1: "RQ", 4: "DATA", 5: "RELEASE-RQ", 6: "RELEASE-RP"}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("case")
parser.add_argument("--port", type=int, default=0)
args = parser.parse_args()


def pdu(kind, body):
    return struct.pack(">BxI", kind, len(body)) + body


def item(kind, body):
    return struct.pack(">BxH", kind, len(body)) + body


def items(body):
    at = 0
    while at + 4 <= len(body):
        length = struct.unpack(">H", body[at + 2:at + 4])[0]
        yield body[at], body[at + 4:at + 4 + length]
        at += 4 + length


def answer(request):
    """A-ASSOCIATE-AC for a request's body, PS3.8 section 9.3.3."""
    contexts, first = b"", True
    for kind, body in items(request[68:]):
        if kind != 0x20:
            continue
        syntax = next(value for sub, value in items(body[4:]) if sub == 0x40)
        if args.case == "other-syntax":
            syntax = b"1.2.840.10008.1.2.4.50"
        if args.case == "left-out":
            continue
        refused = args.case in REFUSED or args.case == "short-rejections" and not first
        short = refused and args.case == "short-rejections"
        contexts += item(0x21, bytes([body[0], 0, REFUSED.get(args.case, 4) if refused else 0, 0]) + (b"" if short else item(0x40, syntax)))
        first = False
    later = item(0x60, b"later") if args.case == "unknown-items" else b""
    user = item(0x51, struct.pack(">I", MAXIMUM.get(args.case, 16384))) + item(0x52, UID)
    user += item(0x5F, b"later") if later else b""
    return pdu(2, request[:68] + item(0x10, b"1.2.840.10008.3.1.1.1") + later + contexts + item(0x50, user))


def elements(body):
    found, at = {}, 0
    while at + 8 <= len(body):
        number, length = struct.unpack("<xxHI", body[at:at + 8])
        found[number] = body[at + 8:at + 8 + length]
        at += 8 + length
    return found


def element(number, value):
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHI", 0, number, len(value)) + value


def response(asked):
    number = struct.unpack("<H", asked[0x110])[0] + (args.case == "wrong-message")
    field = struct.unpack("<H", asked[0x100])[0] | 0x8000
    body = element(2, asked[2]) + element(0x100, struct.pack("<H", field)) + element(0x120, struct.pack("<H", number))
    body += element(0x800, b"\1\1") + element(0x900, b"\0\0")
    if 0x1000 in asked:
        body += element(0x1000, UID if args.case == "wrong-instance" else asked[0x1000])
    return element(0, struct.pack("<I", len(body))) + body


class Client:
    """The other end of one association."""

    def __init__(self, connection):
        self.socket, self.names, self.longest, self.stored = connection, [], 0, 0
        self.command, self.asked, self.received = b"", None, 0

    def read(self, count):
        data = b""
        while len(data) < count:
            block = self.socket.recv(count - len(data))
            if not block:
                raise ConnectionError
            data += block
        return data

    def next(self):
        kind, length = struct.unpack(">BxI", self.read(6))
        body = self.read(length)
        name = f"ABORT {body[2]}/{body[3]}" if kind == 7 else NAMES.get(kind, hex(kind))
        if kind != 4 or self.names[-1:] != [name]:
            self.names.append(name)
        if kind == 4:
            self.longest = max(self.longest, length)
        return kind, body

    def serve(self):
        if args.case == "closes":
            return
        kind, body = self.next()
        first = {"http": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "huge": struct.pack(">BxI", 2, 0xFFFFFFFF) + bytes(1 << 20),
                 "rejects-for-now": pdu(3, b"\0\2\3\2"), "rejects-for-ever": pdu(3, b"\0\1\1\7"), "silent": b""}
        self.socket.sendall(first.get(args.case, None) if args.case in first else answer(body))
        while True:
            kind, body = self.next()
            if kind == 4:
                if self.data(body):
                    return
            elif kind == 5 and self.released():
                return
            elif kind == 7:
                return

    def released(self):
        if args.case == "collision":
            self.socket.sendall(pdu(5, bytes(4)))
            # The client asked for the association: it answers first, PS3.8 section 7.2.2.
            kind, _ = self.next()
            if kind == 6:
                self.socket.sendall(pdu(6, bytes(4)))
        elif args.case != "silent-release":
            self.socket.sendall(pdu(6, bytes(4)))
        return False

    def data(self, body):
        """Tells whether this association is over."""
        at = 0
        while at + 6 <= len(body):
            length, number, flags = struct.unpack(">IBB", body[at:at + 6])
            value = body[at + 6:at + 4 + length]
            at += 4 + length
            if flags & 1:
                self.command += value
                if flags & 2:
                    self.asked, self.command = elements(self.command), b""
            else:
                self.received += len(value)
                if self.received > 1000 and args.case in ("closes-in-store", "abort-in-store"):
                    if args.case == "abort-in-store":
                        self.socket.sendall(pdu(7, bytes([0, 0, 2, 0])))
                    return True
            whole = flags & 2 and self.asked and (not flags & 1 or self.asked[0x800] == b"\1\1")
            if whole:
                self.done(number)
        return False

    def done(self, number):
        stored = self.asked[0x100] == b"\1\0"
        self.stored += stored
        if stored and args.case == "silent-store":
            return
        body = response(self.asked)
        step = 2 if args.case == "split-answers" else len(body)
        for _ in range(2 if stored and args.case == "two-answers" else 1):
            for at in range(0, len(body), step):
                part, last = body[at:at + step], at + step >= len(body)
                self.socket.sendall(pdu(4, struct.pack(">IBB", len(part) + 2, number, 1 | last << 1) + part))


server = socket.create_server(("127.0.0.1", args.port))
print("listening 127.0.0.1:%d" % server.getsockname()[1], flush=True)
while True:
    connection, _ = server.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client, began, closed = Client(connection), time.monotonic(), False
    try:
        client.serve()
    except (ConnectionError, OSError):
        closed = True
    connection.close()
    if client.names or closed is False:
        print(json.dumps({"event": "association", "case": args.case, "pdus": client.names, "longest": client.longest, "stored": client.stored,
                          "closed": closed, "seconds": round(time.monotonic() - began, 3)}), flush=True)
