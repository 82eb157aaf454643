//! The site's own table of codes: what the built-in one does not know, by the vendor's code. `[telemetry] codes = "site-codes.csv"`.
//!
//! ```csv
//! code,system,name,vendor-code,unit,ucum,display
//! 150456,MDC,MDC_PULS_OXIM_SAT_O2,SpO2%,MDC_DIM_PERCENT,%,Oxygen saturation
//! LK-7,urn:oid:2.999.1,LEAK,Leck,,L/min,Leakage
//! ```
//!
//! A row gives a code, and a unit where the device names none, to an observation that has no code yet. It is applied to what is sent in
//! another form, never to what is stored; so a row that is added today also serves what waits. An eighth column `source` limits a row to
//! one source. A bad row is told with its line and keeps the table from being used: half a table would code half of the values.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::codes::{self, MDC};
use super::record::{Code, Record};
use crate::values::{Problems, SecretRef, Section, Zone};

/// Largest file, in bytes.
pub const FILE_BYTES_MAX: u64 = 4 << 20;
/// Most rows.
pub const ROWS_MAX: usize = 50_000;
/// Bad rows that are told.
const PROBLEMS_MAX: usize = 20;
/// The columns that must be there; their order is the file's own affair.
const COLUMNS: [&str; 7] = ["code", "system", "name", "vendor-code", "unit", "ucum", "display"];
/// The column that may be there.
const SOURCE: &str = "source";

/// `[telemetry]`.
#[derive(Clone, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TelemetryConfig {
    /// The site's table; a relative path counts from the configuration file's folder.
    pub codes: Option<PathBuf>,
    /// What devices' clocks show that name no zone, in HL7 messages that are sent in another form; without it such a time is no moment.
    pub zone: Option<Zone>,
}

impl Section for TelemetryConfig {
    fn check(&self, _problems: &mut Problems) {}

    fn files(&mut self, _visit: &mut dyn FnMut(&mut SecretRef)) {}
}

/// The table, and what else the site knows of its devices.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct SiteCodes {
    /// By vendor code; those of one source before those of all.
    rows: Vec<Row>,
    /// The zone of clocks that name none.
    pub zone: Option<Zone>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Row {
    vendor_code: String,
    source: Option<String>,
    code: Code,
    ucum: Option<String>,
}

impl SiteCodes {
    /// Whether there is no row: a record goes as it is.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The same, with the zone of clocks that name none.
    #[must_use]
    pub fn with_zone(self, zone: Option<Zone>) -> Self {
        Self { zone, ..self }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// What is wrong, each as `FILE:LINE: ...` with what to do.
    pub fn load(file: &Path) -> Result<Self, Vec<String>> {
        use std::io::Read;
        let shown = file.display();
        let open = std::fs::File::open(file).map_err(|error| vec![format!("{shown}: can't be read: {error}")])?;
        let mut bytes = Vec::new();
        let read = open.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
        read.map_err(|error| vec![format!("{shown}: can't be read: {error}")])?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(vec![format!("{shown}: is larger than {} MiB", FILE_BYTES_MAX >> 20)]);
        }
        let text = String::from_utf8(bytes).map_err(|_| vec![format!("{shown}: is not UTF-8: save it as UTF-8")])?;
        let named = |faults: Vec<(usize, String)>| {
            let told = faults.into_iter().map(|(line, text)| format!("{shown}:{line}: {text}"));
            told.take(PROBLEMS_MAX).collect()
        };
        Self::read(&text).map_err(named)
    }

    /// Reads the text of a table.
    ///
    /// # Errors
    /// Each fault with its line, from 1.
    pub fn read(text: &str) -> Result<Self, Vec<(usize, String)>> {
        let mut lines = records(text.trim_start_matches('\u{feff}'))?.into_iter();
        let Some((line, head)) = lines.next() else { return Ok(Self::default()) };
        let place = |column: &str| head.iter().position(|name| name.trim() == column);
        let missing: Vec<&str> = COLUMNS.into_iter().filter(|column| place(column).is_none()).collect();
        if !missing.is_empty() {
            let text = format!("the first line names the columns; missing: {}", missing.join(", "));
            return Err(vec![(line, text)]);
        }
        let (mut table, mut faults) = (Self::default(), Vec::new());
        for (line, cells) in lines {
            let cell = |column: &str| place(column).and_then(|at| cells.get(at)).map_or("", |cell| cell.trim());
            if cells.len() != head.len() {
                faults.push((line, format!("has {} columns, the first line names {}", cells.len(), head.len())));
            } else {
                match row(cell) {
                    Ok(row) => table.rows.push(row),
                    Err(text) => faults.push((line, text)),
                }
            }
            if table.rows.len() > ROWS_MAX {
                return Err(vec![(line, format!("there are more than {ROWS_MAX} rows"))]);
            }
        }
        table.rows.sort_by(|one, other| (&one.vendor_code, one.key()).cmp(&(&other.vendor_code, other.key())));
        for pair in table.rows.windows(2) {
            if let [one, other] = pair
                && (&one.vendor_code, &one.source) == (&other.vendor_code, &other.source)
            {
                faults.push((1, format!("\"{}\" has two rows: keep one", one.vendor_code)));
            }
        }
        if faults.is_empty() { Ok(table) } else { Err(faults) }
    }

