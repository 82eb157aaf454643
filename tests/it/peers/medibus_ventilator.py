"""A ventilator's end of a MEDIBUS line, on a pseudo-terminal.

A second simulator, by another hand than the source's and than `medibus_device.py`: made from the public description of the protocol
(command and response frames, ASCII hex checksums, ICC, the page of data) and from what public drivers of such devices say about the
oddities of real ones. It has no part of our decoder and knows none of our tables.

    medibus_ventilator.py --link PATH [--oddity NAME]... [--clock TEXT]

It says `ready` once the link is there, and then a line for each command that it takes: its code in hex, and what is between code and
checksum. It never speaks before it is spoken to, but for its oddities:

    asks        a device asks, too: ICC, identification and NOP of its own; it says what it was answered (`answered 51`)
    realtime    bytes of waveforms (bit 7 set) between the bytes of every answer
    handshake   XON and XOFF among the bytes of an answer
    dribble     answers come byte by byte
    corrupt     every fifth answer has a damaged checksum
    deaf        every seventh command is refused as damaged (NAK)
    restarts    after thirty commands it forgets that communication was begun, until the next ICC
    chatty      bytes of no frame between answers
"""

import argparse
import os
import pty
import select
import time
import tty

ESC, SOH, CR, ETX, NAK, XON, XOFF = 0x1B, 0x01, 0x0D, 0x03, 0x15, 0x11, 0x13
NOP, ICC, IDENTIFY, STOP, TIME_CHANGED, CONFIGURE = 0x30, 0x51, 0x52, 0x55, 0x49, 0x4A
LONGEST = 255

# Measured data, first page: code and four characters. 78 is PEEP; F9 is no code that anybody knows.
PAGE_1 = [("78", "   5"), ("7D", "  22"), ("88", " 0.5"), ("B9", "12.3"), ("D6", "  14"), ("F0", "    "), ("C1", "36.9"), ("F9", "-1.5")]
PAGE_2 = [("21", " 3.2")]
LOW = [("B9", " 3.0")]
HIGH = [("7D", "  40"), ("B9", "15.0")]
# Settings: code and five characters.
SETTINGS = [("01", " 21.0"), ("04", " 0.50"), ("0B", "   12")]
# Alarms: priority as '0' plus its number, code, twelve characters.
ALARMS_1 = [(31, "1D", "APNOEA      "), (8, "25", "MV HIGH     ")]
ALARMS_2 = []
# Text messages: code, length as '0' plus its number, text, ETX.
TEXTS = [("1E", "SIMULATION"), ("07", "")]
IDENTITY = "8100'Ventilator Sim'02.00:04.03"


def checked(body):
    return body + b"%02X\r" % (sum(body) & 0xFF)


def answer(code, text=""):
    return checked(bytes([SOH, code]) + text.encode("latin-1"))


def command(code, text=""):
    return checked(bytes([ESC, code]) + text.encode("latin-1"))


class Ventilator:
    def __init__(self, line, oddities, clock):
        self.line, self.oddities, self.clock = line, set(oddities), clock
        self.begun = False
        self.commands = self.answers = 0
        self.frame = None
        self.realtime = 0
        self.next_question = None
        self.questions = 0

    def say(self, text):
        print(text, flush=True)

    # What goes out.

    def write(self, data):
        if "realtime" in self.oddities:
            data = b"".join(bytes([byte]) + self.wave() for byte in data)
        if "handshake" in self.oddities:
            middle = len(data) // 2
            data = bytes([XON]) + data[:middle] + bytes([XOFF, XON]) + data[middle:]
        if "chatty" in self.oddities:
            data = b"\x00~ \r" + data
        if "dribble" in self.oddities:
            for at in range(len(data)):
                os.write(self.line, data[at : at + 1])
                time.sleep(0.0005)
            return
        os.write(self.line, data)

    def wave(self):
        """A sync byte, then two data bytes of six bits each, over and over."""
        self.realtime = (self.realtime + 1) % 4
        return [b"\xd1", b"\x80", b"\xbf", b"\xc6"][self.realtime]

    def reply(self, code, text=""):
        self.answers += 1
        data = answer(code, text)
        if "corrupt" in self.oddities and self.answers % 5 == 0 and code not in (ICC, IDENTIFY):
            data = data[:-3] + b"ZZ\r"
        self.write(data)

    # What comes in.

    def take(self, data):
        for byte in data:
            if byte in (XON, XOFF):
                continue
            if byte in (ESC, SOH):
                self.frame = bytearray([byte])
            elif self.frame is not None and byte == CR:
                whole, self.frame = bytes(self.frame), None
                self.whole(whole)
            elif self.frame is not None:
                self.frame.append(byte)
                if len(self.frame) > LONGEST:
                    self.frame = None

    def whole(self, frame):
        body, check = frame[:-2], frame[-2:]
        good = len(frame) >= 4 and check == b"%02X" % (sum(body) & 0xFF)
        if frame[0] == SOH:
            if good:
                self.say(f"answered {body[1]:02X} {body[2:].decode('latin-1')}".rstrip())
            return
        self.commands += 1
        if not good:
            self.say(f"damaged {frame.hex()}")
            return self.reply(NAK)
        if "deaf" in self.oddities and self.commands % 7 == 0 and body[1] != ICC:
            return self.reply(NAK)
        if "restarts" in self.oddities and self.commands == 30:
            self.begun = False
        self.act(body[1], body[2:].decode("latin-1"))

    def act(self, code, text):
        self.say(f"{code:02X} {text}".rstrip())
        if code == ICC:
            self.begun = True
            if "asks" in self.oddities and self.next_question is None:
                self.next_question = time.monotonic() + 0.2
            return self.reply(ICC)
        if not self.begun:
            return None
        pages = {0x24: PAGE_1, 0x25: LOW, 0x26: HIGH, 0x2B: PAGE_2, 0x2C: [], 0x2D: [], 0x29: SETTINGS}
        if code in pages:
            return self.reply(code, "".join(name + value for name, value in pages[code]))
        if code in (0x27, 0x2E):
            alarms = ALARMS_1 if code == 0x27 else ALARMS_2
            return self.reply(code, "".join(chr(0x30 + priority) + name + words for priority, name, words in alarms))
        if code == 0x2A:
            return self.reply(code, "".join(name + chr(0x30 + len(words)) + words + chr(ETX) for name, words in TEXTS))
        if code == 0x28:
            return self.reply(code, self.clock or time.strftime("%H:%M:%S%d-%b-%y", time.gmtime()).upper())
        if code == IDENTIFY:
            return self.reply(code, IDENTITY)
        if code == STOP:
            self.begun = False
        # Control commands and unknown ones: the code alone.
        return self.reply(code)

    def ask(self):
        """What a device asks by itself, one after the other."""
        if self.next_question is None or time.monotonic() < self.next_question:
            return
        question = [ICC, IDENTIFY, NOP][self.questions % 3]
        if self.questions < 9:
            self.write(command(question))
        self.questions += 1
        self.next_question = time.monotonic() + 0.5


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--link", required=True)
    parser.add_argument("--oddity", action="append", default=[])
    parser.add_argument("--clock")
    given = parser.parse_args()
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    if os.path.islink(given.link):
        os.unlink(given.link)
    os.symlink(os.ttyname(theirs), given.link)
    ventilator = Ventilator(ours, given.oddity, given.clock)
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([ours], [], [], 0.1)
        if ready:
            ventilator.take(os.read(ours, 4096))
        ventilator.ask()


if __name__ == "__main__":
    main()
