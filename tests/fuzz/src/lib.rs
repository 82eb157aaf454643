//! The room under fuzz: `wire` as it stands in the package, and nothing else of it.

#[path = "../../../src/wire/mod.rs"]
pub mod wire;
