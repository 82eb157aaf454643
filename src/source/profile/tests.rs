//! The shipped profiles against the lines and frames of the manuals, and profiles with mistakes in them.

use super::decode::Decoded;
use super::{BUILT_IN, Profile, ProfileRef};
use crate::envelope::Stamp;
use crate::telemetry::record::{ClockQuality, Observation, Validity, Value};
use crate::wire::checksum::Checksum;
use crate::wire::serial_frame::Found;

/// 2026-03-01 12:00:00 UTC.
const NOON: Stamp = Stamp { wall_us: 1_772_366_400_000_000, synchronised: true, uptime_ms: 5_000 };

fn profile(name: &str) -> Profile {
    ProfileRef::BuiltIn(name.to_owned()).load().unwrap()
}

/// What a device of this profile says, decoded; noise is told as `None`.
fn decoded(profile: &Profile, bytes: &[u8]) -> Vec<Option<Decoded>> {
    let (mut framer, mut all) = (profile.framer(), Vec::new());
    framer.push(bytes, &mut |found| {
        all.push(match found {
            Found::Frame { raw, payload } => Some(profile.decode(raw, &raw[payload], NOON)),
            _ => None,
        });
    });
    all
}

fn one(name: &str, line: &str) -> Decoded {
    let all = decoded(&profile(name), format!("{line}\r\n").as_bytes());
    assert_eq!(all.len(), 1, "{line}");
    let decoded = all.into_iter().next().unwrap().unwrap();
    assert!(decoded.is_readable, "{line}");
    decoded
}

/// `SPO2=98%`, `HR=NotAvailable`.
fn short(observation: &Observation) -> String {
    let value = match &observation.value {
        Some(Value::Number(text) | Value::Text(text)) => text.clone(),
        None => format!("{:?}", observation.validity),
    };
    format!("{}={value}{}", observation.vendor_code, observation.unit.as_deref().unwrap_or(""))
}

fn values(decoded: &Decoded) -> String {
    decoded.observations.iter().map(short).collect::<Vec<_>>().join(" ")
}

#[test]
fn nonin_lines_with_and_without_values() {
    let line = one("nonin-ascii", "SPO2=098 HR=061");
    assert_eq!(values(&line), "SPO2=098% HR=061/min");
    let code = line.observations[0].code.as_ref().unwrap();
    assert_eq!(code.code, "150456");
    let none = one("nonin-ascii", "SPO2=--- HR=---");
    assert_eq!(values(&none), "SPO2=NotAvailable% HR=NotAvailable/min");
    let marked = one("nonin-ascii", "12:00:07 SPO2=97 HR=72*");
    assert_eq!(marked.events[0].vendor_code.as_deref(), Some("event button"));
    let time = marked.device_time.unwrap();
    assert_eq!((time.offset_ms, time.quality), (Some(7_000), ClockQuality::Measured));
    assert_eq!(values(&one("nonin-ascii", "SPO2=099 HR=060 F")), "SPO2=099% HR=060/min average=F");
    for header in
        ["MODEL 9600 01/03/26 12:00:00", "NONIN Avant 9600", "01-MAR-26 12:00:00", "Time: 12:00 Date: 2026-03-01"]
    {
        assert!(one("nonin-ascii", header).observations.is_empty());
    }
}

#[test]
fn a_line_that_is_no_header_and_no_reading_of_nonin_is_unreadable() {
    for line in
        ["hello there", "SPO2=98", "SPO2=0098 HR=061", "MODEL 9600 SPO2=098", "12", "time is over", "weight 12:00"]
    {
        let all = decoded(&profile("nonin-ascii"), format!("{line}\r\n").as_bytes());
        assert!(all.iter().flatten().all(|decoded| !decoded.is_readable && decoded.observations.is_empty()), "{line}");
        assert_eq!(all.len(), 1, "{line}");
    }
}

/// A clock without a date that is just past midnight belongs to the next day, not to the last.
#[test]
fn a_clock_without_a_date_is_read_on_the_nearest_day() {
    let late = Stamp { wall_us: NOON.wall_us + (11 * 3_600 + 3_590) * 1_000_000, ..NOON };
    let line = b"00:00:02 SPO2=97 HR=72";
    let time = profile("nonin-ascii").decode(line, line, late).device_time.unwrap();
    assert_eq!((time.offset_ms, time.read.as_deref()), (Some(12_000), Some("2026-03-02T00:00:02")));
}