    /// Gives codes and units to the observations, and codes to the events, that have none and that the table knows.
    pub fn complete(&self, record: &mut Record) {
        for observation in record.observations.iter_mut().filter(|observation| observation.code.is_none()) {
            let Some(row) = self.find(&observation.vendor_code, &record.source) else { continue };
            observation.code = Some(row.code.clone());
            if observation.unit.is_none() && observation.vendor_unit.is_none() {
                observation.unit.clone_from(&row.ucum);
            }
        }
        for event in record.events.iter_mut().filter(|event| event.code.is_none()) {
            let row = event.vendor_code.as_deref().and_then(|code| self.find(code, &record.source));
            event.code = row.map(|row| row.code.clone());
        }
    }

    fn find(&self, vendor_code: &str, source: &str) -> Option<&Row> {
        let from = self.rows.partition_point(|row| row.vendor_code.as_str() < vendor_code);
        let rows = self.rows.get(from..).unwrap_or_default().iter();
        let mut same = rows.take_while(|row| row.vendor_code == vendor_code);
        same.find(|row| row.source.as_deref().is_none_or(|of| of == source))
    }
}

impl Row {
    /// Those of one source come first.
    fn key(&self) -> (bool, &Option<String>) {
        (self.source.is_none(), &self.source)
    }
}

fn row<'a>(cell: impl Fn(&str) -> &'a str) -> Result<Row, String> {
    let [code, system, name] = ["code", "system", "name"].map(&cell);
    let vendor_code = cell("vendor-code");
    if vendor_code.is_empty() {
        return Err("vendor-code is empty: write what the device calls it".to_owned());
    }
    if code.is_empty() {
        return Err("code is empty".to_owned());
    }
    let system = match system {
        "" => return Err("system is empty: write MDC, or the URI of your own codes".to_owned()),
        "MDC" | MDC => MDC,
        other => other,
    };
    if system == MDC {
        check_mdc(code, name)?;
    }
    let name = (!name.is_empty()).then(|| name.to_owned().into());
    let ucum = ucum(cell("unit"), cell("ucum"))?;
    let source = Some(cell(SOURCE)).filter(|source| !source.is_empty()).map(str::to_owned);
    let code = Code { system: system.to_owned().into(), code: code.to_owned().into(), name };
    Ok(Row { vendor_code: vendor_code.to_owned(), source, code, ucum })
}

/// An MDC code is a number, and it and its name must not contradict the nomenclature as far as it is known here.
fn check_mdc(code: &str, name: &str) -> Result<(), String> {
    let number: u32 = code
        .parse()
        .map_err(|_| format!("\"{code}\" is no MDC code: write the 32-bit code in decimal digits, such as 150456"))?;
    let by_name = codes::metric_by_name(name);
    if let Some(metric) = by_name.filter(|metric| metric.code != number) {
        return Err(format!("{name} is {} and not {code}", metric.code));
    }
    match codes::metric(number) {
        Some(metric) if by_name.is_none() && !name.is_empty() => {
            Err(format!("{code} is {} and not {name}", metric.name))
        }
        _ => Ok(()),
    }
}

/// The UCUM unit of a row, from either column; both must mean the same.
fn ucum(unit: &str, ucum: &str) -> Result<Option<String>, String> {
    let known = match unit {
        "" => None,
        code => {
            let known = code.parse().ok().and_then(codes::unit).or_else(|| codes::unit_by_name(code));
            let advice = "write it in ucum and leave unit empty";
            Some(known.ok_or_else(|| format!("\"{unit}\" is no MDC unit that is known here: {advice}"))?)
        }
    };
    let same = |known: &codes::Unit| codes::unit_by_ucum(ucum, None).is_some_and(|unit| unit.ucum == known.ucum);
    match known {
        Some(known) if !ucum.is_empty() && !same(known) => {
            Err(format!("{} is \"{}\" in UCUM and not \"{ucum}\"", known.name, known.ucum))
        }
        Some(known) => Ok(Some(known.ucum.to_owned())),
        None => Ok(Some(ucum).filter(|ucum| !ucum.is_empty()).map(str::to_owned)),
    }
}

