#!/usr/bin/env python3
"""A disk with a volatile write cache, whose power can be cut: an NBD server for one machine. Standard library only.

    disk.py SOCKET IMAGE [--log FILE] [--ignore-flush]

What is written stays in memory until the machine asks for a flush, as a drive with a write cache may do. The image is what the
medium holds. One line on standard input ends it, `cut KEEP SEED REQUESTS`:

    none       nothing that was not flushed was kept
    all        everything was
    random     any sectors of 512 bytes were, of any write: lost, torn and out of order

With REQUESTS 0 the cut comes at once. Else it comes at the first write when so many more requests were taken, and that write is
not answered, so that something is pending; or soon, when no more come. One line of JSON then tells what was pending and what was
kept. With --ignore-flush the disk says that it flushed and does not: no promise can hold on such a disk, and a test that does not
notice is worth nothing. --log writes down every request with its time, for `flush-points`.
"""
import argparse
import json
import os
import random
import socket
import struct
import sys
import threading
import time

SECTOR = 512
REQUEST_BYTES_MAX = 32 << 20
# The NBD protocol (the document "proto.md" of the NBD project), fixed newstyle.
OPTION_MAGIC, REPLY_MAGIC = 0x49484156454F5054, 0x3E889045565A9
REQUEST_MAGIC, ANSWER_MAGIC = 0x25609513, 0x67446698
EXPORT_NAME, ABORT, GO = 1, 2, 7
ACK, INFO, UNSUPPORTED = 1, 3, (1 << 31) + 1
HAS_FLAGS, SEND_FLUSH, SEND_FUA = 1, 4, 8
READ, WRITE, DISCONNECT, FLUSH = 0, 1, 2, 3
FUA = 1
EINVAL = 22
# A cut waits so long for the requests that it was to come behind.
REQUESTS_WITHIN_S = 1
# One entry of the log: what, when (the clock is the same for all programs of this machine), where, how many bytes follow.
ENTRY = struct.Struct("<cdQI")


class Power:
    """Is held by whoever does a request, and for good by the cut."""

    def __init__(self):
        self.lock, self.gone, self.left = threading.Lock(), threading.Event(), None

    def spend(self, kind):
        """Called when a request was done, with the lock held. Does not return when it was the last one."""
        if self.left is not None:
            self.left -= 1
            if self.left <= 0 and kind == WRITE:
                self.gone.set()
                threading.Event().wait()

    def cut(self, requests):
        """Returns when nothing is done any more."""
        with self.lock:
            self.left = requests
        if not (requests and self.gone.wait(REQUESTS_WITHIN_S)) and not self.lock.acquire(timeout=REQUESTS_WITHIN_S):
            self.gone.wait()


class Medium:
    """The medium and the cache before it."""

    def __init__(self, image, log=None, ignore_flush=False):
        self.fd = os.open(image, os.O_RDWR)
        self.size = os.fstat(self.fd).st_size
        self.log = open(log, "wb", buffering=0) if log else None
        self.ignore_flush = ignore_flush
        self.pending = []
        self.flushes = self.writes = 0

    def note(self, what, offset=0, data=b""):
        """Called before the request is done, so that whoever hears of it hears later than this time."""
        if self.log:
            self.log.write(ENTRY.pack(what, time.monotonic(), offset, len(data)) + data)

    def read(self, offset, length):
        data = bytearray(os.pread(self.fd, length, offset))
        for at, written in self.pending:
            first, last = max(at, offset), min(at + len(written), offset + length)
            if first < last:
                data[first - offset : last - offset] = written[first - at : last - at]
        return bytes(data)

    def write(self, offset, data, through=False):
        self.note(b"W", offset, data)
        self.writes += 1
        self.pending.append((offset, data))
        # Written through: more than was asked for goes to the medium, which a disk may do at any time.
        if through:
            self.flush()

    def flush(self):
        self.note(b"F")
        self.flushes += 1
        if not self.ignore_flush:
            self.apply(self.pending)
            self.pending = []

    def apply(self, writes):
        for offset, data in writes:
            os.pwrite(self.fd, data, offset)

    def cut(self, keep, seed):
        """The power goes. What is on the medium afterwards is what the machine finds at its next start."""
        sectors = torn(self.pending)
        kept = {"none": [], "all": sectors, "random": some(sectors, seed)}[keep]
        self.apply(kept)
        return {"pending": len(sectors), "kept": len(kept), "flushes": self.flushes, "writes": self.writes}


def torn(writes):
    """The same writes, sector by sector, in their order."""
    return [(offset + at, data[at : at + SECTOR]) for offset, data in writes for at in range(0, len(data), SECTOR)]


def some(sectors, seed):
    """Few, half or most of them: a sector that was written twice may keep either, or what it held before."""
    choice = random.Random(seed)
    share = choice.choice([0.1, 0.5, 0.9])
    return [sector for sector in sectors if choice.random() < share]


def receive(peer, length):
    data = bytearray()
    while len(data) < length:
        piece = peer.recv(min(length - len(data), 1 << 20))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def greet(peer, size):
    """Until the machine has chosen the only export that there is."""
    flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA
    peer.sendall(b"NBDMAGIC" + struct.pack(">QH", OPTION_MAGIC, 3))
    receive(peer, 4)
    while True:
        _, option, length = struct.unpack(">QII", receive(peer, 16))
        receive(peer, min(length, REQUEST_BYTES_MAX))

        def reply(kind, data=b""):
            peer.sendall(struct.pack(">QIII", REPLY_MAGIC, option, kind, len(data)) + data)

        if option == EXPORT_NAME:
            return peer.sendall(struct.pack(">QH", size, flags))
        if option == GO:
            reply(INFO, struct.pack(">HQH", 0, size, flags))
            reply(INFO, struct.pack(">HIII", 3, SECTOR, 4096, REQUEST_BYTES_MAX))
            return reply(ACK)
        reply(ACK if option == ABORT else UNSUPPORTED)


def serve(peer, medium, power):
    greet(peer, medium.size)
    while True:
        _, flags, kind, handle, offset, length = struct.unpack(">IHHQQI", receive(peer, 28))
        data = receive(peer, length) if kind == WRITE else b""
        answer, error = b"", 0
        with power.lock:
            if kind == READ:
                answer = medium.read(offset, length)
            elif kind == WRITE:
                medium.write(offset, data, flags & FUA)
            elif kind == FLUSH:
                medium.flush()
            elif kind == DISCONNECT:
                return
            else:
                error = EINVAL
            power.spend(kind)
        peer.sendall(struct.pack(">IIQ", ANSWER_MAGIC, error, handle) + answer)


def listen(path, medium, power):
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(1)
    while True:
        peer, _ = server.accept()
        try:
            serve(peer, medium, power)
        except (EOFError, ConnectionError):
            pass


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("socket")
    arguments.add_argument("image")
    arguments.add_argument("--log")
    arguments.add_argument("--ignore-flush", action="store_true")
    given = arguments.parse_args()
    medium, power = Medium(given.image, given.log, given.ignore_flush), Power()
    threading.Thread(target=listen, args=(given.socket, medium, power), daemon=True).start()
    order = sys.stdin.readline().split()
    if order[:1] == ["cut"]:
        power.cut(int(order[3]))
        print(json.dumps(medium.cut(order[1], order[2])), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