/// Before this box knows the time, what a device's clock is off by is told with that doubt, and nothing is refused.
#[test]
fn an_offset_that_was_measured_by_an_unsure_clock_says_so() {
    let unsure = Stamp { synchronised: false, ..NOON };
    let line = b"12:00:07 SPO2=97 HR=72";
    let decoded = profile("nonin-ascii").decode(line, line, unsure);
    let time = decoded.device_time.unwrap();
    assert_eq!((time.offset_ms, time.quality), (Some(7_000), ClockQuality::BoxUnsynchronised));
    assert_eq!(decoded.observations[0].validity, Validity::Valid);
}

#[test]
fn json_is_read_by_pointers_in_its_own_digits_and_its_times_in_every_form() {
    let with = |time: &str| {
        let text = format!(
            "name = \"room\"\njson = true\n[time]\npointer = \"/ts\"\n{time}\n[[value]]\npointer = \"/t\"\nscale = 0.1\nunit = \"Cel\"\n\
             [[value]]\npointer = \"/button\"\nkind = \"event\"\n"
        );
        Profile::parse(&text, "room.toml").unwrap()
    };
    for (form, said) in [
        ("format = \"unix\"", "1772366402"),
        ("format = \"unix-ms\"", "1772366402000"),
        ("format = \"rfc-3339\"", "\"2026-03-01T13:00:02+01:00\""),
        ("format = \"rfc-3339\"\nutc-offset = \"+01:00\"", "\"2026-03-01T13:00:02\""),
        ("format = \"%d.%m.%Y %H:%M:%S\"", "\"01.03.2026 12:00:02\""),
    ] {
        let text = format!("{{\"ts\":{said},\"t\":3.65e2,\"h\":[40.50,null],\"button\":true}}");
        let decoded = with(form).decode(text.as_bytes(), text.as_bytes(), NOON);
        assert!(decoded.is_readable);
        assert_eq!(values(&decoded), "/t=36.5Cel /h/0=40.50", "{form}");
        assert_eq!(decoded.events[0].text.as_deref(), Some("true"));
        let time = decoded.device_time.unwrap();
        assert_eq!((time.offset_ms, time.quality), (Some(2_000), ClockQuality::Measured), "{form} {said}");
    }
    let text = b"{\"ts\":1772366402123,\"t\":1}";
    let exact = with("format = \"unix-ms\"").decode(text, text, NOON).device_time.unwrap();
    assert_eq!((exact.offset_ms, exact.read.as_deref()), (Some(2_123), Some("2026-03-01T12:00:02.123Z")));
    let text = b"{\"ts\":\"soon\",\"t\":\"warm\"}";
    let odd = with("format = \"unix\"").decode(text, text, NOON);
    assert!(!odd.is_readable && odd.observations[0].validity == Validity::Invalid);
    assert_eq!(odd.device_time.unwrap().quality, ClockQuality::Unreadable);
    assert_eq!(decoded(&profile("json"), b"{\"a\":1}\n{\"b\":2}\n").len(), 2, "lines, where nothing else is said");
    let wrong = Profile::parse("name = \"x\"\njson = true\npattern = 'x'\n", "x.toml").unwrap_err();
    assert_eq!(wrong, ["x.toml:3:11: json = true reads the whole frame: take pattern or split out"]);
}

/// One packet of 25 frames as the OEM specification draws it.
fn nonin_packet(heart_rate: u16, saturation: u8) -> Vec<u8> {
    let (high, low) = (u8::try_from(heart_rate >> 7).unwrap(), u8::try_from(heart_rate & 0x7f).unwrap());
    let frames = (1..=25u8).flat_map(|number| {
        let float = match number {
            1 => high,
            2 => low,
            3 | 9 => saturation,
            _ => 0,
        };
        let mut frame = vec![0x80 | u8::from(number == 1), 0x12, 0x34, float];
        frame.extend(Checksum::Sum8.of(&frame));
        frame
    });
    frames.collect()
}

#[test]
fn nonin_frames_of_five_bytes() {
    let oximeter = profile("nonin-frames");
    let stream = [&[0x80, 3, 1][..], &nonin_packet(161, 98), &nonin_packet(511, 127)].concat();
    let all: Vec<Decoded> = decoded(&oximeter, &stream).into_iter().flatten().collect();
    assert_eq!(values(&all[0]), "HR=161/min SpO2=98% SpO2-D=98% status=0");
    assert_eq!(values(&all[1]), "HR=NotAvailable/min SpO2=NotAvailable% SpO2-D=NotAvailable% status=0");
}

