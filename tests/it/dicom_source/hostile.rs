//! Clients that break the rules, or keep them in ways that few do: each gets the answer of the standard, and costs little.

use std::net::TcpStream;

use serde_json::{Value, json};
use wardgate::wire::dicom::dimse::Status;

use super::device::{Device, instance, request, socket_from};
use super::{ct, start};
use crate::support::dicom::hostile;
use crate::support::gateway::Gateway;
use crate::support::wait::eventually;

/// Bytes that the process may grow by, whatever is thrown at it.
const GROWTH_KIB: u64 = 24 << 10;

fn memory_kib(gateway: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Runs cases, each with the PDUs that must come back; then a modality stores as if nothing had been.
#[track_caller]
fn each_is_answered(lines: &str, cases: &[(&str, &[&str])]) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), lines);
    let at = gateway.endpoint("ct");
    let before = memory_kib(&gateway);
    let mut outcomes = Vec::new();
    for (case, expected) in cases {
        let outcome = hostile(at, "WARDGATE", case, &[]);
        assert_eq!((&outcome["pdus"], &outcome["closed"]), (&json!(expected), &json!(true)), "{case}: {outcome}");
        outcomes.push(outcome);
    }
    let grown = memory_kib(&gateway) - before;
    assert!(grown < GROWTH_KIB, "memory grew by {grown} KiB");
    let mut device = Device::associate(at);
    let (own, data) = instance(1, 1, 1000);
    assert_eq!(device.store(&own, &data).unwrap(), Status::SUCCESS);
    outcomes.push(ct(&gateway));
    gateway.stop();
    outcomes
}

#[test]
fn what_is_not_dicom_is_aborted_by_its_first_bytes() {
    let outcomes = each_is_answered(
        "artim-timeout = \"300ms\"",
        &[
            ("http", &["ABORT 2/1"]),
            ("tls", &["ABORT 2/1"]),
            ("unknown-pdu", &["ABORT 2/1"]),
            ("data-first", &["ABORT 2/2"]),
            ("huge-request", &["ABORT 2/6"]),
            ("request-of-300k", &["ABORT 2/6"]),
            ("item-past-the-end", &["ABORT 2/6"]),
            ("same-context-twice", &["ABORT 2/6"]),
            ("cut-request", &[]),
            ("idle", &["ABORT 2/0"]),
            ("slow-request", &["ABORT 2/0"]),
        ],
    );
    assert_eq!(outcomes.last().unwrap()["imaging"]["peers"].as_array().unwrap().len(), 1, "only the modality is one");
}

#[test]
fn requests_that_are_lawful_and_odd_are_accepted_and_the_others_are_rejected_with_their_reason() {
    const ANSWERED: &[&str] = &["AC", "DATA", "RELEASE-RP"];
    let outcomes = each_is_answered(
        "",
        &[
            ("request-of-148k", ANSWERED),
            ("version-3", ANSWERED),
            ("unknown-item", ANSWERED),
            ("unknown-user-item", ANSWERED),
            ("unknown-sub-item", ANSWERED),
            ("window-0-0", ANSWERED),
            ("identity", ANSWERED),
            ("zero-max-pdu", ANSWERED),
            ("private-syntax-only", &["AC", "RELEASE-RP"]),
            ("no-contexts", &["AC", "RELEASE-RP"]),
            ("no-syntaxes", &["AC", "RELEASE-RP"]),
            ("max-pdu-of-4", &["ABORT 2/0"]),
            ("version-2", &["RJ 1/2/2"]),
            ("other-application", &["RJ 1/1/2"]),
            ("other-called", &["RJ 1/1/7"]),
            ("empty-called", &["RJ 1/1/7"]),
        ],
    );
    for outcome in outcomes.iter().filter(|outcome| outcome["pdus"] == json!(ANSWERED)) {
        assert_eq!(outcome["statuses"], json!(["8030:0000"]), "{outcome}");
    }
    assert_eq!(outcomes[0]["accepted"], json!(vec![0; 128]), "every context, of every transfer syntax");
}

