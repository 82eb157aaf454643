"""A MEDIBUS device that is not ours: a ventilator's end of the line, on a pseudo-terminal or a TCP port.

Written from the public description of the protocol (framing, sums, codes, the vectors below) and not from our decoder. It is as strict
as a device may be: it serves nothing before the host has initialised the communication and has told who it is, it forgets
the host after three silent seconds, and it answers a command with a wrong sum with a NAK.

Prints "ready PATH" or "listening HOST:PORT", then one line for each thing that happens:
    icc, id, host NUMBER NAME REVISION, nop, ask CODE, configured PAGE CODES, nak-sent, nak-got, wrong-answer, timed-out, restarted
Values are written here, one command line for each case; what changes does so by the count of polls of page 1 (code 24), never by a clock.
"""
import argparse
import os
import select
import socket
import sys
import termios
import time
import tty

ESC, SOH, CR, ETX, NAK, XON, XOFF = 0x1B, 0x01, 0x0D, 0x03, 0x15, 0x11, 0x13
FORGETS_AFTER = 3.0  # seconds without a byte from the host
FRAME_BYTES_MAX = 256  # a command: ESC, code, 251 of argument, sum, CR

parser = argparse.ArgumentParser()
parser.add_argument("--link", help="path that becomes a link to the pseudo-terminal")
parser.add_argument("--listen", action="store_true", help="a TCP port instead")
parser.add_argument("--number", default="8201")
parser.add_argument("--name", default="EVITA-TEST")
parser.add_argument("--revision", default="03.10:04.03")
parser.add_argument("--cp1", default="78=   5,7D=  22,B9= 6.8,F0=  41,EB=    ,3C=12.5", help="CODE=four characters, ...")
parser.add_argument("--cp2", default="21= 480,07= 0.7")
parser.add_argument("--settings", default="01= 40.0,09= 12.0,0B=  5.0", help="CODE=five characters, ...")
parser.add_argument("--texts", default="0E=BIPAP,20=ADULTS")
parser.add_argument("--alarm", default="", help="FROM-UNTIL:PAGE:PRIORITY:CODE:PHRASE; ... by polls: there from the first until before the second")
parser.add_argument("--date", default=" 9:33:00 7-OKT-14")
parser.add_argument("--realtime", action="store_true", help="waveform bytes between all bytes of all frames")
parser.add_argument("--flow", action="store_true", help="XOFF and XON in the middle of frames")
parser.add_argument("--corrupt", type=int, default=0, help="each so-many-th answer has a wrong sum")
parser.add_argument("--nak", type=int, default=0, help="each so-many-th command is said to be corrupt")
parser.add_argument("--noise", action="store_true", help="bytes before SOH that belong to no frame")
parser.add_argument("--silent-after", type=int, default=0, help="says nothing more after so many polls")
parser.add_argument("--restart-at", type=int, default=0, help="at this poll it begins anew: it forgets the host and sends ICC itself")
parser.add_argument("--without", default="", help="command codes that this model does not know: 2B,2E")
parser.add_argument("--mute", default="", help="command codes that this model does not even echo")
args = parser.parse_args()


def frame(lead, code, data=b""):
    body = bytes([lead, code]) + data
    return body + b"%02X" % (sum(body) & 0xFF) + bytes([CR])


# The vectors that were calculated from the rules by hand.
assert frame(ESC, 0x51) == bytes.fromhex("1B 51 36 43 0D")
assert frame(SOH, 0x51) == bytes.fromhex("01 51 35 32 0D")
assert frame(ESC, 0x52) == bytes.fromhex("1B 52 36 44 0D")
assert frame(ESC, 0x30) == bytes.fromhex("1B 30 34 42 0D")
assert frame(ESC, 0x24) == bytes.fromhex("1B 24 33 46 0D")
assert frame(SOH, 0x24, b"78   5") == b"\x01\x24" + b"78" + b"   5" + b"29" + b"\r"


