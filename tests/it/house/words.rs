//! Words that may not stand in the source, or only with a reason beside them.

use super::Fault;
use super::outline::{Line, lines};

/// Lines above a call in which its reason is looked for.
const REASON_WITHIN: usize = 6;

/// Lines above a pause in which the loop that it belongs to is looked for.
const LOOP_WITHIN: usize = 12;

/// Endings of type names that say nothing about the thing.
const EMPTY_NAMES: &[&str] = &["Manager", "Helper", "Util", "Utils", "Handler", "Service"];

/// Code that says "not yet", or hides what happens. Each with what to do.
const BANNED: &[(&str, &str)] = &[
    ("todo!(", "nothing is left undone: write it or leave it out"),
    ("unimplemented!(", "nothing is left undone: write it or leave it out"),
    ("macro_rules!", "no macros of our own: write a function"),
    ("async_trait", "traits return `impl Future + Send`"),
    ("thread_local!", "no global state: pass it in"),
    ("#[ignore", "a test that never runs proves nothing"),
];

/// What makes a `static` a place where state hides.
const STATE: &[&str] = &["static mut ", "Lock<", "LazyCell<", "OnceCell<", "Mutex<", "Atomic", "RefCell<"];

/// The values that all of the process may share, each with the reason.
const SHARED: &[&str] = &[
    // The moment at which the clock was last known to be right: there is one clock in a process, too.
    "LAST_SYNCHRONISED_S",
];

/// `unwrap` and its like outside tests without an `Unwrap safety:` comment.
pub fn panic_faults(file: &str, source: &str) -> Vec<Fault> {
    const CALLS: &[&str] =
        &[".unwrap()", ".unwrap_err()", ".expect( ", ".expect(&format!", ".expect_err( ", "panic!(", "unreachable!("];
    // The text of an `expect` is a literal, which reads as blanks; a method of ours with that name takes something else.
    let lines = lines(source);
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| !line.test) {
        let call = CALLS.iter().find(|call| line.code.contains(*call));
        if let (Some(call), false) = (call, reasoned(&lines, index, "Unwrap safety:")) {
            let rule = format!("`{call}` without `// Unwrap safety:`: handle the error, or say why there is none");
            found.push(Fault::new(file, line.number, rule));
        }
    }
    found
}

/// Banned words and empty names.
pub fn name_faults(file: &str, source: &str) -> Vec<Fault> {
    let mut found = Vec::new();
    for line in lines(source) {
        for (word, rule) in BANNED.iter().filter(|(word, _)| line.code.contains(word)) {
            found.push(Fault::new(file, line.number, format!("`{word}`: {rule}")));
        }
        let global = line.code.contains("static ") && !line.code.contains("'static ");
        let shared = SHARED.iter().any(|name| line.code.contains(&format!("static {name}:")));
        if global && !shared && STATE.iter().any(|kind| line.code.contains(kind)) {
            found.push(Fault::new(
                file,
                line.number,
                "state in a `static`: no global state, pass it in (or give its reason in SHARED, house/words.rs)",
            ));
        }
        if let Some(name) = defined_type(&line.code)
            && let Some(ending) = EMPTY_NAMES.iter().find(|ending| name.ends_with(*ending))
        {
            found.push(Fault::new(
                file,
                line.number,
                format!("`{name}`: a name that ends in {ending} says nothing; name the thing"),
            ));
        }
    }
    found
}

/// `unsafe` outside `src/system/`.
pub fn unsafe_faults(file: &str, source: &str) -> Vec<Fault> {
    if file.starts_with("src/system/") {
        return Vec::new();
    }
    let with_unsafe =
        |line: &Line<'_>| ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|word| line.code.contains(word));
    let at = |line: Line<'_>| Fault::new(file, line.number, "`unsafe` only in src/system/");
    lines(source).into_iter().filter(with_unsafe).map(at).collect()
}

/// Pauses in tests that are not between two looks of a loop, without a `Sleep:` comment.
pub fn sleep_faults(file: &str, source: &str) -> Vec<Fault> {
    let lines = lines(source);
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let called = line.code.contains("sleep(") && !line.code.contains("fn ");
        if called && !in_loop(&lines, index) && !reasoned(&lines, index, "Sleep:") {
            let rule =
                "a pause in a test: wait for a condition (support/wait.rs), or say after `// Sleep:` why none exists";
            found.push(Fault::new(file, line.number, rule));
        }
    }
    found
}