/// The line that a record begins at, and its cells.
type Line = (usize, Vec<String>);

/// The records of a CSV text (RFC 4180), each with the line that it begins at; blank ones and those that begin with `#` are left out.
fn records(text: &str) -> Result<Vec<Line>, Vec<(usize, String)>> {
    let mut found = Vec::new();
    let (mut cells, mut cell, mut quoted, mut begun) = (Vec::new(), String::new(), false, 1);
    let mut line = 1;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '"' if quoted && rest.peek() == Some(&'"') => cell.extend(rest.next()),
            '"' if quoted => quoted = false,
            '"' if cell.is_empty() => quoted = true,
            ',' if !quoted => cells.push(std::mem::take(&mut cell)),
            '\r' if !quoted => {}
            '\n' if !quoted => {
                cells.push(std::mem::take(&mut cell));
                found.push((begun, std::mem::take(&mut cells)));
                begun = line + 1;
            }
            c => cell.push(c),
        }
        line += usize::from(c == '\n');
    }
    if quoted {
        return Err(vec![(begun, "a quotation mark is never closed".to_owned())]);
    }
    cells.push(cell);
    found.push((begun, cells));
    let says = |cells: &[String]| {
        let comment = cells.first().is_some_and(|first| first.starts_with('#'));
        !comment && cells.iter().any(|cell| !cell.trim().is_empty())
    };
    found.retain(|(_, cells)| says(cells));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "code,system,name,vendor-code,unit,ucum,display\n";

    fn table(rows: &str) -> SiteCodes {
        SiteCodes::read(&format!("{HEAD}{rows}")).unwrap()
    }

    #[test]
    fn rows_are_found_by_the_vendors_code_and_those_of_one_source_come_first() {
        let rows = "150456,MDC,MDC_PULS_OXIM_SAT_O2,\"SpO2, left\",262688,%,Saturation\n\
            # our own\n\nLK-7,urn:oid:2.999.1,LEAK,Leck,,L/min,\n";
        let site = table(rows);
        let row = site.find("SpO2, left", "any").unwrap();
        assert_eq!((row.code.code.as_ref(), row.ucum.as_deref()), ("150456", Some("%")));
        assert_eq!(site.find("Leck", "any").unwrap().code.system, "urn:oid:2.999.1");
        assert!(site.find("leck", "any").is_none());
        let head = "source,code,system,name,vendor-code,unit,ucum,display\n";
        let site = SiteCodes::read(&format!("{head},1,x,A,T1,,,\nbed-4,2,x,B,T1,,,\n")).unwrap();
        assert_eq!(site.find("T1", "bed-4").unwrap().code.code, "2");
        assert_eq!(site.find("T1", "bed-5").unwrap().code.code, "1");
    }

    #[test]
    fn bad_rows_are_told_with_their_lines() {
        let told = |text: &str| SiteCodes::read(text).unwrap_err();
        let rows = "150456,MDC,,SPO2\nx,MDC,,A,,,\n150456,MDC,MDC_TEMP,B,,,\n1,MDC,MDC_TEMP,C,,,\n,x,,D,,,\n1,,,E,,,\n1,x,,,,,\n\
            1,x,,F,MDC_DIM_FURLONG,,\n1,x,,G,262688,mm[Hg],\n1,x,,H,,,\n";
        let faults = told(&format!("{HEAD}{rows}"));
        assert_eq!(faults.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert!(faults[2].1.contains("MDC_TEMP is 150344 and not 150456"), "{}", faults[2].1);
        assert!(told("code,system\n1,2\n")[0].1.contains("missing: name, vendor-code"));
        assert_eq!(told(&format!("{HEAD}1,x,,\"A,,,\n"))[0].0, 2);
        assert!(told(&format!("{HEAD}1,x,,A,,,\n2,x,,A,,,\n"))[0].1.contains("two rows"));
        assert!(SiteCodes::read("").unwrap().is_empty());
    }

    #[test]
    fn a_file_that_is_not_there_is_told_by_name() {
        let told = SiteCodes::load(Path::new("nowhere/codes.csv")).unwrap_err();
        assert!(told[0].starts_with("nowhere/codes.csv: can't be read"), "{told:?}");
    }
}
