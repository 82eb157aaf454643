"""A modality that is not ours, made of pynetdicom: sends files as they are on disk (not decoded), asks for storage commitment,
and listens for the reports.

Prints "listening HOST:PORT" when it listens, and one JSON object in a line for each event: associated, rejected, refused (no
answer to the association), stored, echo, action, report, done. Ends with 0 when every file was answered with 0000 or a warning
and, with --commit, the report came. With --to-file it waits until that file names the address: so the other end can be
configured with our port first.
"""
import argparse
import hashlib
import json
import os
import socket
import ssl
import threading
import time
import warnings
from pathlib import Path

import dicom_reactor
from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid
from pynetdicom import AE, _config, build_role, evt
from pynetdicom.dsutils import split_dataset
from pynetdicom.pdu_primitives import UserIdentityNegotiation
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"
CONTEXTS_MAX = 128
REPORTER_LEAVES_WITHIN = 10  # seconds after its report was answered

parser = argparse.ArgumentParser()
parser.add_argument("files", nargs="*", help="files and folders")
parser.add_argument("--to", help="HOST:PORT")
parser.add_argument("--to-file", help="a file that will hold HOST:PORT")
parser.add_argument("--called", default="WARDGATE")
parser.add_argument("--calling", default="MODALITY")
parser.add_argument("--associations", type=int, default=1, help="files are dealt out to so many at once")
parser.add_argument("--per-association", type=int, default=0, help="a new association after so many files")
parser.add_argument("--max-pdu", type=int, default=16382, help="that we take; what we send is the peer's affair")
parser.add_argument("--echo", action="store_true", help="C-ECHO first")
parser.add_argument("--propose", help="UIDs with commas that are proposed beside the file's own transfer syntax, before it")
parser.add_argument("--user", help="user identity NAME:PASSWORD, answer asked for")
parser.add_argument("--pause", type=float, default=0.0, help="seconds after each file")
parser.add_argument("--abort-after", type=int, default=0, help="A-ABORT after so many files")
parser.add_argument("--commit", choices=["same", "new"], help="ask for storage commitment of what was stored: on the same association or another")
parser.add_argument("--commit-also", default="", help="CLASS/INSTANCE with commas that are asked for too, though never sent")
parser.add_argument("--transaction", help="transaction UID; else a new one")
parser.add_argument("--linger", type=float, default=0.0, help="seconds for which the association of N-ACTION stays open for a report on it")
parser.add_argument("--listen", type=int, help="port for reports, 0 for any")
parser.add_argument("--report-within", type=float, default=30.0, help="seconds to wait for the report; 0 does not wait")
parser.add_argument("--report-status", default="0000", help="our answers to N-EVENT-REPORT in turn, hexadecimal, the last one for ever")
parser.add_argument("--nagle", action="store_true", help="leave Nagle's algorithm on")
parser.add_argument("--ca", help="PEM of the CA; the connection is then TLS")
parser.add_argument("--certificate")
parser.add_argument("--key")
args = parser.parse_args()

warnings.simplefilter("ignore")  # about UIDs that are bad on purpose
_config.STORE_SEND_CHUNKED_DATASET = True
UID._PRIVATE_TS_ENCODING = (True, True)  # private transfer syntaxes are fine: nothing is decoded
lock = threading.Lock()
reported = threading.Event()
reporter_gone = threading.Event()
report_statuses = args.report_status.split(",")
accepted = []  # (SOP class, SOP instance) that the peer answered well
failures = []


def say(event, **facts):
    with lock:
        print(json.dumps({"event": event, **facts}), flush=True)


def fail(event, **facts):
    failures.append(event)
    say(event, **facts)


def on_report(event):
    """N-EVENT-REPORT of storage commitment, PS3.4 annex J.3."""
    information = event.event_information
    good = [str(i.ReferencedSOPInstanceUID) for i in information.get("ReferencedSOPSequence", [])]
    bad = {str(i.ReferencedSOPInstanceUID): "%04X" % i.FailureReason for i in information.get("FailedSOPSequence", [])}
    with lock:
        status = report_statuses.pop(0) if len(report_statuses) > 1 else report_statuses[0]
    say("report", kind=event.event_type, transaction=str(information.TransactionUID), committed=good, failed=bad, status=status,
        association="same" if event.assoc.is_requestor else "new", calling=event.assoc.requestor.ae_title)
    if status == "0000":
        if event.assoc.is_requestor:
            reporter_gone.set()
        reported.set()
    return int(status, 16), None


def at_once(event):
    """A small PDU must not wait for the acknowledgement of the one before it."""
    if not args.nagle:
        event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def on_closed(event):
    if reported.is_set():
        reporter_gone.set()


def listen():
    receiver = AE(ae_title=args.calling)
    receiver.add_supported_context(Verification)
    receiver.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    handlers = [(evt.EVT_N_EVENT_REPORT, on_report), (evt.EVT_C_ECHO, lambda event: 0x0000),
                (evt.EVT_CONN_OPEN, at_once), (evt.EVT_CONN_CLOSE, on_closed)]
    server = receiver.start_server(("127.0.0.1", args.listen), block=False, evt_handlers=handlers)
    print("listening 127.0.0.1:%d" % server.socket.getsockname()[1], flush=True)


def destination():
    if not args.to_file:
        return args.to
    while not (os.path.exists(args.to_file) and open(args.to_file).read().strip()):
        time.sleep(0.01)
    return open(args.to_file).read().strip()


def tls():
    if not args.ca:
        return None
    context = ssl.create_default_context(cafile=args.ca)
    if args.certificate:
        context.load_cert_chain(args.certificate, args.key)
    return context, "localhost"


