//! What the documents name must be there: files that they link to, subcommands that they show.

use super::Fault;

/// Links to files that do not exist. `exists` is asked with the path from the repository's folder.
pub fn link_faults(file: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<Fault> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap_or_default();
            let outside = path.is_empty() || path.contains("://") || path.starts_with("mailto:");
            if !outside && !exists(path) {
                found.push(Fault::new(file, index + 1, format!("links to `{path}`, which is not there")));
            }
        }
    }
    found
}

/// Subcommands (`wardgate NAME`) in code of a document that the command line does not have.
pub fn command_faults(file: &str, text: &str, known: &[String]) -> Vec<Fault> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for mark in ["`wardgate ", "    wardgate "] {
            for rest in line.split(mark).skip(1) {
                let name: String = rest.chars().take_while(char::is_ascii_lowercase).collect();
                if !name.is_empty() && !known.contains(&name) {
                    found.push(Fault::new(file, index + 1, format!("`wardgate {name}` is no subcommand")));
                }
            }
        }
    }
    found
}

#[test]
fn a_link_to_nowhere_is_a_fault() {
    let text = "see [a](a.md), [b](b.md#part)\nand [c](https://example.org/), [d](#here)\n";
    let found = link_faults("README.md", text, |path| path == "a.md");
    assert_eq!((found.len(), found[0].line), (1, 1));
}

#[test]
fn a_subcommand_that_is_not_there_is_a_fault() {
    let known = ["run".to_owned()];
    assert_eq!(command_faults("README.md", "Use `wardgate walk` and `wardgate run`.\n", &known).len(), 1);
    assert_eq!(command_faults("README.md", "    wardgate walk --fast   # text\n", &known).len(), 1);
    assert!(
        command_faults("README.md", "wardgate is a program; `wardgate` too\n    wardgate run\n", &known).is_empty()
    );
}
