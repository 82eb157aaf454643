//! A device's register map: the points that a person wrote down, the requests that read them, and what the answers mean.
//!
//! Points that lie together are asked for together. A value of several registers is never read in two requests, since the device may
//! change it between them. Nothing here does I/O.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::telemetry::codes;
use crate::telemetry::record::{Priority, Validity};
use crate::values::Problems;
use crate::wire::modbus::{Exception, Read, Table, bit};
use crate::wire::modbus_value::{self, Decimal, Order, Raw, Type};

/// Longest name of a point or of a bit, bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Values that stand for something else, of one point.
const SENTINELS_MAX: usize = 16;
/// Bits of a register.
const REGISTER_BITS: u8 = 16;
/// Where the numbers of a maker's table begin that name the table, too: 40001 is the first holding register.
const NUMBERED: [(Kind, u32); 3] = [(Kind::Discrete, 10_001), (Kind::Input, 30_001), (Kind::Holding, 40_001)];

/// Which table a point is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An output bit, function 1.
    Coil,
    /// An input bit, function 2.
    Discrete,
    /// A holding register, function 3.
    Holding,
    /// An input register, function 4.
    Input,
}

impl Kind {
    /// The table on the wire.
    pub fn table(self) -> Table {
        match self {
            Self::Coil => Table::Coils,
            Self::Discrete => Table::Discrete,
            Self::Holding => Table::Holding,
            Self::Input => Table::Input,
        }
    }
}

/// `[[source.<name>.modbus.unit.point]]`: one value.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PointConfig {
    /// What it is called upstream, the vendor's code of its observations. No patient data.
    pub name: String,
    /// The table.
    pub kind: Kind,
    /// The number in the table, counted from the unit's `first-address`.
    pub address: u32,
    /// The type; registers need one, coils and discrete inputs have none.
    #[serde(rename = "type")]
    pub value_type: Option<Type>,
    /// In which order the bytes come.
    #[serde(default)]
    pub order: Order,
    /// What the device's number is multiplied with.
    pub scale: Option<f64>,
    /// What is added then.
    pub offset: Option<f64>,
    /// UCUM unit.
    pub unit: Option<String>,
    /// The MDC reference id, one that this box knows.
    pub code: Option<String>,
    /// A change of no more than this, in the scaled unit, is none.
    #[serde(default)]
    pub dead_band: f64,
    /// Numbers of the device, before scaling, that mean that there is no value.
    #[serde(default)]
    pub sentinels: Vec<f64>,
    /// Of `type = "bits"`: the names of the bits that matter, by their number from 0, the lowest.
    #[serde(default)]
    pub bits: BTreeMap<String, String>,
    /// A bit that is set is an alarm of this urgency.
    pub alarm: Option<Priority>,
}

impl PointConfig {
    /// How many cells of its table it takes.
    pub fn cells(&self) -> u16 {
        self.value_type.map_or(1, Type::registers)
    }

    /// The address on the wire; `None` when it is outside of the table.
    pub fn wire_address(&self, first: u8) -> Option<u16> {
        let address = self.address.checked_sub(first.into())?;
        (address + u32::from(self.cells()) <= 1 << 16).then(|| u16::try_from(address).ok())?
    }

    /// The numbers and names of the bits that matter.
    pub fn named_bits(&self) -> impl Iterator<Item = (u8, &str)> {
        self.bits.iter().filter_map(|(number, name)| Some((bit_number(number)?, name.as_str())))
    }

    /// Notes what is wrong with it. `first` is the unit's `first-address`.
    pub fn check(&self, first: u8, problems: &mut Problems) {
        check_name("name", &self.name, problems);
        if self.wire_address(first).is_none() {
            let last = u32::from(u16::MAX) + u32::from(first) + 1 - u32::from(self.cells());
            problems.error("address", format!("must be from {first} to {last}, counted as first-address says"));
        } else if let Some((_, base)) =
            NUMBERED.iter().find(|(kind, base)| *kind == self.kind && (*base..base + 10_000).contains(&self.address))
        {
            let (number, meant) = (self.address, self.address + u32::from(first) - base);
            let text = format!(
                "makers write {number} for the cell that is address = {meant} here, with the kind beside it: keep {number} only if that \
                 is what goes over the wire"
            );
            problems.warn("address", text);
        }
        self.check_type(problems);
        self.check_numbers(problems);
    }

