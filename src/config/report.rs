//! What is wrong with a configuration file, as it is shown: `file:line:column: text`, the line itself, and an underline.
//!
//! Lines and columns count from 1; a column counts characters. Nothing here decides what is wrong.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Problems that are kept; a file with more is not a configuration.
const FINDINGS_MAX: usize = 200;
/// Longest part of a line that is shown, in characters.
const EXCERPT_CHARACTERS_MAX: usize = 160;

/// All that was found in one file, in the order of its lines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    file: PathBuf,
    findings: Vec<Finding>,
}

/// One problem, at its place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Where it stands; `None`: it is about the file as a whole.
    pub place: Option<Place>,
    /// What is wrong and what to do.
    pub text: String,
    /// Only a warning: the configuration may be used.
    pub warning: bool,
}

/// A place in the file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    width: usize,
    excerpt: String,
}

impl Report {
    /// Nothing found yet in `file`.
    pub fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), findings: Vec::new() }
    }

    /// Notes a problem at a place of the text, given in bytes. A second one of the same words at the same place is left out.
    pub fn note(&mut self, source: &str, span: Range<usize>, text: String, warning: bool) {
        self.push(Finding { place: Some(Place::of(source, span)), text, warning });
    }

    /// Notes something about the file as a whole.
    pub fn note_of_file(&mut self, text: String, warning: bool) {
        self.push(Finding { place: None, text, warning });
    }

    /// All findings, in the order of their lines.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Whether the configuration can't be used.
    pub fn is_bad(&self) -> bool {
        self.errors() > 0
    }

    /// How many problems are not mere warnings.
    pub fn errors(&self) -> usize {
        self.findings.iter().filter(|finding| !finding.warning).count()
    }

    /// How many are.
    pub fn warnings(&self) -> usize {
        self.findings.len() - self.errors()
    }

    fn push(&mut self, finding: Finding) {
        if self.findings.len() >= FINDINGS_MAX || self.findings.contains(&finding) {
            return;
        }
        let after = self.findings.partition_point(|other| other.place <= finding.place);
        self.findings.insert(after, finding);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        for Finding { place, text, warning } in &self.findings {
            let kind = if *warning { "warning: " } else { "" };
            let Some(Place { line, column, width, excerpt }) = place else {
                writeln!(f, "{file}: {kind}{text}")?;
                continue;
            };
            writeln!(f, "{file}:{line}:{column}: {kind}{text}")?;
            if *column <= EXCERPT_CHARACTERS_MAX {
                let (gutter, indent) = (line.to_string().len(), column - 1);
                let width = (*width).min(excerpt.chars().count().saturating_sub(indent)).max(1);
                writeln!(f, "  {line} | {excerpt}")?;
                writeln!(f, "  {:gutter$} | {:indent$}{:^<width$}", "", "", "")?;
            }
        }
        Ok(())
    }
}

impl Place {
    fn of(source: &str, span: Range<usize>) -> Self {
        let start = (0..=span.start.min(source.len())).rev().find(|at| source.is_char_boundary(*at)).unwrap_or(0);
        let (before, after) = source.split_at(start);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let head = before.get(line_start..).unwrap_or("");
        let rest = after.lines().next().unwrap_or("");
        let underlined = source.get(start..span.end).and_then(|text| text.lines().next()).unwrap_or("");
        // A tab would shift the underline.
        let excerpt = format!("{head}{rest}").replace('\t', " ");
        Self {
            line: before.matches('\n').count() + 1,
            column: head.chars().count() + 1,
            width: underlined.chars().count().max(1),
            excerpt: excerpt.chars().take(EXCERPT_CHARACTERS_MAX).collect(),
        }
    }
}

/// The known word that a mistyped one was probably meant to be.
pub fn nearest<'k>(typed: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let close_enough = 1 + typed.chars().count() / 4;
    let measured = known.into_iter().map(|word| (strsim::osa_distance(typed, word), word));
    measured.filter(|(distance, _)| *distance <= close_enough).min().map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_shows_its_line_with_an_underline() {
        let source = "[gateway]\nname = \"büro\"  \nsite = 5\n";
        let mut report = Report::new(Path::new("gateway.toml"));
        report.note(source, source.find('5').unwrap()..source.find('5').unwrap() + 1, "must be a text".into(), false);
        let name = source.find("\"b").unwrap();
        report.note(source, name..name + 7, "is not a name".into(), true);
        report.note_of_file("may be changed by everybody".into(), true);
        let expected = "gateway.toml: warning: may be changed by everybody\n\
                        gateway.toml:2:8: warning: is not a name\n  2 | name = \"büro\"  \n    |        ^^^^^^\n\
                        gateway.toml:3:8: must be a text\n  3 | site = 5\n    |        ^\n";
        assert_eq!(report.to_string(), expected);
        assert_eq!((report.errors(), report.warnings(), report.is_bad()), (1, 2, true));
    }

    #[test]
    fn places_at_the_ends_of_the_text_and_inside_characters_do_not_panic() {
        for source in ["", "ä", "\n", "a\n"] {
            for start in 0..=source.len() + 1 {
                let place = Place::of(source, start..start + 3);
                assert!(place.line >= 1 && place.column >= 1);
            }
        }
    }

    #[test]
    fn a_slip_of_the_finger_is_recognised_and_another_word_is_not() {
        assert_eq!(nearest("alow", ["listen", "allow"]), Some("allow"));
        assert_eq!(nearest("lsiten", ["listen", "allow"]), Some("listen"));
        assert_eq!(nearest("timeout", ["listen", "allow"]), None);
    }
}