#[test]
fn commands_and_data_may_be_mixed_and_cut_anywhere() {
    let outcomes = each_is_answered(
        "",
        &[
            ("command-with-data", &["AC", "DATA", "RELEASE-RP"]),
            ("command-after-data", &["AC", "DATA", "DATA", "RELEASE-RP"]),
            ("all-in-one", &["AC", "DATA", "DATA", "DATA", "RELEASE-RP"]),
            ("split-command", &["AC", "DATA", "RELEASE-RP"]),
            ("empty-fragments", &["AC", "DATA", "RELEASE-RP"]),
            ("small-fragments", &["AC", "DATA", "RELEASE-RP"]),
            ("odd-fragments", &["AC", "DATA", "DATA", "RELEASE-RP"]),
            ("two-echoes-at-once", &["AC", "DATA", "DATA", "RELEASE-RP"]),
            ("half-closed-after-store", &["AC", "DATA"]),
        ],
    );
    let all = outcomes.iter().filter_map(|outcome| outcome["statuses"].as_array());
    assert!(all.flatten().all(|status| status.as_str().unwrap().ends_with(":0000")), "{outcomes:?}");
}

#[test]
fn broken_pdus_and_messages_out_of_order_are_aborted() {
    const INVALID: &[&str] = &["AC", "ABORT 2/6"];
    const UNEXPECTED: &[&str] = &["AC", "ABORT 2/2"];
    let outcomes = each_is_answered(
        "",
        &[
            ("huge-data", INVALID),
            ("data-beyond-maximum", INVALID),
            ("fragment-past-the-end", INVALID),
            ("fragment-of-one-byte", INVALID),
            ("fragment-of-length-0", INVALID),
            ("empty-data-pdu", INVALID),
            ("unknown-context", INVALID),
            ("data-without-command", INVALID),
            ("data-in-other-context", INVALID),
            ("command-in-data", INVALID),
            ("endless-command", INVALID),
            ("command-that-lies", INVALID),
            ("empty-command", INVALID),
            ("noise-command", INVALID),
            ("release-answer-unasked", UNEXPECTED),
            ("request-twice", UNEXPECTED),
        ],
    );
    assert_eq!(outcomes.last().unwrap()["stored"], 1, "the modality's alone");
}

#[test]
fn commands_that_are_not_spoken_or_make_no_sense_have_their_status() {
    const ANSWERED: &[&str] = &["AC", "DATA", "RELEASE-RP"];
    let cases = [
        ("unknown-command", "8FF0:0211"),
        ("cancel", "8030:0000"),
        ("find", "8020:0211"),
        ("store-without-data", "8001:C000"),
        ("store-without-instance", "8001:C000"),
        ("store-of-other-class", "8001:0122"),
        ("store-of-path", "8001:C000"),
        ("store-of-nul", "8001:C000"),
        ("store-of-long-instance", "8001:C000"),
    ];
    let outcomes = each_is_answered("", &cases.map(|(case, _)| (case, ANSWERED)));
    for ((case, expected), outcome) in cases.iter().zip(&outcomes) {
        assert_eq!(outcome["statuses"], json!([expected]), "{case}");
    }
    assert_eq!(outcomes.last().unwrap()["stored"], 1, "the modality's alone");
}

#[test]
fn associations_may_end_in_the_middle_of_anything() {
    let outcomes = each_is_answered(
        "idle-timeout = \"500ms\"",
        &[
            ("half-store", &["AC"]),
            ("half-pdu", &["AC"]),
            ("abort-in-store", &["AC"]),
            ("release-in-store", &["AC", "RELEASE-RP"]),
            ("release-twice", &["AC", "RELEASE-RP"]),
            ("data-after-release", &["AC", "RELEASE-RP"]),
            ("slow-store", &["AC", "ABORT 2/0"]),
        ],
    );
    assert_eq!(outcomes.last().unwrap()["stored"], 1, "the modality's alone");
}

#[test]
fn idle_connections_of_one_peer_do_not_keep_out_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "");
    let at = gateway.endpoint("ct");
    let _idle: Vec<_> = (0..200).map(|_| TcpStream::connect(at).unwrap()).collect();
    eventually("only as many wait as may associate", || ct(&gateway)["connections"].as_u64().unwrap() <= 16);
    let other = socket_from([127, 0, 0, 2]).to(at);
    let mut device = Device::over(other, &request("CT2", "WARDGATE")).unwrap().unwrap();
    assert_eq!(device.echo().unwrap(), Status::SUCCESS);
}