    fn check_type(&self, problems: &mut Problems) {
        let is_bits = self.kind.table().is_bits();
        match self.value_type {
            None if !is_bits => {
                problems.error("type", "a register needs one: \"u16\", \"i16\", \"u32\", \"f32\", \"bits\", ...")
            }
            Some(_) if is_bits => {
                problems.error("type", "a coil or discrete input is one bit and has no type: leave it out")
            }
            _ => {}
        }
        let of_bits = self.value_type == Some(Type::Bits);
        if of_bits && self.bits.is_empty() {
            problems.error("bits", "name those that matter: bits = { 0 = \"oxygen-low\", 3 = \"vacuum-low\" }");
        }
        if !of_bits && !self.bits.is_empty() {
            problems.error("bits", "only type = \"bits\" has any");
        }
        if self.alarm.is_some() && !is_bits && !of_bits {
            problems.error("alarm", "only a coil, a discrete input or type = \"bits\" can be an alarm");
        }
        let numeric = !is_bits && !of_bits;
        for (key, given) in [
            ("scale", self.scale.is_some()),
            ("offset", self.offset.is_some()),
            ("sentinels", !self.sentinels.is_empty()),
            ("dead-band", self.dead_band != 0.0),
        ] {
            if given && !numeric {
                problems.error(key, "a bit has none: leave it out");
            }
        }
        problems.under("bits", |problems| {
            for (number, name) in &self.bits {
                match bit_number(number) {
                    Some(_) => check_name(number, name, problems),
                    None => problems.error(number, "a bit is a number from 0, the lowest, to 15"),
                }
            }
        });
    }

    fn check_numbers(&self, problems: &mut Problems) {
        let digits = modbus_value::DECIMALS_MAX;
        for (key, number) in [("scale", self.scale), ("offset", self.offset)] {
            match number.map(modbus_value::configured) {
                Some(None) => {
                    problems.error(key, format!("must be a number with at most {digits} digits behind the point"))
                }
                Some(Some(number)) if key == "scale" && number.is_zero() => {
                    problems.error(key, "would make every value 0")
                }
                _ => {}
            }
        }
        if !self.dead_band.is_finite() || self.dead_band < 0.0 {
            problems.error("dead-band", "must be 0 or more, in the unit after scaling");
        }
        if self.sentinels.len() > SENTINELS_MAX {
            problems.error("sentinels", format!("must be at most {SENTINELS_MAX}"));
        }
        if self.code.as_ref().is_some_and(|code| codes::by_name(code).is_none()) {
            let text = "is no MDC term that this box knows: leave it out, and code the value by its name in the site's own table of codes";
            problems.error("code", text);
        }
        if self.unit.as_ref().is_some_and(|unit| unit.is_empty() || unit.len() > NAME_BYTES_MAX || !unit.is_ascii()) {
            problems.error("unit", "is not UCUM: write for example \"kPa\", \"Cel\", \"%\" or \"L/min\"");
        }
    }
}

fn bit_number(text: &str) -> Option<u8> {
    text.parse().ok().filter(|number| *number < REGISTER_BITS)
}

fn check_name(key: &str, name: &str, problems: &mut Problems) {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(legal) {
        problems.error(key, format!("is not a name: use 1 to {NAME_BYTES_MAX} of a-z, A-Z, 0-9, -, _ and ."));
    }
}

/// A point, ready to be read.
#[derive(Debug)]
pub struct Point {
    /// As it was written down.
    pub config: PointConfig,
    scale: Decimal,
    offset: Decimal,
    /// The bits that matter.
    mask: u16,
}

/// What a point had in one poll.
#[derive(Clone, PartialEq, Debug)]
pub enum Sample {
    /// A number in decimal digits, scaled; of bits, those that matter as one number.
    Value(String),
    /// A sentinel, or no number.
    Nothing,
    /// The device can't or will not tell.
    Refused(Exception),
}

impl Sample {
    /// Whether there is a value.
    pub fn validity(&self) -> Validity {
        match self {
            Self::Value(_) => Validity::Valid,
            Self::Nothing | Self::Refused(_) => Validity::NotAvailable,
        }
    }

