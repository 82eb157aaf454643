//! The plugs of local devices in the snapshot: whether the device is there, and frames that could not be read.
//!
//! Frames may hold anything that the device says: they come over the control socket and are shown here only.

use super::table::{Column, Table, age, count};
use crate::status::plug::PlugState;
use crate::status::{SourceStatus, Status};

/// How a source that runs stands.
pub fn state(source: &SourceStatus) -> String {
    match source.plug.as_ref().map(|plug| (&plug.state, plug.since_s)) {
        None | Some((PlugState::Unknown | PlugState::Listening, _)) => "listening".to_owned(),
        Some((PlugState::Plugged, _)) => "plugged in".to_owned(),
        Some((PlugState::Missing(cause), since_s)) => format!("NOT THERE for {}: {cause}", age(since_s)),
    }
}

/// The last frames that no profile could read, escaped; `None` when there are none.
pub fn unreadable(status: &Status) -> Option<Table> {
    let mut table =
        Table::new([Column::left("UNREADABLE"), Column::right("FRAMES").optional(1), Column::left("LAST").shrinking()]);
    for (name, plug) in status.sources.iter().filter_map(|(name, source)| Some((name, source.plug.as_ref()?))) {
        for sample in &plug.samples {
            table.row([name.to_string(), count(plug.unreadable), sample.clone()]);
        }
    }
    (!table.is_empty()).then_some(table)
}
