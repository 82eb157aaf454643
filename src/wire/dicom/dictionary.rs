//! Which value representation a standard element has (PS3.6, edition 2025): what implicit VR leaves out.
//!
//! The list is `dictionary.txt`: a line for each tag, sorted, all lines of one length, so that it is searched as it stands. It knows no
//! private elements. Where the standard leaves a choice: OW for "OB or OW" and "US or OW"; `XS` in the list is "US or SS". A test compares
//! it with the dictionary of dcmtk, which others made from the same standard.
//!
//! Why not the crate `dicom-dictionary-std`: all that is asked here is two letters for a tag. With names, ranges and their relocations its
//! table is some 400 KB of executable where the list is 60; at its first use it makes two hash maps of 5,300 entries in memory, global
//! ones; and it brings eight crates that nothing else here needs, chrono among them (0.10, `cargo tree`).

use super::element::Tag;

const LIST: &[u8] = include_bytes!("dictionary.txt");
/// `00080005 CS` and the line's end.
const LINE_BYTES: usize = 12;
/// What the list has for "US or SS".
const EITHER: [u8; 2] = *b"XS";

/// The value representation of a standard element, in its group or in any that repeats it (overlays, curves). `is_signed`: pixel
/// representation (0028,0103) is 1, which decides between US and SS. `None`: it is not in the list.
pub fn representation(tag: Tag, is_signed: bool) -> Option<[u8; 2]> {
    let found = find(tag).or_else(|| find(repeated(tag)?))?;
    match found {
        EITHER => Some(if is_signed { *b"SS" } else { *b"US" }),
        known => Some(known),
    }
}

fn find(tag: Tag) -> Option<[u8; 2]> {
    let (lines, _) = LIST.as_chunks::<LINE_BYTES>();
    let name = format!("{:08X}", tag.0).into_bytes();
    let at = lines.binary_search_by(|line| line[..8].cmp(&name)).ok()?;
    lines.get(at).map(|line| [line[9], line[10]])
}

/// The tag under which the list has an element that stands in several groups or under several numbers.
fn repeated(tag: Tag) -> Option<Tag> {
    let (group, element) = (tag.0 >> 16, tag.0 & 0xffff);
    if group % 2 == 1 {
        return None;
    }
    match (group, element) {
        (0x5000..=0x50ff | 0x6000..=0x60ff | 0x7f00..=0x7fff, _) => Some(Tag(tag.0 & 0xff00_ffff)),
        (0x0020, 0x3100..=0x31ff) => Some(Tag(tag.0 & 0xffff_ff00)),
        (0x0028, 0x0400..=0x04ff | 0x0800..=0x08ff) => Some(Tag(tag.0 & 0xffff_ff0f | 0x10)),
        (0x1000, _) => Some(Tag(tag.0 & 0xffff_000f)),
        (0x1010, _) => Some(Tag(tag.0 & 0xffff_0000)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vr(tag: u32) -> String {
        representation(Tag(tag), false).map_or_else(|| "-".into(), |vr| String::from_utf8(vr.to_vec()).unwrap())
    }

    #[test]
    fn the_list_is_sorted_and_each_line_is_a_tag_and_its_representation() {
        let (lines, rest) = LIST.as_chunks::<LINE_BYTES>();
        assert!(rest.is_empty() && lines.is_sorted() && lines.len() > 5000);
        for line in lines {
            let [tag @ .., b' ', _, _, b'\n'] = line else { panic!("{line:?}") };
            assert!(tag.iter().all(|digit| digit.is_ascii_digit() || (b'A'..=b'F').contains(digit)), "{line:?}");
            assert!(line[9..11].iter().all(u8::is_ascii_uppercase), "{line:?}");
        }
    }

    #[test]
    fn standard_elements_are_known_and_private_ones_are_not() {
        let known = [0x0008_0005, 0x0010_0010, 0x0008_1140, 0x0028_0010, 0x7fe0_0010, 0x0040_a730, 0xfffc_fffc];
        assert_eq!(known.map(vr), ["CS", "PN", "SQ", "US", "OW", "SQ", "OB"]);
        assert_eq!([0x0009_1001, 0x0008_fff0, 0x0029_0010].map(vr), ["-", "-", "-"]);
    }

    #[test]
    fn repeating_groups_and_numbers_are_known() {
        let repeating = [0x6000_3000, 0x601e_3000, 0x5002_0022, 0x0020_3102, 0x0028_0422, 0x601f_3000];
        assert_eq!(repeating.map(vr), ["OW", "OW", "LO", "CS", "LO", "-"]);
    }

    #[test]
    fn the_sign_of_the_pixels_decides_where_the_standard_leaves_it_to_them() {
        assert_eq!(representation(Tag(0x0028_0106), false), Some(*b"US"));
        assert_eq!(representation(Tag(0x0028_0106), true), Some(*b"SS"));
    }
}