    /// Of bits: which are set.
    pub fn bits(&self) -> Option<u16> {
        match self {
            Self::Value(text) => text.parse().ok(),
            _ => None,
        }
    }
}

impl Point {
    /// A point of a checked configuration.
    pub fn new(config: &PointConfig) -> Self {
        let number = |number: Option<f64>, usual| number.and_then(modbus_value::configured).unwrap_or(usual);
        let mask = config.named_bits().fold(0, |mask, (number, _)| mask | 1 << number);
        let (scale, offset) = (number(config.scale, Decimal::ONE), number(config.offset, Decimal::ZERO));
        Self { config: config.clone(), scale, offset, mask }
    }

    /// What the point has in the data of an answer, `at` cells after the answer's first.
    pub fn sample(&self, data: &[u8], at: u16) -> Sample {
        self.value(data, usize::from(at)).map_or(Sample::Nothing, Sample::Value)
    }

    fn value(&self, data: &[u8], at: usize) -> Option<String> {
        let Some(kind) = self.config.value_type else {
            return bit(data, at).map(|set| u8::from(set).to_string());
        };
        let registers = data.get(2 * at..2 * (at + usize::from(kind.registers())))?;
        let raw = modbus_value::decode(kind, self.config.order, registers)?;
        match raw {
            Raw::Int(bits) if kind == Type::Bits => Some((bits & i128::from(self.mask)).to_string()),
            _ if self.config.sentinels.iter().any(|sentinel| raw.is(*sentinel, kind)) => None,
            _ => modbus_value::scaled(raw, self.scale, self.offset),
        }
    }

    /// Whether `new` is worth a report after `old`.
    pub fn differs(&self, old: &Sample, new: &Sample) -> bool {
        match (old, new) {
            (Sample::Value(old), Sample::Value(new)) if self.config.dead_band > 0.0 => {
                let number = |text: &str| text.parse::<f64>().unwrap_or(f64::NAN);
                let moved = (number(new) - number(old)).abs();
                moved.is_nan() || moved > self.config.dead_band
            }
            _ => old != new,
        }
    }
}

/// One request and the points that its answer holds.
#[derive(Debug)]
pub struct Block {
    /// The request.
    pub read: Read,
    /// The points, by their place in the unit's list, and where they begin in the answer, in cells.
    pub points: Vec<(usize, u16)>,
}

/// The requests that read all points: those that lie together, with at most `gap` cells between them, in one, of at most `most`
/// registers.
pub fn blocks(points: &[PointConfig], first: u8, gap: u16, most: u16) -> Vec<Block> {
    let mut placed: Vec<(Table, u16, u16, usize)> = points
        .iter()
        .enumerate()
        .filter_map(|(index, point)| Some((point.kind.table(), point.wire_address(first)?, point.cells(), index)))
        .collect();
    placed.sort_unstable();
    let mut blocks: Vec<Block> = Vec::new();
    for (table, address, cells, index) in placed {
        let most = if table.is_bits() { table.count_max() } else { most };
        let grown = blocks.last().and_then(|block| grown(&block.read, (table, address, cells), gap, most));
        match (grown, blocks.last_mut()) {
            (Some(read), Some(block)) => {
                block.points.push((index, address - read.address()));
                block.read = read;
            }
            _ => blocks.extend(Read::new(table, address, cells).map(|read| Block { read, points: vec![(index, 0)] })),
        }
    }
    blocks
}

