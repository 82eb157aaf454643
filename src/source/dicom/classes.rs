//! Which SOP classes of the standard belong to other services than storage (PS3.4, PS3.6 annex A): contexts of these are refused, since
//! none of their requests is answered here.
//!
//! Whatever is not listed counts as storage: private classes, and classes that a later edition of the standard adds.

/// SOP classes of other services; one that ends with a point stands for all below it.
const OTHER_SERVICES: [&str; 47] = [
    // Notifications, commitment by pull, event logs.
    "1.2.840.10008.1.9",
    "1.2.840.10008.1.20.2",
    "1.2.840.10008.1.40",
    "1.2.840.10008.1.42",
    // Real-time video and audio.
    "1.2.840.10008.10.",
    // Patients, visits, results, performed procedure steps.
    "1.2.840.10008.3.1.2.",
    // Print, media creation, display.
    "1.2.840.10008.5.1.1.",
    // Queries for protocol approvals and inventories.
    "1.2.840.10008.5.1.4.1.1.200.4",
    "1.2.840.10008.5.1.4.1.1.200.5",
    "1.2.840.10008.5.1.4.1.1.200.6",
    "1.2.840.10008.5.1.4.1.1.201.2",
    "1.2.840.10008.5.1.4.1.1.201.3",
    "1.2.840.10008.5.1.4.1.1.201.4",
    "1.2.840.10008.5.1.4.1.1.201.5",
    "1.2.840.10008.5.1.4.1.1.201.6",
    // Query and retrieve.
    "1.2.840.10008.5.1.4.1.2.",
    "1.2.840.10008.5.1.4.20.",
    // Worklists, availability, unified procedure steps, machine verification.
    "1.2.840.10008.5.1.4.31",
    "1.2.840.10008.5.1.4.32",
    "1.2.840.10008.5.1.4.32.",
    "1.2.840.10008.5.1.4.33",
    "1.2.840.10008.5.1.4.34.2",
    "1.2.840.10008.5.1.4.34.3",
    "1.2.840.10008.5.1.4.34.4",
    "1.2.840.10008.5.1.4.34.4.",
    "1.2.840.10008.5.1.4.34.6",
    "1.2.840.10008.5.1.4.34.6.",
    "1.2.840.10008.5.1.4.34.8",
    "1.2.840.10008.5.1.4.34.9",
    // Queries for what is known of a patient, and for hanging protocols, palettes and implants, whose own classes are storage.
    "1.2.840.10008.5.1.4.37.",
    "1.2.840.10008.5.1.4.38.2",
    "1.2.840.10008.5.1.4.38.3",
    "1.2.840.10008.5.1.4.38.4",
    "1.2.840.10008.5.1.4.39.2",
    "1.2.840.10008.5.1.4.39.3",
    "1.2.840.10008.5.1.4.39.4",
    "1.2.840.10008.5.1.4.41",
    "1.2.840.10008.5.1.4.42",
    "1.2.840.10008.5.1.4.43.2",
    "1.2.840.10008.5.1.4.43.3",
    "1.2.840.10008.5.1.4.43.4",
    "1.2.840.10008.5.1.4.44.2",
    "1.2.840.10008.5.1.4.44.3",
    "1.2.840.10008.5.1.4.44.4",
    "1.2.840.10008.5.1.4.45.2",
    "1.2.840.10008.5.1.4.45.3",
    "1.2.840.10008.5.1.4.45.4",
];

/// Storage classes among those of print, all retired: stored prints and hardcopies.
const STORED_PRINTS: [&str; 3] = ["1.2.840.10008.5.1.1.27", "1.2.840.10008.5.1.1.29", "1.2.840.10008.5.1.1.30"];

/// Whether this SOP class is of another service of the standard than storage. Verification and storage commitment by push, which
/// are spoken here, are not asked for.
pub(super) fn is_other_service(class: &str) -> bool {
    let is_of = |listed: &&str| class == *listed || (listed.ends_with('.') && class.starts_with(listed));
    OTHER_SERVICES.iter().any(is_of) && !STORED_PRINTS.contains(&class)
}

#[cfg(test)]
mod tests {
    use super::is_other_service;

    #[test]
    fn storage_of_the_standard_private_and_unknown_classes_are_storage() {
        for class in [
            "1.2.840.10008.5.1.4.1.1.2",
            "1.2.840.10008.5.1.4.1.1.20",
            "1.2.840.10008.5.1.4.1.1.200.1",
            "1.2.840.10008.5.1.4.1.1.201.1",
            "1.2.840.10008.5.1.4.34.7",
            "1.2.840.10008.5.1.4.34.10",
            "1.2.840.10008.5.1.4.38.1",
            "1.2.840.10008.5.1.4.39.1",
            "1.2.840.10008.5.1.4.43.1",
            "1.2.840.10008.5.1.4.45.1",
            "1.2.840.10008.5.1.1.29",
            "1.2.840.10008.5.1.4.999.1",
            "1.3.12.2.1107.5.9.1",
            "1.2.840.113619.4.30",
        ] {
            assert!(!is_other_service(class), "{class}");
        }
    }

    #[test]
    fn queries_worklists_and_print_are_other_services() {
        for class in [
            "1.2.840.10008.5.1.4.1.2.1.1",
            "1.2.840.10008.5.1.4.1.2.2.3",
            "1.2.840.10008.5.1.4.31",
            "1.2.840.10008.5.1.4.34.6.1",
            "1.2.840.10008.5.1.4.38.2",
            "1.2.840.10008.5.1.1.9",
            "1.2.840.10008.5.1.1.40",
            "1.2.840.10008.3.1.2.3.3",
            "1.2.840.10008.5.1.4.1.1.201.6",
        ] {
            assert!(is_other_service(class), "{class}");
        }
    }
}
