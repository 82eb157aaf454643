//! The messages of the load, and just enough of MLLP to send them and to read answers. Invented patients only.

use std::io::{self, BufRead};

const START: u8 = 0x0b;
const END: u8 = 0x1c;
const RETURN: u8 = 0x0d;

/// An ORU^R01 of exactly `size` bytes (at least 400) with `id` as its control id, in its frame.
pub fn framed(id: u64, size: usize) -> Vec<u8> {
    let mut body = format!(
        "MSH|^~\\&|MONITOR|ICU3|WARDGATE|HOSPITAL|20260102030405.000+0000||ORU^R01^ORU_R01|{id:012}|P|2.5.1\r\
         PID|1||TEST-{:04}^^^HOSPITAL^MR||Probe^Paula||19700101|F\r\
         OBR|1|||69965-9^Monitor vital signs^LN|||20260102030405\r\
         OBX|1|NM|8867-4^Heart rate^LN||72|/min^^UCUM|||||F\r\
         OBX|2|NM|59408-5^Oxygen saturation^LN||97|%^^UCUM|||||F\r\
         NTE|1||",
        id % 10_000
    )
    .into_bytes();
    let filler = size.checked_sub(body.len() + 1).expect("a message has at least 400 bytes");
    body.extend((0..filler).map(|at| b"abcdefghijklmnopqrstuvwxyz "[at % 27]));
    body.push(RETURN);
    let mut frame = Vec::with_capacity(body.len() + 3);
    frame.push(START);
    frame.extend(body);
    frame.extend([END, RETURN]);
    frame
}

/// Reads one frame and returns its body in `body`; false at the end of the stream.
pub fn read_body(reader: &mut impl BufRead, body: &mut Vec<u8>) -> io::Result<bool> {
    body.clear();
    if reader.skip_until(START)? == 0 {
        return Ok(false);
    }
    reader.read_until(END, body)?;
    if body.pop() != Some(END) {
        return Ok(false);
    }
    reader.read_exact(&mut [0; 1])?;
    Ok(true)
}

/// Field `number` of the first segment `name`, counted as HL7 does: MSH-1 is the separator itself.
pub fn field<'a>(body: &'a [u8], name: &[u8], number: usize) -> Option<&'a [u8]> {
    let segment = body.split(|byte| *byte == RETURN).find(|segment| segment.starts_with(name))?;
    let skipped = if name == b"MSH" { number - 1 } else { number };
    segment.split(|byte| *byte == b'|').nth(skipped)
}

/// An acknowledgement with `AA` for the message with this control id, in its frame.
pub fn acknowledgement(id: &[u8]) -> Vec<u8> {
    let id = String::from_utf8_lossy(id);
    let ack = format!("MSH|^~\\&|HOSPITAL|SINK|WARDGATE|BOX|20260102030405||ACK^R01^ACK|A{id}|P|2.5.1\rMSA|AA|{id}\r");
    [&[START], ack.as_bytes(), &[END, RETURN]].concat()
}

/// The number in MSH-10, as [`framed`] wrote it.
pub fn number(body: &[u8]) -> Option<u64> {
    std::str::from_utf8(field(body, b"MSH", 10)?).ok()?.parse().ok()
}
