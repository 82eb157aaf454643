"""Devices that send HL7 over MLLP and write down what was acknowledged, and the engine in which it must arrive.

Standard library only. The patients are invented. Nothing here knows of wardgate or of a disk: a message is acknowledged or
not, has arrived or has not.
"""
import contextlib
import hashlib
import random
import socket
import threading
import time

VT, END = b"\x0b", b"\x1c\r"
# How long an answer may take: the guest is an emulated machine on a busy host.
PATIENCE_S = 180
# Every so many messages one is longer than what the service keeps in memory until it is whole; a log is soon full of the second kind.
LONG_EVERY, OFTEN_LONG_EVERY = 25, 3
LONG_BYTES_MAX = 600_000
SHORT_BYTES_MAX = 3_000


def message(control_id, length=0):
    """A result of an invented patient with this MSH-10, and a text of `length` bytes."""
    head = f"MSH|^~\\&|MON|ICU|GW|HOSP|20260102030405||ORU^R01^ORU_R01|{control_id}|P|2.5.1\r"
    rest = "PID|1||TEST-1||Probe^Paula\rOBX|1|NM|8867-4^Heart rate^LN||72|/min\rOBX|2|TX|NOTE^note||"
    return (head + rest).encode() + b"Q" * length + b"\r"


def field(body, segment, number):
    """A field of the first of these segments, as text. Enough for the messages above and their acknowledgements."""
    line = next((line for line in body.split(b"\r") if line.startswith(segment)), b"")
    fields = line.split(b"|")
    return fields[number].decode() if number < len(fields) else ""


def control_id(body):
    """MSH-10; MSH-1 is the separator itself."""
    return field(body[:1024], b"MSH", 9)


def digest(body):
    return hashlib.sha256(body).digest()


class Frames:
    """MLLP over a connected socket."""

    def __init__(self, peer):
        self.peer, self.buffer = peer, bytearray()

    def send(self, body):
        self.peer.sendall(VT + body + END)

    def receive(self):
        """The next message; EOFError at the end of the connection."""
        searched = 0
        while (end := self.buffer.find(END, max(0, searched - 1))) < 0:
            searched = len(self.buffer)
            piece = self.peer.recv(1 << 18)
            if not piece:
                raise EOFError
            self.buffer += piece
        body = bytes(self.buffer[1:end])
        del self.buffer[: end + len(END)]
        return body


class Ledger:
    """What was sent, and what of it was acknowledged and when. Shared by the devices' threads."""

    def __init__(self):
        self.sent = {}
        self.acknowledged = {}
        self.refused = 0

    def exchange(self, frames, body):
        """Sends it, and writes down whether it was acknowledged. EOFError or OSError when the connection ended before."""
        name = control_id(body)
        self.sent[name] = digest(body)
        frames.send(body)
        answer = frames.receive()
        if field(answer, b"MSA", 1) == "AA" and field(answer, b"MSA", 2) == name:
            self.acknowledged[name] = time.monotonic()
            return True
        self.refused += 1
        return False


class Device(threading.Thread):
    """Sends numbered messages, each when the one before was answered and so many seconds are over, until its connection ends."""

    def __init__(self, port, ledger, name, seed, long_every=LONG_EVERY, pause=0):
        super().__init__(daemon=True)
        self.port, self.ledger, self.name, self.random = port, ledger, name, random.Random(seed)
        self.long_every, self.pause = long_every, pause
        self.start()

    def run(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), PATIENCE_S) as peer:
                frames, number = Frames(peer), 0
                while True:
                    number += 1
                    most = LONG_BYTES_MAX if self.random.randrange(self.long_every) == 0 else SHORT_BYTES_MAX
                    self.ledger.exchange(frames, message(f"{self.name}-{number}", self.random.randrange(most)))
                    time.sleep(self.pause)
        except (EOFError, OSError):
            pass


def send_until_acknowledged(port, ledger, body, alive):
    """One message, again and again until the service is up and takes it. False when `alive` says that it never will be."""
    while alive():
        try:
            with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as peer:
                if ledger.exchange(Frames(peer), body):
                    return True
        except (EOFError, OSError):
            pass
        # The emulator takes connections before the guest does, and closes them.
        time.sleep(0.1)
    return False


class Engine:
    """Takes messages, acknowledges each, remembers which came in which order. Held, it closes every connection."""

    def __init__(self):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.changed = threading.Condition()
        self.held, self.peers = False, set()
        self.arrived, self.when, self.order, self.copies, self.differing = {}, {}, [], 0, []
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self):
        with self.changed:
            self.held = True
            for peer in self.peers:
                # One whose other end is gone already has nothing to shut down.
                with contextlib.suppress(OSError):
                    peer.shutdown(socket.SHUT_RDWR)
            self.peers.clear()

    def open(self):
        with self.changed:
            self.held = False

    def close(self):
        self.hold()
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()

    def wait_for(self, name, alive):
        """Until this message is there; False when `alive` says that it will not come."""
        with self.changed:
            while name not in self.arrived:
                if not alive():
                    return False
                self.changed.wait(0.2)
        return True

    def _accept(self):
        while True:
            try:
                peer, _ = self.server.accept()
            except OSError:
                return
            with self.changed:
                if self.held:
                    peer.close()
                    continue
                self.peers.add(peer)
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer):
        frames = Frames(peer)
        try:
            while True:
                body = frames.receive()
                name = control_id(body)
                with self.changed:
                    if self.held:
                        break
                    self._remember(name, digest(body))
                frames.send(f"MSH|^~\\&|ENG|HOSP|MON|ICU|20260102030405||ACK^R01|A1|P|2.5.1\rMSA|AA|{name}\r".encode())
        except (EOFError, OSError):
            pass
        with self.changed:
            self.peers.discard(peer)
        peer.close()

    def _remember(self, name, body_digest):
        if name in self.arrived:
            self.copies += 1
            if self.arrived[name] != body_digest:
                self.differing.append(name)
        else:
            self.arrived[name] = body_digest
            self.when[name] = time.monotonic()
            self.order.append(name)
        self.changed.notify_all()


class Way:
    """A source's devices, the upstream that it is routed to, and what both write down."""

    def __init__(self):
        self.ledger, self.engine = Ledger(), Engine()

    def come_back(self, port, number, alive):
        """Sends a marker until it is acknowledged, and waits until it has come out; whether it has."""
        self.engine.open()
        marker = f"MARKER-{number}"
        return send_until_acknowledged(port, self.ledger, message(marker), alive) and self.engine.wait_for(marker, alive)


def judge(ledger, engine, until=None, before=()):
    """What is wrong, as sentences: what was acknowledged and did not arrive, arrived changed, or out of its device's order. Only
    what was acknowledged before the time `until` is asked for; what is in `before` had arrived elsewhere."""
    problems = []
    acknowledged = [name for name, when in list(ledger.acknowledged.items()) if until is None or when < until]
    missing = [name for name in acknowledged if name not in engine.arrived and name not in before]
    if missing:
        problems.append(f"{len(missing)} of {len(acknowledged)} acknowledged messages are missing, the first {missing[0]}")
    changed = [name for name, body in list(engine.arrived.items()) if ledger.sent.get(name) != body] + engine.differing
    if changed:
        problems.append(f"{len(changed)} messages arrived changed, the first {changed[0]}")
    last = {}
    for name in list(engine.order):
        device, _, number = name.rpartition("-")
        if int(number) < last.get(device, 0):
            problems.append(f"{name} arrived behind a later one of its device")
        last[device] = int(number)
    return problems
