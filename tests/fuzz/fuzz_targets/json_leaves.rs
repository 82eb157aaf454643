//! JSON of a sensor: it is taken exactly when it is JSON and little enough, each leaf once, and a number is a plain decimal one that means
//! what was written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use wardgate_fuzz::wire::json_leaves::{JsonError, LEAVES_MAX, Scalar, leaves};

fuzz_target!(|data: &[u8]| {
    let read: Result<Value, _> = serde_json::from_slice(data);
    match leaves(data) {
        Ok(leaves) => {
            assert!(leaves.len() <= LEAVES_MAX);
            for leaf in &leaves {
                let Scalar::Number(digits) = &leaf.scalar else { continue };
                assert!(digits.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'.')), "{digits}");
                assert!(digits.parse::<f64>().is_ok(), "{digits}");
            }
            // serde's own value is compared where no name stands twice: it keeps the last, and nothing else may get lost.
            if let Ok(value) = read
                && !leaves.iter().any(|leaf| leaf.ambiguous)
            {
                assert_eq!(count(&value), leaves.len());
                for leaf in &leaves {
                    let there = value.pointer(&leaf.pointer).expect("a pointer that leads nowhere");
                    match (&leaf.scalar, there) {
                        (Scalar::Null, Value::Null) => {}
                        (Scalar::Bool(one), Value::Bool(other)) => assert_eq!(one, other),
                        (Scalar::Text(one), Value::String(other)) => assert_eq!(one, other),
                        (Scalar::Number(one), Value::Number(other)) => assert_eq!(one.parse::<f64>().ok(), other.as_f64()),
                        (one, other) => panic!("{one:?} is {other:?}"),
                    }
                }
            }
        }
        // serde's value refuses numbers that are too large for it.
        Err(JsonError::Malformed) => assert!(read.is_err()),
        Err(JsonError::TooMuch) => {}
    }
});

fn count(value: &Value) -> usize {
    match value {
        Value::Array(all) => all.iter().map(count).sum(),
        Value::Object(all) => all.values().map(count).sum(),
        _ => 1,
    }
}
