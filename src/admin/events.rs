//! What the log says of events that a person is alerted by: each with a number of its own that never changes.
//!
//! In the journal the number is the field `MESSAGE_ID` (systemd.journal-fields(7)), beside `WARDGATE_ALARM` and `WARDGATE_ABOUT`; a rule
//! of a monitoring system names the number and not the words. The same numbers stand in `docs/appliance.md`, which a test holds. A number
//! is never given to another event. No patient data: the texts are those of the alarms.

use std::collections::{BTreeMap, BTreeSet};

use crate::status::Alarm;
use crate::system::logging;

/// Where these events go in `tracing`: their fields reach the journal under their own names.
pub const TARGET: &str = logging::EVENTS;

/// The service runs, and its sources are open.
pub const STARTED: &str = "0ebaea2b16a240809d5639f948bcf2a0";
/// The service ended well.
pub const STOPPED: &str = "74001e80e0f745e9b7f43fcfc4bafa58";
/// A changed configuration is in force.
pub const CONFIG_IN_FORCE: &str = "c3c64110a40a4ac386256afdcff7ee90";
/// A stage of the service stands still: the watchdog is not fed.
pub const STANDS_STILL: &str = "0c4729296c5041a58406c5c05e06038b";
/// It moves again.
pub const MOVES_AGAIN: &str = "7ea844f5caed471fa9230af7944000de";
/// An alarm that has no number of its own yet.
pub const OTHER_RAISED: &str = "a4bc0092f575480fb0b6c19692dce5a9";
/// It is over.
pub const OTHER_CLEARED: &str = "b8120560a24e404783b96b8c191f81ca";

/// The numbers of an alarm.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// The alarm's code.
    pub code: &'static str,
    /// It was raised.
    pub raised: &'static str,
    /// It is over.
    pub cleared: &'static str,
}

/// Every alarm, in the order of its code.
pub const ALARMS: [Event; 18] = [
    Event {
        code: "backlog-age",
        raised: "4c9aa5d2ed0047e18603735f887e3eac",
        cleared: "7daad43e219d49fc9fe8772d3c301118",
    },
    Event { code: "clock", raised: "667dc0cfb86e450eaf2c77f00c52727c", cleared: "3377ac7f5dba4270a2a7707b0e4d5ea1" },
    Event {
        code: "config-refused",
        raised: "84e5f2ecb747403bad0ac1f723158f00",
        cleared: "5db420f470024bb489f97b1d98557be9",
    },
    Event { code: "damaged", raised: "1332eee13ce64848b2105406d2dfb24a", cleared: "ea4d8689b40e4ac4ad0db2b4dcbe78c9" },
    Event {
        code: "dead-letters",
        raised: "752bc643fea3402b81fece616ac8e0e1",
        cleared: "c3160f66e9224d28ae48dbeb3cf40bcc",
    },
    Event {
        code: "folder-closed",
        raised: "aaae8fba730c4cd6af771f999a8d16f2",
        cleared: "4cc8ff6a0ff647d9ae7c07afa7633ec0",
    },
    Event {
        code: "foreign-files",
        raised: "76c9e535e6834f1a8b90112980f79334",
        cleared: "b62776aa71654963bcae88acc74a6f31",
    },
    Event { code: "index", raised: "f2b243da8c7f476788574f2d333c5888", cleared: "bd0c8671e3d74ecc94eb0d9b2c90d56d" },
    Event {
        code: "lane-held",
        raised: "5d4bb3c254a445ffa6fa680b7cb83646",
        cleared: "cc97f1f60595446dac63dfe263eeda93",
    },
    Event {
        code: "orphaned-lane",
        raised: "2dd607a650424631b2dbea7650d593ac",
        cleared: "91f02567ae30456ea416178ac319e364",
    },
    Event {
        code: "query-unanswered",
        raised: "7d3acff5d0f44f2dba73f5b2b6125bb3",
        cleared: "1909dee4caba4737af8ce4729bf8a9a4",
    },
    Event { code: "quota", raised: "bdd1ebbe197e40efaad4b439c65b01d9", cleared: "e4cb2c9bc7f24ade8e21b125fd6c2720" },
    Event { code: "silence", raised: "ce4025cfa66e41ccb4a572bb2e009d61", cleared: "7a023f9a78cf45e0b1b4ae6b8609d57f" },
    Event {
        code: "source-down",
        raised: "a70ac83eda5e4365848c177bd38a94cd",
        cleared: "644319b117c949a0a4d24d16a56e4d7c",
    },
    Event {
        code: "spool-failed",
        raised: "6bcace1b930642778328fffbea31f856",
        cleared: "bd33e6e44ab5452294b38403408f8382",
    },
    Event {
        code: "spool-full",
        raised: "0c2e454f2883412f94fe0d6826052156",
        cleared: "6f8268cdcc14422bb7c07eb9532be345",
    },
    Event {
        code: "unplugged",
        raised: "f76cfeeb629f456c8e07f567b9b074d8",
        cleared: "6fd7ec0c853e445f94f4a65ed917befc",
    },
    Event {
        code: "upstream-down",
        raised: "bf576729fe2346ed9f48fc0e294c9710",
        cleared: "a199fa144a924b55a8f55a7130197445",
    },
];