def associate(to, contexts, commitment=False):
    """contexts: of (SOP class, transfer syntax)."""
    host, port = to.rsplit(":", 1)
    requestor = AE(ae_title=args.calling)
    requestor.maximum_pdu_size = args.max_pdu
    requestor.network_timeout = requestor.dimse_timeout = 600
    for sop_class, syntax in sorted(contexts)[:CONTEXTS_MAX]:
        proposed = [uid for uid in (args.propose.split(",") if args.propose else []) if uid != syntax] + [syntax]
        requestor.add_requested_context(UID(sop_class), [UID(uid) for uid in proposed])
    negotiated = []
    if args.echo or not contexts and not commitment:
        requestor.add_requested_context(Verification)
    if commitment:
        requestor.add_requested_context(StorageCommitmentPushModel)
        negotiated.append(build_role(StorageCommitmentPushModel, scu_role=True, scp_role=False))
    if args.user:
        identity = UserIdentityNegotiation()
        identity.user_identity_type, identity.positive_response_requested = 2, True
        identity.primary_field, identity.secondary_field = (part.encode() for part in args.user.split(":"))
        negotiated.append(identity)
    association = requestor.associate(host, int(port), ae_title=args.called, ext_neg=negotiated, tls_args=tls(),
                                      evt_handlers=[(evt.EVT_N_EVENT_REPORT, on_report), (evt.EVT_CONN_OPEN, at_once)])
    if association.is_established:
        dicom_reactor.truthful(association)
        acceptor = association.acceptor
        say("associated", implementation=str(acceptor.implementation_class_uid), version=acceptor.implementation_version_name,
            max_pdu=acceptor.maximum_length, identity=acceptor.user_identity is not None,
            contexts=[[str(c.abstract_syntax), str(c.transfer_syntax[0])] for c in association.accepted_contexts],
            rejected=[[str(c.abstract_syntax), c.result] for c in association.rejected_contexts])
        return association
    primitive = association.acceptor.primitive
    if association.is_rejected and primitive is not None:
        fail("rejected", result=primitive.result, source=primitive.result_source, reason=primitive.diagnostic)
    else:
        fail("refused", aborted=association.is_aborted)
    return None


def facts_of(path):
    meta, offset = split_dataset(path)
    return str(meta.MediaStorageSOPClassUID), str(meta.MediaStorageSOPInstanceUID), str(meta.TransferSyntaxUID), offset


def contexts_of(path):
    sop_class, _, syntax, _ = facts_of(path)
    return sop_class, syntax


def hash_from(path, offset):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(offset)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def store(association, path, number):
    sop_class, uid, syntax, offset = facts_of(path)
    named = dict(file=str(path), sop_instance=uid, sop_class=sop_class, transfer_syntax=syntax)
    began = time.monotonic()
    try:
        answer = association.send_c_store(path, msg_id=number % 65535 + 1)
    except (ValueError, RuntimeError) as error:
        return fail("stored", **named, status=None, why=str(error))
    status = "%04X" % answer.Status if "Status" in answer else None
    facts = dict(**named, status=status, comment=str(answer.get("ErrorComment", "")), seconds=round(time.monotonic() - began, 4),
                 sha256=hash_from(path, offset))
    if status is None or not (status == "0000" or status.startswith("B0")):
        return fail("stored", **facts)
    with lock:
        accepted.append((sop_class, uid))
    say("stored", **facts)


def send(to, files):
    step = args.per_association or len(files) or 1
    for first in range(0, max(len(files), 1), step):
        part = files[first:first + step]
        association = associate(to, {contexts_of(path) for path in part}, commitment=args.commit == "same")
        if association is None:
            return
        if args.echo or not part:
            answer = association.send_c_echo()
            (say if answer.get("Status") == 0 else fail)("echo", status="%04X" % answer.Status if "Status" in answer else None)
        for number, path in enumerate(part):
            if args.abort_after and number == args.abort_after:
                association.abort()
                return
            if association.is_established:
                store(association, path, number)
            else:
                fail("stored", file=str(path), status=None, why="the association is gone")
            time.sleep(args.pause)
        if args.commit == "same" and args.associations == 1 and first + step >= len(files):
            ask(association)
        association.release()


def ask(association):
    also = [tuple(pair.split("/")) for pair in args.commit_also.split(",") if pair]
    request = Dataset()
    request.TransactionUID = args.transaction or generate_uid()
    request.ReferencedSOPSequence = []
    for sop_class, uid in accepted + also:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        request.ReferencedSOPSequence.append(item)
    try:
        answer, _ = association.send_n_action(request, 1, StorageCommitmentPushModel, COMMITMENT_INSTANCE)
    except (ValueError, RuntimeError) as error:
        return fail("action", status=None, why=str(error))
    status = "%04X" % answer.Status if "Status" in answer else None
    (say if status == "0000" else fail)("action", status=status, transaction=str(request.TransactionUID))
    reported.wait(args.linger)


def all_files():
    found = []
    for path in map(Path, args.files):
        found += sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    return found


if args.listen is not None:
    listen()
to, files = destination(), all_files()
threads = [threading.Thread(target=send, args=(to, files[k::args.associations])) for k in range(args.associations)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
if args.commit == "new" or args.commit and args.associations > 1:
    if association := associate(to, set(), commitment=True):
        ask(association)
        association.release()
if args.commit and args.report_within and not failures and not reported.wait(args.report_within):
    fail("no report")
if reported.is_set():
    reporter_gone.wait(REPORTER_LEAVES_WITHIN)
say("done", accepted=len(accepted), failures=len(failures))
os._exit(1 if failures else 0)
