"""Objects to send, as Part 10 files in FOLDER; prints one JSON object in a line for each. All patients are invented.

  wheels FOLDER               the 261 objects with a preamble in the wheels pydicom, pydicom-data and pynetdicom, data sets untouched
  odd FOLDER                  what the wheels lack: video, HTJ2K, private syntax and class, deflated, big endian, many fragments
  bad FOLDER                  what a header scanner must survive: nesting, lengths that lie, no attributes at all, path characters
  ct FOLDER COUNT             CT images of 0.5 MB, one study
  large FOLDER COUNT BYTES    multi-frame objects of BYTES of pixel data, sparse on disk
"""
import hashlib
import json
import os
import random
import struct
import sys
import warnings
import zlib
from pathlib import Path

import data_store
import pydicom
import pynetdicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pynetdicom.dsutils import split_dataset

warnings.simplefilter("ignore")
ROOT = "1.2.826.0.1.3680043.10.999."  # of test objects
CT, SECONDARY, WORD_FRAMES, VIDEO = ("1.2.840.10008.5.1.4.1.1." + end for end in ("2", "7", "7.3", "77.1.1.1"))
IMPLICIT, EXPLICIT, DEFLATED, BIG = ("1.2.840.10008.1.2" + end for end in ("", ".1", ".1.99", ".2"))
MPEG2, H264, HEVC, HTJ2K = ("1.2.840.10008.1.2.4." + end for end in ("100", "102", "107", "201"))
FRAME = 512 * 512 * 2
BLOCK = 1 << 20


def element(number, vr, value):
    """An element of group 2, explicit VR little endian."""
    value += b"" if len(value) % 2 == 0 else (b"\0" if vr in (b"UI", b"OB") else b" ")
    length = b"\0\0" + struct.pack("<I", len(value)) if vr == b"OB" else struct.pack("<H", len(value))
    return struct.pack("<HH", 2, number) + vr + length + value


def header(sop_class, uid, syntax):
    group = (element(1, b"OB", b"\0\1") + element(2, b"UI", sop_class.encode()) + element(3, b"UI", uid.encode())
             + element(0x10, b"UI", syntax.encode()) + element(0x12, b"UI", (ROOT + "0").encode()))
    return bytes(128) + b"DICM" + element(0, b"UL", struct.pack("<I", len(group))) + group


def say(path, sop_class, uid, syntax, digest, size):
    print(json.dumps({"path": str(path), "sop-class": sop_class, "sop-instance": uid, "transfer-syntax": syntax,
                      "sha256": digest, "bytes": size}), flush=True)


def write(path, sop_class, uid, syntax, body):
    Path(path).write_bytes(header(sop_class, uid, syntax) + body)
    say(path, sop_class, uid, syntax, hashlib.sha256(body).hexdigest(), len(body))


def encoded(dataset, implicit=False, little=True):
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = implicit, little
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def facts(sop_class, uid, number, modality="OT"):
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, uid
    ds.StudyDate, ds.StudyTime, ds.Modality = "20260102", "030405", modality
    ds.AccessionNumber, ds.StudyDescription = "TEST-ACC-1", "Invented study"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Probe^Paula", "TEST-1", "19700101", "F"
    ds.ReferringPhysicianName, ds.Manufacturer, ds.StudyID = "", "Invented", "1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = ROOT + "1", ROOT + "1." + str(len(modality) + ord(modality[0]))
    ds.SeriesNumber, ds.InstanceNumber = 1, number
    return ds


def image(ds, rows=512, columns=512, bits=16):
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns, ds.PixelRepresentation = rows, columns, 0
    ds.BitsAllocated = ds.BitsStored = bits
    ds.HighBit = bits - 1
    return ds


def with_pixels(ds, pixels, vr, undefined=False):
    ds.add_new(0x7FE00010, vr, pixels)
    ds[0x7FE00010].is_undefined_length = undefined
    return ds


