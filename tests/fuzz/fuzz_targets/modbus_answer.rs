//! Modbus answers: what is believed fits what was asked for, whatever came before it; numbers of registers never panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardgate_fuzz::wire::modbus::{Answer, Found, Read, Table, crc, find_rtu, find_tcp};
use wardgate_fuzz::wire::modbus_value::{Order, Type, configured, decode, scaled};

const TABLES: [Table; 4] = [Table::Coils, Table::Discrete, Table::Holding, Table::Input];
const TYPES: [Type; 9] =
    [Type::U16, Type::I16, Type::U32, Type::I32, Type::F32, Type::U64, Type::I64, Type::F64, Type::Bits];
const ORDERS: [Order; 4] = [Order::Abcd, Order::Cdab, Order::Badc, Order::Dcba];

fn believed(found: Found<'_>, bytes: &[u8], read: &Read) {
    match found {
        Found::More => {}
        Found::Foreign(length) => assert!((9..=bytes.len()).contains(&length)),
        Found::Answer { answer, junk, end } => {
            assert!(junk < end && end <= bytes.len());
            if let Answer::Data(data) = answer {
                assert_eq!(data.len(), read.data_bytes());
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&[table, count, unit, kind], bytes)) = data.split_first_chunk::<4>() else { return };
    let Some(read) = Read::new(TABLES[usize::from(table % 4)], 7, u16::from(count)) else { return };
    if let Ok(found) = find_rtu(bytes, unit, &read) {
        believed(found, bytes, &read);
        if let Found::Answer { junk, end, .. } = found {
            let (frame, sum) = bytes[junk..end].split_at(end - junk - 2);
            assert_eq!((frame[0], crc(frame).to_le_bytes()), (unit, [sum[0], sum[1]]));
        }
    }
    if let Ok(found) = find_tcp(bytes, u16::from(count), unit, &read) {
        believed(found, bytes, &read);
    }

    // A right answer behind any junk that holds none itself is found.
    let mut right = vec![unit, read.table().function(), u8::try_from(read.data_bytes()).unwrap_or(u8::MAX)];
    right.extend(bytes.iter().copied().chain(std::iter::repeat(0)).take(read.data_bytes()));
    if read.data_bytes() <= 250 {
        right.extend(crc(&right).to_le_bytes());
        let junk = &bytes[..bytes.len().min(64)];
        let whole = [junk, &right].concat();
        assert!(matches!(find_rtu(&whole, unit, &read), Ok(Found::Answer { .. })));
    }

    // Any registers are a number or none, and what is scaled reads back as one.
    let (kind, order) = (TYPES[usize::from(kind % 9)], ORDERS[usize::from(kind / 9 % 4)]);
    let registers = bytes.get(..2 * usize::from(kind.registers())).unwrap_or(bytes);
    if let Some(raw) = decode(kind, order, registers) {
        for (scale, offset) in [(1.0, 0.0), (0.1, -40.0), (1e6, 0.000_001)] {
            let (Some(scale), Some(offset)) = (configured(scale), configured(offset)) else { continue };
            if let Some(text) = scaled(raw, scale, offset) {
                assert!(text.parse::<f64>().is_ok(), "{text}");
            }
        }
    }
});
