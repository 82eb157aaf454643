//! MEDIBUS of Draeger's ventilators, anaesthesia machines and incubators: `[source.<name>.medibus]`.
//!
//! The device is asked for its measured values, settings, limits, alarms, texts and clock, and only asked. Framing and data are in
//! [`crate::wire::medibus`] and [`crate::wire::medibus_data`], the dialogue in `medibus_session`, what becomes of the answers in `medibus_chart`,
//! the codes in `medibus_values` and `medibus_words`.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::tz::TimeZone;
use serde::Deserialize;
use tokio::sync::Mutex;

use super::intake::Intake;
use super::medibus_chart::Chart;
use super::medibus_session::{self, End, Settings};
use super::plug::{Line, Plug, PlugConfig};
use super::readings::TelemetryLog;
use super::seldom::Seldom;
use super::{Source, SourceError, Stop};
use crate::system::serial::{Flow, Parity, SerialConfig};
use crate::values::{HostPort, Listen, Problems, Section, Span};
use crate::wire::medibus::{ARGUMENT_BYTES_MAX, code, hex};