def uid_of_path(name):
    return "2.25." + str(int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big"))


def wheels(folder):
    sources = [Path(pydicom.__file__).parent / "data", Path(data_store.__file__).parent,
               Path(pynetdicom.__file__).parent / "tests/dicom_files"]
    number = 0
    for source in sources:
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            data = path.read_bytes()
            if data[128:132] != b"DICM":
                continue
            meta, offset = split_dataset(path)
            ds = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID"])
            sop_class = str(meta.get("MediaStorageSOPClassUID", "") or ds.get("SOPClassUID", "") or SECONDARY)
            uid = str(meta.get("MediaStorageSOPInstanceUID", "") or ds.get("SOPInstanceUID", "") or uid_of_path(path.name))
            syntax = str(meta.get("TransferSyntaxUID", "") or IMPLICIT)
            write(folder / f"{number:03}-{path.stem}.dcm", sop_class, uid, syntax, data[offset:])
            number += 1


def odd(folder):
    noise = random.Random(7)
    small = noise.randbytes(64 * 64 * 2)
    number = 0

    def make(name, syntax, body_of, sop_class=SECONDARY):
        nonlocal number
        number += 1
        uid = f"{ROOT}4.{number}"
        write(folder / f"{name}.dcm", sop_class, uid, syntax, body_of(facts(sop_class, uid, number)))

    def plain(ds):
        return with_pixels(image(ds, 64, 64), small, "OW")

    def video(start):
        stream = start + noise.randbytes(300_000)
        frames = encapsulate([stream], fragments_per_frame=1)
        return lambda ds: encoded(with_pixels(image(ds, 480, 640, 8), frames, "OB", undefined=True))

    def fragments(count):
        frames = encapsulate([noise.randbytes(40_000) for _ in range(3)], fragments_per_frame=count)
        return lambda ds: encoded(with_pixels(image(ds), frames, "OB", undefined=True))

    def deflated(ds):
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = packer.compress(encoded(plain(ds))) + packer.flush()
        return packed + b"\0" * (len(packed) % 2)

    make("mpeg2", MPEG2, video(b"\0\0\1\xb3"), VIDEO)
    make("h264", H264, video(b"\0\0\0\1\x67"), VIDEO)
    make("hevc", HEVC, video(b"\0\0\0\1\x40\1"), VIDEO)
    make("htj2k", HTJ2K, fragments(1))
    make("fragments", HTJ2K, fragments(500))
    make("private-syntax", "1.2.840.113619.5.2", lambda ds: encoded(plain(ds), implicit=True))
    make("private-class", EXPLICIT, lambda ds: encoded(plain(ds)), ROOT + "9.1")
    make("deflated", DEFLATED, deflated)
    make("big-endian", BIG, lambda ds: encoded(plain(ds), little=False))
    make("implicit", IMPLICIT, lambda ds: encoded(plain(ds), implicit=True))


def bad(folder):
    nest = b"\x08\0\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    number = 0

    def make(name, body_of, uid=None, syntax=EXPLICIT):
        nonlocal number
        number += 1
        own = f"{ROOT}5.{number}"
        write(folder / f"{name}.dcm", CT, uid or own, syntax, body_of(encoded(facts(CT, own, number, "CT"))))

    make("nested", lambda head: nest * 20_000)
    make("lying-length", lambda head: b"\x08\0\x08\0OB\0\0" + struct.pack("<I", 1 << 30) + b"1234")
    make("lying-text", lambda head: b"\x08\0\x16\0UI\xfe\xff" + b"1.2.3")
    make("empty", lambda head: b"")
    make("half-element", lambda head: b"\x08\0\5\0CS\x0a\0")
    make("odd-length", lambda head: head + b"\0")
    make("noise", lambda head: random.Random(5).randbytes(100_000))
    make("descending-tags", lambda head: b"\x10\0\x20\0LO\x04\0TEST" + head)
    make("cut-short", lambda head: head[:-5])
    make("path-in-data-set", lambda head: head.replace(f"{ROOT}5.{number}".encode(), b"../../../../etc/x".ljust(len(f"{ROOT}5.{number}"), b"x")))
    make("other-instance", lambda head: head, uid=f"{ROOT}6.1")
    make("path-in-command", lambda head: head, uid="../../../../tmp/wardgate-escaped")
    make("space-in-command", lambda head: head, uid="1.2.3 4")


def ct(folder, count):
    noise = random.Random(1)
    for number in range(count):
        uid = f"{ROOT}2.{number}"
        ds = image(facts(CT, uid, number, "CT"))
        ds.RescaleIntercept, ds.RescaleSlope = "-1024", "1"
        write(folder / f"ct-{number:04}.dcm", CT, uid, EXPLICIT, encoded(with_pixels(ds, noise.randbytes(FRAME), "OW")))


def large(folder, count, size):
    for number in range(count):
        uid = f"{ROOT}3.{number}"
        ds = image(facts(WORD_FRAMES, uid, number))
        ds.NumberOfFrames = max(1, size // FRAME)
        body = encoded(ds) + struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, size)
        path = folder / f"large-{number}.dcm"
        with open(path, "wb") as file:
            file.write(header(WORD_FRAMES, uid, EXPLICIT) + body)
            start = file.tell()
            for at in range(0, size, BLOCK):
                file.seek(start + at)
                file.write(bytes([(at // BLOCK + number) % 255 + 1]))
            file.seek(start + size - 1)
            file.write(b"\x7f")
        say(path, WORD_FRAMES, uid, EXPLICIT, hash_from(path, start - len(body)), len(body) + size)


def hash_from(path, offset):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(offset)
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


what, folder, *rest = sys.argv[1:]
os.makedirs(folder, exist_ok=True)
{"wheels": wheels, "odd": odd, "bad": bad, "ct": ct, "large": large}[what](Path(folder).absolute(), *map(int, rest))
