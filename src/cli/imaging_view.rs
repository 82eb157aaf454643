//! The study view of the snapshot: which studies came lately, whether more images of them are to be expected, and who sends.
//!
//! A study has the label that the box gave it, never its own name: a person tells it by its sender, modality and time.

use super::table::{Column, Table, age, bytes, count};
use crate::status::Status;
use crate::status::imaging::{PeerStatus, StudyStatus};
use crate::values::Name;

/// The last studies of all sources; `None` when there are none.
pub fn studies(status: &Status) -> Option<Table> {
    let mut table = Table::new([
        Column::left("STUDY"),
        Column::left("SOURCE").optional(2),
        Column::left("FROM"),
        Column::left("MODALITY"),
        Column::right("INSTANCES"),
        Column::right("SIZE").optional(1),
        Column::right("BEGAN").optional(3),
        Column::right("QUIET FOR"),
    ]);
    for (name, imaging) in status.sources.iter().filter_map(|(name, source)| Some((name, source.imaging.as_ref()?))) {
        for study in &imaging.studies {
            table.row(study_row(name, study));
        }
    }
    (!table.is_empty()).then_some(table)
}

fn study_row(source: &Name, study: &StudyStatus) -> [String; 8] {
    [
        study.study.clone(),
        source.to_string(),
        study.calling.clone(),
        study.modality.clone(),
        count(study.instances),
        bytes(study.bytes),
        format!("{} ago", age(study.began_s)),
        age(study.quiet_s),
    ]
}

/// The last peers of all imaging sources; `None` when there are none.
pub fn peers(status: &Status) -> Option<Table> {
    let mut table = Table::new([
        Column::left("PEER"),
        Column::left("AT").optional(2),
        Column::left("CALLS").optional(3),
        Column::left("SOURCE").optional(1),
        Column::left("SOFTWARE").shrinking().optional(4),
        Column::left("CERTIFICATE").shrinking().optional(5),
        Column::right("LAST"),
    ]);
    for (name, imaging) in status.sources.iter().filter_map(|(name, source)| Some((name, source.imaging.as_ref()?))) {
        for peer in &imaging.peers {
            table.row(peer_row(name, peer));
        }
    }
    (!table.is_empty()).then_some(table)
}

fn peer_row(source: &Name, peer: &PeerStatus) -> [String; 7] {
    let software = format!("{} {}", peer.implementation_version, peer.implementation_class);
    [
        peer.calling.clone(),
        peer.address.clone(),
        peer.called.clone(),
        source.to_string(),
        software.trim().to_owned(),
        peer.certificate.clone().unwrap_or_else(|| "-".to_owned()),
        format!("{} ago", age(peer.last_s)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::sample;
    use crate::status::SourceCounters;
    use crate::status::imaging::Instance;

    #[test]
    fn a_person_sees_who_sent_how_much_and_since_when_nothing_more_comes() {
        let mut status = sample::healthy();
        assert!(studies(&status).is_none() && peers(&status).is_none());
        let source = SourceCounters::default();
        let peer = PeerStatus {
            calling: "CT1".into(),
            address: "10.21.0.7".into(),
            called: "WARDGATE".into(),
            implementation_class: "1.2.3".into(),
            implementation_version: "SCANNER_7".into(),
            ..PeerStatus::default()
        };
        source.imaging.met(peer, 7_000_000);
        for now_ms in [7_000_000, 7_100_000] {
            let instance = Instance { study: b"1.2.9", modality: "CT", calling: "CT1", bytes: 512 << 10 };
            source.imaging.stored(&instance, now_ms);
        }
        let snapshot = source.snapshot("dicom", "10.21.0.1:11112", 7_200_000);
        status.sources.insert("ct".parse().unwrap(), snapshot);
        let shown = studies(&status).unwrap().render(100);
        let row: Vec<&str> = shown.lines().nth(1).unwrap().split_whitespace().skip(1).collect();
        assert_eq!(row.join(" "), "ct CT1 CT 2 1.0 MiB 3 min ago 1 min", "{shown}");
        assert!(!shown.contains("1.2.9"), "{shown}");
        let shown = peers(&status).unwrap().render(100);
        let row: Vec<&str> = shown.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row.join(" "), "CT1 10.21.0.7 WARDGATE ct SCANNER_7 1.2.3 - 3 min ago", "{shown}");
    }
}
