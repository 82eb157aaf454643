//! The configuration.
pub mod document;
pub mod report;