#[test]
fn masimo_ascii_1() {
    let line = one(
        "masimo-ascii-1",
        "02/28/26 22:47:45 SN=0000056661 SPO2=098% BPM=097 PI=03.60% SPCO=--.-% SPMET=--.-% DESAT=-- PIDELTA=+-- \
         ALARM=0000 EXC=000800",
    );
    assert_eq!(
        values(&line),
        "SPO2=098% BPM=097/min PI=03.60% SPCO=NotAvailable% SPMET=NotAvailable% DESAT=NotAvailable PIDELTA=NotAvailable \
         ALARM=0000 EXC=000800"
    );
    assert_eq!((line.device[0].name.as_ref(), line.device[0].value.as_str()), ("serial number", "0000056661"));
    let time = line.device_time.unwrap();
    assert_eq!((time.read.as_deref(), time.quality), (Some("2026-02-28T22:47:45"), ClockQuality::Measured));
    let off =
        one("masimo-ascii-1", "01/01/20 00:00:00 SN=0000056661 SPO2=---% BPM=--- PI=--.--% ALARM=0001 EXC=000002");
    assert_eq!(off.device_time.as_ref().unwrap().quality, ClockQuality::NeverSet);
    assert!(values(&off).starts_with("SPO2=NotAvailable% BPM=NotAvailable/min PI=NotAvailable%"));
}

#[test]
fn nellcor_n595_with_its_headings() {
    for heading in [
        "N-595    VERSION 1.00.00    CRC:XXXX    SpO2 Limit: 85-100%    PR Limit: 40-170BPM",
        "TIME               %SpO2   BPM     PA     Status",
        "",
    ] {
        let all = decoded(&profile("nellcor-n595"), format!("{heading}\r\n").as_bytes());
        assert!(all.iter().flatten().all(|line| line.is_readable && line.observations.is_empty()), "{heading}");
    }
    let line = one("nellcor-n595", "01-Mar-26 12:00:02   84*   120     50     PH");
    assert_eq!(values(&line), "SpO2=84% BPM=120/min pulse amplitude=50 status=PH");
    assert_eq!(line.events[0].vendor_code.as_deref(), Some("SpO2 over a limit"));
    assert_eq!(line.device_time.unwrap().offset_ms, Some(2_000));
    let off = one("nellcor-n595", "01-Mar-26 12:00:04   ---   ---    ---     SD");
    assert_eq!(off.observations.iter().filter(|value| value.validity == Validity::NotAvailable).count(), 3);
}

#[test]
fn ge_giraffe() {
    let line =
        one("ge-giraffe", "HYB_1.40,36.1,OPEN,28.3,33.0,36.5,100,N,N,C,00,063,D,L,02043,0000,00,43,000,000,03,00");
    let all = values(&line);
    assert!(
        all.starts_with("patient probe 1=36.1Cel patient probe 2=NotAvailableCel air temperature=28.3Cel"),
        "{all}"
    );
    assert!(all.contains("column 15=02043") && all.ends_with("column 22=00"), "{all}");
    assert_eq!(line.device[0].value, "HYB_1.40");
    let other = decoded(&profile("ge-giraffe"), b"PWRM_2.0.0,36.8\r\n");
    assert!(!other[0].as_ref().unwrap().is_readable, "another product has other columns");
}

#[test]
fn any_line_between_commas() {
    let all = decoded(&profile("csv"), b"21.5, -3,closed,\"x\",\r\n");
    assert_eq!(values(all[0].as_ref().unwrap()), "column 1=21.5 column 2=-3 column 3=closed column 4=\"x\"");
    let doubted = |decoded: &Option<Decoded>| {
        decoded.as_ref().unwrap().observations.iter().all(|one| one.validity == Validity::Questionable)
    };
    assert!(doubted(&all[0]), "nobody has said whether -3 is a number or a sentinel: {all:?}");
    let all = decoded(&profile("csv"), b"21.5,---,--.-\r\n");
    let missing = &all[0].as_ref().unwrap().observations[1..];
    assert_eq!(missing.len(), 2);
    assert!(missing.iter().all(|one| one.value.is_none() && one.validity == Validity::NotAvailable), "{missing:?}");
}