/// Paths of somebody's machine and addresses of package registries, in any file.
pub fn place_faults(file: &str, text: &str) -> Vec<Fault> {
    // Put together here, so that this file has none of them itself.
    let places = [
        ["/wo", "rk/"],
        ["/ro", "ot/"],
        ["registry.", "npmjs"],
        ["pypi", ".org"],
        ["deb.", "debian.org"],
        ["index.", "crates.io"],
    ];
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for place in places.map(|parts| parts.concat()).iter().filter(|place| line.contains(*place)) {
            found.push(Fault::new(
                file,
                index + 1,
                format!("`{place}` is a place on a machine or a registry: leave it out"),
            ));
        }
    }
    found
}

/// Whether the line itself or the lines above it (to the last blank one) hold the reason.
fn reasoned(lines: &[Line<'_>], index: usize, reason: &str) -> bool {
    let above = lines[index.saturating_sub(REASON_WITHIN)..=index].iter().rev();
    above.take_while(|line| !line.text.trim().is_empty()).any(|line| line.text.contains(reason))
}

/// Whether a loop begins above, in the same function.
fn in_loop(lines: &[Line<'_>], index: usize) -> bool {
    let opens =
        |line: &Line<'_>| ["while ", "loop {", "for "].iter().any(|word| line.code.trim_start().starts_with(word));
    let above = lines[index.saturating_sub(LOOP_WITHIN)..index].iter().rev();
    above.take_while(|line| !line.code.contains("fn ")).any(opens)
}

/// The name in `struct Name`, `enum Name` or `trait Name`.
fn defined_type(code: &str) -> Option<&str> {
    let words: Vec<&str> =
        code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect();
    let at = words.iter().position(|word| matches!(*word, "struct" | "enum" | "trait"))?;
    words.get(at + 1).copied()
}

#[test]
fn an_unwrap_needs_its_reason_outside_tests_only() {
    let bare = "//! x\nfn a() {\n    b().unwrap();\n}\n";
    assert_eq!(panic_faults("src/a.rs", bare)[0].line, 3);
    assert_eq!(panic_faults("src/a.rs", &bare.replace("unwrap()", "expect(\"x\")")).len(), 1);
    assert!(panic_faults("src/a.rs", &bare.replace("    b()", "    // Unwrap safety: b is full.\n    b()")).is_empty());
    assert_eq!(panic_faults("src/a.rs", &bare.replace("    b()", "    // Unwrap safety: far.\n\n    b()")).len(), 1);
    assert!(panic_faults("src/a.rs", &bare.replace("fn a", "#[cfg(test)]\nfn a")).is_empty());
    assert!(panic_faults("src/a.rs", "// b().unwrap()\nlet a = \".unwrap()\"; b().unwrap_or(1);\n").is_empty());
}

#[test]
fn what_is_undone_hidden_or_empty_is_a_fault() {
    for bad in [
        "todo!()",
        "macro_rules! m",
        "static A: OnceLock<u8> = x",
        "static mut A: u8 = 1;",
        "#[ignore]",
        "pub struct LinkManager {",
        "trait Helper {",
    ] {
        assert_eq!(name_faults("src/a.rs", bad).len(), 1, "{bad}");
    }
    for good in [
        "// todo!()",
        "struct Link {",
        "a: OnceLock<&'static str>,",
        "static NAME: &str = x;",
        "impl Service<Request> for X {",
        "enum Utility {",
    ] {
        assert!(name_faults("src/a.rs", good).is_empty(), "{good}");
    }
}

#[test]
fn unsafe_code_elsewhere_is_a_fault() {
    assert_eq!(unsafe_faults("src/spool/log.rs", "fn a() {\n    unsafe { b() }\n}\n")[0].line, 2);
    assert!(unsafe_faults("src/system/disk.rs", "unsafe { b() }").is_empty());
    assert!(unsafe_faults("src/spool/log.rs", "#![forbid(unsafe_code)]\n").is_empty());
}

#[test]
fn a_pause_in_a_test_needs_its_reason() {
    assert_eq!(sleep_faults("tests/it/a.rs", "    std::thread::sleep(TICK);\n").len(), 1);
    assert_eq!(sleep_faults("tests/it/a.rs", "    while x {}\nfn next() {\n    sleep(TICK);\n}\n").len(), 1);
    assert!(sleep_faults("tests/it/a.rs", "    while !done() {\n        sleep(TICK);\n    }\n").is_empty());
    assert!(
        sleep_faults("tests/it/a.rs", "    // Sleep: silence is what is measured.\n    sleep(TICK).await;\n")
            .is_empty()
    );
}

#[test]
fn a_path_of_a_machine_is_a_fault_in_any_file() {
    let text = ["see", &["/wo", "rk/x"].concat(), "there"].join(" ");
    assert_eq!(place_faults("README.md", &format!("one\n{text}\n"))[0].line, 2);
    assert!(place_faults("README.md", "network/ and work/ and crates.io").is_empty());
}