/// What was said of the alarms: each is said when it is raised and when it is over, and not in between.
#[derive(Default)]
pub struct Announcer {
    /// By code and what it is about.
    raised: BTreeSet<(String, String)>,
}

impl Announcer {
    /// Says what changed since the last call.
    pub fn tell(&mut self, alarms: &[Alarm]) {
        let now: BTreeMap<(String, String), &Alarm> =
            alarms.iter().map(|alarm| ((alarm.code.clone(), alarm.about.clone()), alarm)).collect();
        for (code, about) in self.raised.iter().filter(|key| !now.contains_key(key)) {
            let id = numbers(code).map_or(OTHER_CLEARED, |event| event.cleared);
            tracing::info!(target: TARGET, message_id = id, wardgate_alarm = code, wardgate_about = about, "alarm over: {about} ({code})");
        }
        for ((code, about), alarm) in now.iter().filter(|(key, _)| !self.raised.contains(*key)) {
            let (id, text) = (numbers(code).map_or(OTHER_RAISED, |event| event.raised), &alarm.text);
            tracing::warn!(
                target: TARGET, message_id = id, wardgate_alarm = code, wardgate_about = about, "alarm: {about} ({code}): {text}"
            );
        }
        self.raised = now.into_keys().collect();
    }
}

fn numbers(code: &str) -> Option<&'static Event> {
    ALARMS.iter().find(|event| event.code == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<&'static str> {
        let of_alarms = ALARMS.iter().flat_map(|event| [event.raised, event.cleared]);
        let others = [STARTED, STOPPED, CONFIG_IN_FORCE, STANDS_STILL, MOVES_AGAIN, OTHER_RAISED, OTHER_CLEARED];
        of_alarms.chain(others).collect()
    }

    #[test]
    fn every_number_is_128_bits_and_stands_for_one_event() {
        let all = all();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        for id in all {
            assert!(id.len() == 32 && id.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c)), "{id}");
        }
        assert!(ALARMS.is_sorted_by_key(|event| event.code));
    }

    #[test]
    fn every_alarm_that_is_raised_anywhere_has_its_numbers() {
        let raising = [
            include_str!("alarms.rs"),
            include_str!("../gateway.rs"),
            include_str!("../gateway/parts.rs"),
            include_str!("../spool/index.rs"),
            include_str!("../spool/operations.rs"),
        ];
        let mut found = BTreeSet::new();
        for text in raising.iter().filter_map(|text| text.split("#[cfg(test)]").next()) {
            for mark in ["code: \"", "alarm(\"", "alarm(\n            \"", "alarm(\n                \""] {
                found.extend(text.split(mark).skip(1).filter_map(|rest| rest.split('"').next()));
            }
        }
        let known: BTreeSet<&str> = ALARMS.iter().map(|event| event.code).collect();
        assert_eq!(found, known);
    }

    #[test]
    fn the_document_names_every_number() {
        let document = include_str!("../../docs/appliance.md");
        for id in all() {
            assert!(document.contains(id), "docs/appliance.md lacks {id}");
        }
        for event in ALARMS {
            let row = document.lines().find(|line| line.starts_with(&format!("| `{}` |", event.code)));
            let row = row.unwrap_or_else(|| panic!("docs/appliance.md has no row of {}", event.code));
            assert!(row.contains(event.raised) && row.contains(event.cleared), "{row}");
        }
    }

    #[test]
    fn an_alarm_is_said_when_it_comes_and_when_it_goes() {
        let alarm = |about: &str| Alarm { code: "silence".into(), about: about.into(), text: "nothing came".into() };
        let mut announcer = Announcer::default();
        announcer.tell(&[alarm("monitors"), alarm("lab")]);
        assert_eq!(announcer.raised.len(), 2);
        announcer.tell(&[alarm("lab")]);
        assert_eq!(announcer.raised.iter().map(|(_, about)| about.as_str()).collect::<Vec<_>>(), ["lab"]);
    }
}
