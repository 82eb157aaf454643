//! How long and how deep: files, functions, folders, and the words a file opens with.

use super::Fault;
use super::outline::{closes, lines};

/// Folders below `src/`, one in the other.
const FOLDERS_MAX: usize = 2;
/// Lines in a file, all of them.
const FILE_LINES_MAX: usize = 700;
/// Lines of code in a function, from its `fn` to its closing brace, without blank lines and comments.
const FUNCTION_LINES_MAX: usize = 70;

/// A file that is too long or does not say what it is.
pub fn file_faults(file: &str, source: &str) -> Vec<Fault> {
    let mut found = Vec::new();
    let count = source.lines().count();
    if count > FILE_LINES_MAX {
        found.push(Fault::new(
            file,
            count,
            format!("{count} lines; at most {FILE_LINES_MAX}: split the file by what it does"),
        ));
    }
    let opening = source.lines().find(|line| !line.starts_with("#!"));
    if !opening.is_some_and(|line| line.starts_with("//! ") && line.len() > "//! x".len()) {
        found.push(Fault::new(file, 1, "opens without `//!`: say what it is and what it must never do"));
    }
    found
}

/// Functions that are too long.
pub fn function_faults(file: &str, source: &str) -> Vec<Fault> {
    let lines = lines(source);
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let code = line.code.trim_start();
        let opens =
            code.starts_with("fn ") || (code.contains(" fn ") && code.starts_with(|c: char| c.is_ascii_lowercase()));
        if !opens || line.code.trim_end().ends_with(';') {
            continue;
        }
        let last = closes(&lines, index);
        let count = lines[index..=last].iter().filter(|line| !line.code.trim().is_empty()).count();
        if count > FUNCTION_LINES_MAX {
            let rule =
                format!("a function of {count} lines of code; at most {FUNCTION_LINES_MAX}: give a part of it a name");
            found.push(Fault::new(file, line.number, rule));
        }
    }
    found
}

/// A file that more than two folders lie above, below `src/`: the room's, and that of a file with parts of its own.
pub fn too_deep(file: &str) -> Option<Fault> {
    let folders = file.split('/').skip(1).count() - 1;
    (folders > FOLDERS_MAX)
        .then(|| Fault::new(file, 1, "folders are at most two deep: src/room/file.rs, src/room/file/part.rs"))
}

#[test]
fn a_long_file_and_one_without_an_opening_are_faults() {
    let long = format!("//! What it is.\n{}", "\n".repeat(FILE_LINES_MAX));
    assert_eq!(file_faults("src/a.rs", &long)[0].line, FILE_LINES_MAX + 1);
    assert!(file_faults("src/a.rs", "//! What it is.\nfn a() {}\n").is_empty());
    for bad in ["use std::fs;\n", "//!\nfn a() {}\n", "", "// a comment\n"] {
        assert_eq!(file_faults("src/a.rs", bad).len(), 1, "{bad}");
    }
}

#[test]
fn a_long_function_is_a_fault_at_its_own_line() {
    let function =
        |count: usize| format!("//! x\n\npub async fn long() {{\n{}}}\n\nfn next() {{}}\n", "    a();\n".repeat(count));
    assert!(function_faults("src/a.rs", &function(FUNCTION_LINES_MAX - 2)).is_empty());
    assert_eq!(function_faults("src/a.rs", &function(FUNCTION_LINES_MAX - 1))[0].line, 3);
    let commented = function(2).replace("a();", "a(); // why\n    // because\n\n");
    assert!(function_faults("src/a.rs", &commented.replace("a();", &"b();\n    // c\n".repeat(30))).is_empty());
}

#[test]
fn a_third_folder_is_too_deep() {
    assert!(too_deep("src/spool/log/reader/block.rs").is_some());
    assert!(too_deep("src/spool/log/reader.rs").is_none());
    assert!(too_deep("src/spool/log.rs").is_none());
}
