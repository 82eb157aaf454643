//! The one owner of a line: it asks all units in turn, one question at a time.
//!
//! It lives longer than a connection: what was said about each unit, and for how long one is away, does not begin anew with a cable
//! that was pulled and put back.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::sleep_until;

use super::ModbusConfig;
use super::link::{Framing, Link, LinkError};
use super::unit::{Polled, Unit};
use crate::source::Stop;
use crate::source::intake::Intake;

/// All units of a line.
pub struct Bus {
    units: Vec<Unit>,
    framing: Framing,
    answer_time: Duration,
    /// The connections so far: no two begin with the same transaction.
    lines: u16,
}

/// Why a line is not used any longer.
#[derive(Debug)]
pub enum Ending {
    /// The source stops.
    Stopped,
    /// A unit did not answer in time. Over TCP its answer may come yet, so that the connection is made anew.
    Unanswered,
    /// It broke, or what came can't be trusted.
    Lost(LinkError),
}

impl Bus {
    /// The units of a checked configuration.
    pub fn new(config: &ModbusConfig, framing: Framing, intake: &Intake) -> Self {
        let units = config.unit.iter().map(|unit| Unit::new(config, unit, intake)).collect();
        Self { units, framing, answer_time: config.answer_timeout.0, lines: 0 }
    }

    /// Asks all units on this line until it ends.
    pub async fn run<S>(&mut self, line: S, intake: &Intake, stop: &Stop) -> Ending
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        // Far from the numbers of the connection before this one, whose late answers a gateway may send here.
        self.lines = self.lines.wrapping_add(1);
        self.units.iter_mut().for_each(Unit::line_anew);
        let mut link = Link::new(line, self.framing, self.answer_time, self.lines.wrapping_mul(0x1003));
        loop {
            let Some(unit) = self.units.iter_mut().min_by_key(|unit| unit.due()) else { return Ending::Stopped };
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ending::Stopped,
                () = sleep_until(unit.due()) => {}
            }
            // A poll is cut off by a stop: it only reads, and what it read is not yet promised to anybody.
            let polled = tokio::select! {
                biased;
                () = stop.cancelled() => return Ending::Stopped,
                polled = unit.poll(&mut link) => polled,
            };
            intake.counters().discarded_bytes.add(link.discarded());
            match polled {
                Ok(Polled::Answered) => {}
                Ok(Polled::Silent) if self.framing == Framing::Tcp => return Ending::Unanswered,
                Ok(Polled::Silent) => {}
                Err(error) => return Ending::Lost(error),
            }
        }
    }
}
