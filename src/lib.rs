//! wardgate: (map follows)

pub mod admin;
pub mod cli;
pub mod collector;
pub mod config;
pub mod envelope;
pub mod gateway;
pub mod route;
pub mod source;
pub mod spool;
pub mod status;
pub mod system;
pub mod upstream;
pub mod values;
pub mod wire;
