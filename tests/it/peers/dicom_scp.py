"""A DICOM archive that is not ours, made of pynetdicom: C-ECHO, C-STORE and storage commitment, each answered as the test wants.

Writes each object that it took to STORE/<SOP instance UID>.dcm, a second one of that name to <UID>~2.dcm and so on: a header
of its own and the data set as it came, not decoded.
Prints "listening HOST:PORT" and one JSON object in a line for each event: associated, stored, action, reported, released, aborted.
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

import dicom_reactor
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, AllStoragePresentationContexts, _config, build_role, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"  # the well-known instance of the push model
NO_SUCH_INSTANCE = 0x0112

parser = argparse.ArgumentParser()
parser.add_argument("--store", required=True, help="folder for the objects")
parser.add_argument("--port", type=int, default=0)
parser.add_argument("--ae-title", default="ARCHIVE")
parser.add_argument("--statuses", default="0000", help="statuses of C-STORE in turn, hexadecimal, the last one for ever; 'abort' aborts, 'silence' never answers")
parser.add_argument("--comment", help="error comment of answers that are no success")
parser.add_argument("--delay", type=float, default=0.0, help="seconds before each C-STORE answer")
parser.add_argument("--discard", action="store_true", help="write nothing, so that an object may be of any size on a small disk")
parser.add_argument("--max-pdu", type=int, default=16382, help="longest P-DATA that it takes; 0 is no limit")
parser.add_argument("--transfer-syntaxes", help="accept only these, UIDs with commas; else the first one proposed, whatever it is")
parser.add_argument("--sop-classes", help="accept only these, UIDs with commas, in --transfer-syntaxes")
parser.add_argument("--check-called", action="store_true", help="reject associations that call somebody else")
parser.add_argument("--calling", help="reject associations of others, titles with commas")
parser.add_argument("--max-associations", type=int, default=100)
parser.add_argument("--commitment", default="new", choices=["new", "same", "none"], help="report on a new association, on the same, or never")
parser.add_argument("--commit-to", help="HOST:PORT of the requestor for 'new'")
parser.add_argument("--commit-delay", type=float, default=0.0, help="seconds before each report")
parser.add_argument("--commit-tries", type=int, default=1, help="tries of a report that is not answered with 0000, a second apart")
parser.add_argument("--action-status", default="0000", help="status of N-ACTION, hexadecimal")
parser.add_argument("--commit-fail", default="", help="UIDs with commas that are reported as failed though they are here; 'all'")
parser.add_argument("--nagle", action="store_true", help="leave Nagle's algorithm on")
parser.add_argument("--certificate", help="PEM; with --key it speaks TLS")
parser.add_argument("--key")
parser.add_argument("--client-ca", help="PEM; a client certificate is then required")
args = parser.parse_args()

lock = threading.Lock()
statuses = args.statuses.split(",")
stored = set()
copies = {}  # of a SOP instance that were written


def say(event, **facts):
    with lock:
        print(json.dumps({"event": event, **facts}), flush=True)


def next_status():
    with lock:
        return statuses.pop(0) if len(statuses) > 1 else statuses[0]


def tls():
    if not args.certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(args.certificate, args.key)
    if args.client_ca:
        context.load_verify_locations(args.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def at_once(event):
    """A small PDU must not wait for the acknowledgement of the one before it."""
    if not args.nagle:
        event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def on_accepted(event):
    dicom_reactor.truthful(event.assoc)
    requestor = event.assoc.requestor
    say("associated", calling=requestor.ae_title, called=requestor.primitive.called_ae_title,
        implementation=str(requestor.implementation_class_uid), version=requestor.implementation_version_name,
        max_pdu=requestor.maximum_length, proposed=len(requestor.requested_contexts),
        contexts=[[str(c.abstract_syntax), str(c.transfer_syntax[0])] for c in event.assoc.accepted_contexts])


def keep(event, uid):
    if args.discard:
        return
    with lock:
        copies[uid] = copies.get(uid, 0) + 1
        copy = f"~{copies[uid]}" if copies[uid] > 1 else ""
    path = os.path.join(args.store, f"{uid.replace('/', '_')}{copy}.dcm")
    with open(path + ".part", "wb") as file:
        file.write(event.encoded_dataset())
    os.rename(path + ".part", path)


def on_store(event):
    uid = str(event.request.AffectedSOPInstanceUID)
    status = next_status()
    body = event.request.DataSet.getbuffer()
    facts = dict(sop_class=str(event.request.AffectedSOPClassUID), sop_instance=uid, transfer_syntax=str(event.context.transfer_syntax),
                 bytes=len(body), sha256=hashlib.sha256(body).hexdigest(), calling=event.assoc.requestor.ae_title, status=status)
    if args.delay:
        time.sleep(args.delay)
    if status == "silence":
        say("stored", **facts)
        threading.Event().wait()
    if status == "abort":
        say("stored", **facts)
        event.assoc.abort()
        return 0x0110
    # Warnings (B000, B006, B007) are successes.
    if status == "0000" or status.startswith("B0"):
        keep(event, uid)
        with lock:
            stored.add(uid)
    say("stored", **facts)
    if args.comment and status != "0000":
        answer = Dataset()
        answer.Status, answer.ErrorComment = int(status, 16), args.comment
        return answer
    return int(status, 16)


def on_action(event):
    """N-ACTION of storage commitment, PS3.4 annex J.3."""
    request = event.action_information
    asked = [(str(i.ReferencedSOPClassUID), str(i.ReferencedSOPInstanceUID)) for i in request.ReferencedSOPSequence]
    transaction = str(request.TransactionUID)
    say("action", transaction=transaction, instances=[uid for _, uid in asked], status=args.action_status)
    if args.action_status == "0000" and args.commitment != "none":
        peer = (event.assoc.requestor.ae_title, event.assoc)
        threading.Thread(target=report, args=(peer, transaction, asked), daemon=True).start()
    return int(args.action_status, 16), None


def result_of(transaction, asked):
    failing = args.commit_fail.split(",")
    good, bad = [], []
    for sop_class, uid in asked:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        if uid in stored and uid not in failing and "all" not in failing:
            good.append(item)
        else:
            item.FailureReason = NO_SUCH_INSTANCE
            bad.append(item)
    result = Dataset()
    result.TransactionUID = transaction
    if good:
        result.ReferencedSOPSequence = good
    if bad:
        result.FailedSOPSequence = bad
    return result, 2 if bad else 1


def report(peer, transaction, asked):
    calling, same = peer
    time.sleep(args.commit_delay)
    result, kind = result_of(transaction, asked)
    for attempt in range(args.commit_tries):
        answered = reported_on(same, result, kind) if args.commitment == "same" else reported_anew(calling, result, kind)
        say("reported", transaction=transaction, kind=kind, status=answered, attempt=attempt + 1)
        if answered == "0000":
            return
        time.sleep(1)


def reported_anew(calling, result, kind):
    host, port = args.commit_to.rsplit(":", 1)
    requestor = AE(ae_title=args.ae_title)
    requestor.add_requested_context(StorageCommitmentPushModel)
    # We stay the SCP of the service though we ask for the association.
    role = build_role(StorageCommitmentPushModel, scu_role=False, scp_role=True)
    association = requestor.associate(host, int(port), ae_title=calling, ext_neg=[role], evt_handlers=[(evt.EVT_CONN_OPEN, at_once)])
    if not association.is_established:
        return "no association"
    dicom_reactor.truthful(association)
    try:
        return reported_on(association, result, kind)
    finally:
        association.release()


def reported_on(association, result, kind):
    try:
        answer, _ = association.send_n_event_report(result, kind, StorageCommitmentPushModel, COMMITMENT_INSTANCE)
    except (RuntimeError, ValueError) as error:
        return str(error)
    return "%04X" % answer.Status if "Status" in answer else "no answer"


warnings.simplefilter("ignore")  # about UIDs that are bad on purpose
_config.UNRESTRICTED_STORAGE_SERVICE = not args.transfer_syntaxes
ae = AE(ae_title=args.ae_title)
ae.maximum_pdu_size = args.max_pdu
ae.maximum_associations = args.max_associations
ae.require_called_aet = args.check_called
ae.require_calling_aet = args.calling.split(",") if args.calling else []
ae.network_timeout = ae.dimse_timeout = 600
ae.add_supported_context(Verification)
ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
if args.transfer_syntaxes:
    classes = args.sop_classes.split(",") if args.sop_classes else [c.abstract_syntax for c in AllStoragePresentationContexts]
    for sop_class in classes:
        ae.add_supported_context(UID(sop_class), [UID(uid) for uid in args.transfer_syntaxes.split(",")])
handlers = [
    (evt.EVT_CONN_OPEN, at_once),
    (evt.EVT_ACCEPTED, on_accepted),
    (evt.EVT_C_STORE, on_store),
    (evt.EVT_N_ACTION, on_action),
    (evt.EVT_C_ECHO, lambda event: 0x0000),
    (evt.EVT_REJECTED, lambda event: say("rejected")),
    (evt.EVT_RELEASED, lambda event: say("released")),
    (evt.EVT_ABORTED, lambda event: say("aborted")),
]
server = ae.start_server(("127.0.0.1", args.port), block=False, evt_handlers=handlers, ssl_context=tls())
print("listening 127.0.0.1:%d" % server.socket.getsockname()[1], flush=True)
threading.Event().wait()