/// The request that reads as far as the next point's end, too, when that is allowed.
fn grown(read: &Read, (table, address, cells): (Table, u16, u16), gap: u16, most: u16) -> Option<Read> {
    let from = u32::from(read.address());
    let end = from + u32::from(read.count());
    let next_end = (u32::from(address) + u32::from(cells)).max(end);
    let near = u32::from(address) <= end + u32::from(gap);
    let count = u16::try_from(next_end - from).ok().filter(|count| *count <= most)?;
    (table == read.table() && near).then(|| Read::new(table, read.address(), count))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(text: &str) -> PointConfig {
        toml::from_str(&format!("name = \"p\"\n{text}")).unwrap()
    }

    fn holding(address: u32, kind: &str) -> PointConfig {
        point(&format!("kind = \"holding\"\naddress = {address}\ntype = \"{kind}\""))
    }

    fn reads(points: &[PointConfig], first: u8, gap: u16, most: u16) -> Vec<(u16, u16)> {
        blocks(points, first, gap, most).iter().map(|block| (block.read.address(), block.read.count())).collect()
    }

    #[test]
    fn points_that_lie_together_are_read_together_and_gaps_only_as_far_as_allowed() {
        let points = [holding(5, "u16"), holding(0, "f32"), holding(2, "u16"), holding(9, "u64")];
        assert_eq!(reads(&points, 0, 0, 125), [(0, 3), (5, 1), (9, 4)]);
        assert_eq!(reads(&points, 0, 2, 125), [(0, 6), (9, 4)]);
        assert_eq!(reads(&points, 0, 3, 125), [(0, 13)]);
        assert_eq!(reads(&points, 0, 3, 6), [(0, 6), (9, 4)], "a request has a longest size");
        assert_eq!(blocks(&points, 0, 0, 125)[0].points, [(1, 0), (2, 2)]);
    }

    #[test]
    fn a_value_of_several_registers_is_never_cut_and_tables_are_never_mixed() {
        assert_eq!(reads(&[holding(0, "u64"), holding(4, "u64")], 0, 0, 6), [(0, 4), (4, 4)]);
        let coil = point("kind = \"coil\"\naddress = 1");
        assert_eq!(reads(&[coil, holding(1, "u16")], 1, 9, 125), [(0, 1), (0, 1)]);
        let long: Vec<PointConfig> = (0..130).map(|address| holding(address, "u16")).collect();
        assert_eq!(reads(&long, 0, 0, 125), [(0, 125), (125, 5)]);
        assert_eq!(reads(&[holding(3, "u32"), holding(3, "u16")], 0, 0, 125), [(3, 2)], "overlapping points share");
    }

    #[test]
    fn an_answer_is_read_with_scale_order_sentinels_and_bits() {
        let scaled =
            Point::new(&point("kind = \"input\"\naddress = 1\ntype = \"i16\"\nscale = 0.1\nsentinels = [-32768]"));
        assert_eq!(scaled.sample(&[0, 0, 0xff, 0xd8], 1), Sample::Value("-4.0".into()));
        assert_eq!(scaled.sample(&[0x80, 0], 0), Sample::Nothing);
        assert_eq!(scaled.sample(&[0], 0), Sample::Nothing, "a short answer is no value");
        let float = Point::new(&point("kind = \"holding\"\naddress = 1\ntype = \"f32\"\norder = \"cdab\""));
        assert_eq!(float.sample(&[0, 0, 0x41, 0x28], 0), Sample::Value("10.5".into()));
        assert_eq!(float.sample(&[0, 0, 0x7f, 0xc0], 0), Sample::Nothing, "NaN is no value");
        let bits =
            Point::new(&point("kind = \"holding\"\naddress = 1\ntype = \"bits\"\nbits = { 0 = \"a\", 9 = \"b\" }"));
        assert_eq!(bits.sample(&[0xff, 0xff], 0), Sample::Value("513".into()));
        let coil = Point::new(&point("kind = \"coil\"\naddress = 1"));
        assert_eq!(
            (coil.sample(&[0b100], 2), coil.sample(&[0b100], 1)),
            (Sample::Value("1".into()), Sample::Value("0".into()))
        );
    }

    #[test]
    fn a_change_within_the_dead_band_is_none() {
        let value = |text: &str| Sample::Value(text.into());
        let banded = Point::new(&point("kind = \"input\"\naddress = 1\ntype = \"u16\"\ndead-band = 0.5"));
        assert!(!banded.differs(&value("10.0"), &value("10.5")) && banded.differs(&value("10.0"), &value("10.6")));
        assert!(banded.differs(&value("1"), &Sample::Nothing) && banded.differs(&Sample::Nothing, &value("1")));
        let exact = Point::new(&point("kind = \"input\"\naddress = 1\ntype = \"u16\""));
        assert!(exact.differs(&value("1"), &value("2")) && !exact.differs(&value("1"), &value("1")));
        assert!(exact.differs(&Sample::Nothing, &Sample::Refused(Exception(2))));
    }
}