#[test]
fn sentinels_ranges_and_scaling_of_a_profile_of_ones_own() {
    let text = "name = \"monitor\"\npattern = '^T(?<t>\\S+) S(?<s>\\S+)$'\n[frame]\ndelimiter = '\\n'\n\
                [[value]]\ngroup = \"t\"\nscale = 0.1\noffset = -0.25\nunit = \"Cel\"\nnone = [\"3845\"]\n\
                [[value]]\ngroup = \"s\"\nnone = [\"-100\"]\nover = [\">>\"]\nunder = [\"<<\"]\n";
    let monitor = Profile::parse(text, "monitor.toml").unwrap();
    let line = |text: &str| monitor.decode(text.as_bytes(), text.as_bytes(), NOON);
    assert_eq!(values(&line("T385 S98")), "t=38.25Cel s=98");
    assert_eq!(values(&line("T3845 S-100")), "t=NotAvailableCel s=NotAvailable");
    assert_eq!(values(&line("T3845.0 S-100.00")), "t=NotAvailableCel s=NotAvailable", "however it is written");
    assert_eq!(values(&line("T0 S>>")), "t=-0.25Cel s=OverRange");
    assert_eq!(values(&line("T0 S<<")), "t=-0.25Cel s=UnderRange");
    let odd = line("T0 S8388607x");
    assert!(
        !odd.is_readable && odd.observations[1].validity == Validity::Invalid && odd.observations[1].value.is_none()
    );
}

#[test]
fn what_a_json_object_has_twice_is_no_value_and_makes_the_frame_unreadable() {
    let text = "name = \"room\"\njson = true\n[time]\npointer = \"/ts\"\nformat = \"unix\"\n[[value]]\npointer = \"/t\"\nunit = \"Cel\"\n\
                [[value]]\npointer = \"/x\"\nkind = \"ignored\"\n";
    let room = Profile::parse(text, "room.toml").unwrap();
    let read = |text: &str| room.decode(text.as_bytes(), text.as_bytes(), NOON);
    let sound = read(r#"{"t":21.5,"h":40,"ts":1767355200,"x":1}"#);
    assert!(sound.is_readable && sound.device_time.is_some());
    assert_eq!(values(&sound), "/t=21.5Cel /h=40");
    let twice = read(r#"{"t":21.5,"h":40,"h":41,"t":36.9,"ts":1767355200}"#);
    assert_eq!((values(&twice).as_str(), twice.is_readable), ("/t=InvalidCel /h=Invalid", false));
    let clocks = read(r#"{"t":21.5,"ts":1767355200,"ts":1767355201}"#);
    assert_eq!((clocks.device_time, clocks.is_readable), (None, false));
    assert!(read(r#"{"t":21.5,"ts":1767355200,"x":1,"x":2}"#).is_readable, "nobody asks for it");
}

#[test]
fn each_problem_of_a_profile_stands_at_its_line_and_column() {
    let found = |text: &str| Profile::parse(text, "x.toml").unwrap_err();
    let head = "name = \"x\"\n[frame]\ndelimiter = '\\n'\n";
    assert_eq!(found("name = \"x\"\n[frame]\ndelimitr = '\\n'\n").len(), 1);
    assert!(found("name = \"x\"\n[frame]\ndelimitr = '\\n'\n")[0].starts_with("x.toml:3:1: unknown field `delimitr`"));
    assert!(found("name = \"x\"\n[frame]\ndelimiter = '\\q'\n")[0].starts_with("x.toml:3:13: "));
    let all = found(&format!(
        "pattern = '^(?<a>\\d+)$'\n{head}[[value]]\ngroup = \"b\"\n[[value]]\ngroup = \"a\"\ncode = \"MDC_NOTHING\"\n\
         [[value]]\ncolumn = 1\n"
    ));
    assert_eq!(all.len(), 3, "{all:?}");
    assert!(all[0].starts_with("x.toml:6:9: the pattern has no such group: it has a"), "{all:?}");
    assert!(all[1].starts_with("x.toml:9:8: is no MDC reference id"), "{all:?}");
    assert!(all[2].contains("group = "), "{all:?}");
    assert!(
        found("name = \"x\"\npattern = '('\n[frame]\ndelimiter = '\\n'\n")[0]
            .starts_with("x.toml:2:11: this is no pattern")
    );
    assert!(found("name = \"x\"\n[frame]\nmax-bytes = 1\n").len() == 2);
    let huge = format!("pattern = '(\\d{{1000}}){{1000}}'\n{head}");
    assert!(found(&huge)[0].contains("this is no pattern"), "a pattern that takes all memory is refused");
}

#[test]
fn a_profile_that_is_not_built_in_is_told_with_those_that_are() {
    let error = ProfileRef::BuiltIn("nonin".into()).load().unwrap_err();
    assert!(error[0].contains("nonin-ascii") && error[0].contains(".toml"), "{error:?}");
    for (name, _) in BUILT_IN {
        assert!(!profile(name).name.is_empty());
    }
}

proptest::proptest! {
    #[test]
    fn noise_never_stops_a_profile(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400), which in 0..BUILT_IN.len()) {
        for decoded in decoded(&profile(BUILT_IN[which].0), &bytes).into_iter().flatten() {
            proptest::prop_assert!(decoded.observations.len() <= 200);
        }
    }
}
