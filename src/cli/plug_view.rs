//! The plugs of local devices in the snapshot: whether the device is there, and frames that could not be read.
//!
//! Frames may hold anything that the device says: they come over the control socket and are shown here only.

use super::table::{Column, Table, age, bytes, count};
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

/// What the sources of devices count beyond their messages; `None` without such devices.
pub fn devices(status: &Status) -> Option<Table> {
    let numbers = ["UNPLUGGED", "UNREADABLE", "QUERIES", "GAPS", "DROPPED"];
    let mut table = Table::new(
        [Column::left("DEVICE"), Column::left("LINE").optional(2)]
            .into_iter()
            .chain(numbers.map(Column::right))
            .chain([Column::right("NOISE").optional(1)]),
    );
    let is_device = |source: &SourceStatus| source.plug.is_some() || source.queries + source.gaps > 0;
    for (name, source) in status.sources.iter().filter(|(_, source)| is_device(source)) {
        let plug = source.plug.as_ref();
        let line = plug.map(|plug| plug.settings.clone()).filter(|line| !line.is_empty());
        let (unplugs, unreadable) = plug.map_or((0, 0), |plug| (plug.unplugs, plug.unreadable));
        let numbers = [unplugs, unreadable, source.queries, source.gaps, source.refused].map(count);
        let cells = [name.to_string(), line.unwrap_or_else(|| "-".to_owned())].into_iter().chain(numbers);
        table.row(cells.chain([bytes(source.discarded_bytes)]));
    }
    (!table.is_empty()).then_some(table)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::sample;
    use crate::status::SourceCounters;

    #[test]
    fn what_devices_count_is_shown_in_a_row_of_its_own() {
        let mut status = sample::healthy();
        assert!(devices(&status).is_none(), "a monitor on the network has none of it");
        let counters = SourceCounters::default();
        counters.plug.at("/dev/serial/by-path/usb-1", "9600 8N1");
        counters.plug.set(PlugState::Plugged, 1_000);
        counters.plug.unreadable(b"{noise}");
        counters.queries.add(2);
        counters.gaps.add(3);
        counters.refused.add(4);
        counters.discarded_bytes.add(1_536);
        status.sources.insert("lab".parse().unwrap(), counters.snapshot("astm", "/dev/serial/by-path/usb-1", 2_000));
        let shown = devices(&status).unwrap().render(100);
        let expected = "\
DEVICE  LINE      UNPLUGGED  UNREADABLE  QUERIES  GAPS  DROPPED    NOISE
lab     9600 8N1          0           1        2     3        4  1.5 KiB";
        assert_eq!(shown, expected);
    }
}