def items(text, width):
    """CODE=value pairs; the value's blanks count."""
    found = []
    for pair in filter(None, text.split(",")):
        code, value = pair.split("=", 1)
        assert len(code) == 2 and len(value) == width, pair
        found.append((code, value))
    return found


PAGES = {0x24: items(args.cp1, 4), 0x2B: items(args.cp2, 4)}
SETTINGS = items(args.settings, 5)
TEXTS = [tuple(pair.split("=", 1)) for pair in filter(None, args.texts.split(","))]
ALARMS = []
for each in filter(None, args.alarm.split(";")):
    when, page, priority, code, phrase = each.split(":", 4)
    begin, end = (int(number) for number in when.split("-"))
    ALARMS.append((begin, end, {"1": 0x27, "2": 0x2E}[page], int(priority), code, phrase.ljust(12)[:12]))
WITHOUT, MUTE = ({int(code, 16) for code in filter(None, codes.split(","))} for codes in (args.without, args.mute))


def say(*words):
    print(*words, flush=True)


class Device:
    def __init__(self, read, write):
        self.read, self.write = read, write
        self.polls = self.answers = self.commands = 0
        self.restarted = False
        self.wave = 0
        self.frame = None
        self.chosen = {}
        self.forget()

    def forget(self):
        self.initialised = False
        self.host_known = False
        self.heard = time.monotonic()

    # What it sends.

    def samples(self):
        """One record of two streams: a sync byte, now and then a phase mark, then two bytes of six bits for each stream."""
        self.wave = (self.wave + 37) & 0xFFF
        mark = b"\xc6\xc0" if self.wave % 5 == 0 else b""
        return b"\xd3" + mark + bytes([0x80 | self.wave >> 6, 0x80 | self.wave & 0x3F] * 2)

    def send(self, data):
        if args.silent_after and self.polls > args.silent_after:
            return
        if args.flow and len(data) > 8:
            data = data[:6] + bytes([XOFF]) + data[6:8] + bytes([XON]) + data[8:]
        if args.realtime:
            data = b"".join(self.samples() + bytes([byte]) for byte in data) + self.samples()
        if args.noise and data[:1] == bytes([SOH]):
            data = b"29\r??" + data
        self.write(data)

    def answer(self, code, data=b""):
        self.answers += 1
        answer = frame(SOH, code, data)
        if args.corrupt and self.answers % args.corrupt == 0:
            wrong = (int(answer[-3:-1], 16) + 1) & 0xFF
            answer = answer[:-3] + b"%02X" % wrong + b"\r"
        self.send(answer)

    def ask(self, code):
        self.send(frame(ESC, code))

    # What it gets.

    def byte(self, byte):
        self.heard = time.monotonic()
        if byte in (ESC, SOH):
            self.frame = bytearray([byte])
        elif self.frame is None or byte in (XON, XOFF) or byte & 0x80:
            return
        elif byte == CR:
            whole, self.frame = bytes(self.frame), None
            self.take(whole)
        elif len(self.frame) < FRAME_BYTES_MAX:
            self.frame.append(byte)

    def take(self, whole):
        if len(whole) < 4 or b"%02X" % (sum(whole[:-2]) & 0xFF) != whole[-2:]:
            say("nak-sent")
            self.send(frame(SOH, NAK))
            return
        lead, code, data = whole[0], whole[1], whole[2:-2]
        if lead == ESC:
            self.command(code, data)
        else:
            self.answered(code, data)

    def answered(self, code, data):
        """The host answers what this device asked."""
        if code == NAK:
            say("nak-got")
        elif code == 0x52:
            number, rest = data[:4], data[4:]
            name, _, revision = rest[1:].partition(b"'")
            if len(number) != 4 or rest[:1] != b"'" or len(revision) != 11:
                say("wrong-answer", data)
                return
            self.host_known = True
            say("host", number.decode(), name.decode(), revision.decode())
        elif code == 0x51:
            say("icc-answered")
            self.initialised = True
            self.ask(0x52)

    def command(self, code, data):
        self.commands += 1
        if args.nak and self.commands % args.nak == 0:
            self.send(frame(SOH, NAK))
            return
        if code == 0x51:
            say("icc")
            self.chosen = {}
            self.initialised = True
            self.host_known = False
            self.answer(code)
            self.ask(0x52)
        elif not self.initialised or code in MUTE:
            pass  # a stranger, or a question that it does not understand
        elif code == 0x30:
            say("nop")
            self.answer(code)
        elif code == 0x52:
            say("id")
            self.answer(code, f"{args.number:4.4}'{args.name}'{args.revision:11.11}".encode("latin-1"))
        elif not self.host_known or code in WITHOUT:
            # Not served before it knows whom; a command that it does not know gets its code and nothing else.
            if code in WITHOUT:
                self.answer(code)
        elif code == 0x4A:
            page, codes = data[0], [data[at : at + 2].decode() for at in range(1, len(data), 2)]
            self.chosen[page] = codes
            say("configured", "%02X" % page, *codes)
            self.answer(code)
        else:
            say("ask", "%02X" % code)
            self.serve(code)

    def serve(self, code):
        if code == 0x24:
            self.polls += 1
            if args.restart_at and self.polls == args.restart_at and not self.restarted:
                self.restarted = True
                self.forget()
                say("restarted")
                self.ask(0x51)
                return
        if code in PAGES:
            chosen = self.chosen.get(code)
            self.answer(code, "".join(c + v for c, v in PAGES[code] if chosen is None or c in chosen).encode())
        elif code == 0x28:
            self.answer(code, args.date.encode())
        elif code == 0x29:
            self.answer(code, "".join(c + v for c, v in SETTINGS).encode())
        elif code == 0x2A:
            text = b"".join(c.encode() + bytes([0x30 + len(t)]) + t.encode("latin-1") + bytes([ETX]) for c, t in TEXTS)
            self.answer(code, text)
        elif code in (0x27, 0x2E):
            now = [alarm for alarm in ALARMS if alarm[2] == code and alarm[0] <= self.polls < alarm[1]]
            self.answer(code, b"".join(bytes([0x30 + p]) + c.encode() + phrase.encode() for _, _, _, p, c, phrase in now))
        else:
            self.answer(code)

    def quiet(self):
        if self.initialised and time.monotonic() - self.heard > FORGETS_AFTER:
            say("timed-out")
            self.forget()

    def run(self, file):
        self.ask(0x51)  # it was just switched on
        while True:
            ready, _, _ = select.select([file], [], [], 0.2)
            if not ready:
                self.quiet()
                continue
            data = self.read()
            if not data:
                return
            for byte in data:
                self.byte(byte)


def on_pty():
    ours, theirs = os.openpty()
    tty.setraw(theirs, termios.TCSANOW)
    tty.setraw(ours, termios.TCSANOW)
    if os.path.islink(args.link):
        os.unlink(args.link)
    os.symlink(os.ttyname(theirs), args.link)
    say("ready", args.link)
    # Its own hold on the other end stays open: the line is there, whoever listens or not.
    Device(lambda: os.read(ours, 4096), lambda data: os.write(ours, data)).run(ours)


def on_tcp():
    listener = socket.create_server(("127.0.0.1", 0))
    say("listening", "%s:%d" % listener.getsockname())
    while True:
        line, _ = listener.accept()
        try:
            Device(lambda: line.recv(4096), line.sendall).run(line)
        except OSError:
            pass
        say("hung-up")


try:
    on_tcp() if args.listen else on_pty()
except KeyboardInterrupt:
    sys.exit(0)
finally:
    if args.link and os.path.islink(args.link):
        os.unlink(args.link)
