//! A rough reading of Rust source, line by line: enough for house rules, no parser.
//!
//! It relies on what rustfmt guarantees: an item that opens at some indentation is closed by a line with the same
//! indentation and a `}`.

/// A line of source as the rules see it.
pub struct Line<'a> {
    /// Counted from 1.
    pub number: usize,
    /// As written.
    pub text: &'a str,
    /// Without comments and without the contents of string literals.
    pub code: String,
    /// Inside an item that is compiled for tests only.
    pub test: bool,
}

/// Reads a file into lines.
pub fn lines(source: &str) -> Vec<Line<'_>> {
    let stripped = strip(source);
    let codes: Vec<&str> = stripped.split('\n').collect();
    let mut read: Vec<Line<'_>> = Vec::new();
    for (index, text) in source.split('\n').enumerate() {
        let code = codes.get(index).copied().unwrap_or_default().to_owned();
        read.push(Line { number: index + 1, text, code, test: false });
    }
    mark_tests(&mut read);
    read
}

/// Names of the modules in files of their own that this file declares for tests only (`#[cfg(test)] mod fixtures;`).
pub fn test_modules(source: &str) -> Vec<String> {
    let of_test = lines(source).into_iter().filter(|line| line.test);
    let declared = |code: &str| {
        let words: Vec<&str> = code.trim().strip_suffix(';')?.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "mod")?;
        words.get(at + 1).map(|name| (*name).to_owned())
    };
    of_test.filter_map(|line| declared(&line.code)).collect()
}

/// The index of the line that closes the item which opens at `from`: the item's own line when it ends with a semicolon.
pub fn closes(lines: &[Line<'_>], from: usize) -> usize {
    let indent = indentation(lines[from].text);
    // A line that begins with a closing bracket, or the item's first: text of a string may stand at any column.
    let own = |index: usize| {
        let text = lines[index].text;
        indentation(text) == indent && (index == from || text.trim().starts_with(['}', ']', ')']))
    };
    let ends = |index: &usize| own(*index) && lines[*index].code.trim_end().ends_with(['}', ';']);
    (from..lines.len()).find(ends).unwrap_or(lines.len() - 1)
}

fn mark_tests(lines: &mut [Line<'_>]) {
    let mut index = 0;
    while index < lines.len() {
        let code = lines[index].code.trim();
        if code.starts_with("#[cfg(test)]") || code.starts_with("#[cfg(any(test") || code.starts_with("#![cfg(test)]") {
            let whole = code.starts_with("#!");
            let last = if whole { lines.len() - 1 } else { closes(lines, item_after(lines, index)) };
            for line in &mut lines[index..=last] {
                line.test = true;
            }
            index = last;
        }
        index += 1;
    }
}

/// The line on which the item itself begins, after its attributes and comments.
fn item_after(lines: &[Line<'_>], attribute: usize) -> usize {
    let is_item = |index: &usize| {
        let code = lines[*index].code.trim();
        !code.is_empty() && !code.starts_with("#[")
    };
    (attribute..lines.len()).find(is_item).unwrap_or(attribute)
}

fn indentation(text: &str) -> usize {
    text.len() - text.trim_start().len()
}

/// Replaces comments and the contents of string and character literals by spaces; keeps the line ends.
fn strip(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let length = literal_or_comment(&bytes[at..], at.checked_sub(1).map(|before| bytes[before]));
        if length == 0 {
            out.push(bytes[at]);
            at += 1;
            continue;
        }
        out.extend(bytes[at..at + length].iter().map(|byte| if *byte == b'\n' { b'\n' } else { b' ' }));
        at += length;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Length of the comment or literal that begins here; 0 when none does.
fn literal_or_comment(rest: &[u8], before: Option<u8>) -> usize {
    let in_word = before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match rest {
        [b'/', b'/', ..] => rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => after(rest, 2, b"*/"),
        [b'"', ..] => quoted(rest, b'"'),
        [b'r', b'"' | b'#', ..] | [b'b', b'r', ..] if !in_word => raw(rest),
        [b'\'', b'\\', ..] => quoted(rest, b'\''),
        [b'\'', _, b'\'', ..] => 3,
        _ => 0,
    }
}

fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// `r"..."`, `r#"..."#`, `br"..."`; 0 for an identifier such as `r#type`.
fn raw(rest: &[u8]) -> usize {
    let start = rest.iter().position(|byte| *byte == b'r').unwrap_or(0) + 1;
    let hashes = rest[start..].iter().take_while(|byte| **byte == b'#').count();
    if rest.get(start + hashes) != Some(&b'"') {
        return 0;
    }
    let end: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    after(rest, start + hashes + 1, &end)
}

fn after(rest: &[u8], from: usize, end: &[u8]) -> usize {
    rest[from..].windows(end.len()).position(|window| window == end).map_or(rest.len(), |at| from + at + end.len())
}

#[test]
fn comments_and_literals_are_not_code() {
    let codes = |source: &str| lines(source).iter().map(|line| line.code.trim().to_owned()).collect::<Vec<_>>();
    assert_eq!(codes("let a = \"x.unwrap()\"; // y"), ["let a =             ;"]);
    assert_eq!(codes("a /* b\nc */ d"), ["a", "d"]);
    assert_eq!(codes("f(r#\"q\"x\"#, 'x', b'\\'', \"\\\"z\")"), ["f(        ,    , b    ,      )"]);
    assert_eq!(codes("fn f<'a>(x: &'a str) {}"), ["fn f<'a>(x: &'a str) {}"]);
}

#[test]
fn items_for_tests_only_are_known() {
    let source =
        "fn a() {}\n#[cfg(test)]\nfn b() {\n    c();\n}\nfn d() {}\n#[cfg(test)]\nmod tests {\n    fn e() {}\n}";
    let marks: Vec<bool> = lines(source).iter().map(|line| line.test).collect();
    assert_eq!(marks, [false, true, true, true, true, false, true, true, true, true]);
    assert!(!lines("#[cfg(test)]\nmod x;\nfn y() {}")[2].test);
}

#[test]
fn modules_for_tests_only_are_named() {
    let source = "mod a;\n#[cfg(test)]\npub(crate) mod b;\nmod c;\n#[cfg(test)]\n#[rustfmt::skip]\nmod d;\n#[cfg(test)]\nmod e {}\n";
    assert_eq!(test_modules(source), ["b", "d"]);
}
