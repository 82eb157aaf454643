//! A deflated data set (PS3.5 annex A.5, RFC 1951) laid open for whoever looks at its beginning; what is stored stays deflated.
//!
//! It gives so much at a time as the reader has room for and holds the format's own window of 32 KiB: how far a few bytes would
//! inflate is the reader's to bound, by asking no more.

use std::fmt;

use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZError, MZFlush};

/// The stream is none that can be inflated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotDeflated;

/// An open stream.
pub struct Deflated(Box<InflateState>);

impl Default for Deflated {
    fn default() -> Self {
        Self(InflateState::new_boxed(DataFormat::Raw))
    }
}

impl Deflated {
    /// Inflates from `input`, which moves on, into `out`; how many bytes that gave. None: more input is needed, or the stream has ended.
    ///
    /// # Errors
    /// [`NotDeflated`].
    pub fn next(&mut self, input: &mut &[u8], out: &mut [u8]) -> Result<usize, NotDeflated> {
        let result = inflate(&mut self.0, input, out, MZFlush::None);
        *input = input.get(result.bytes_consumed..).unwrap_or_default();
        match result.status {
            // The buffer error only says that there was nothing to do.
            Ok(_) | Err(MZError::Buf) => Ok(result.bytes_written),
            Err(_) => Err(NotDeflated),
        }
    }
}

/// Without the window, which is content.
impl fmt::Debug for Deflated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deflated").finish_non_exhaustive()
    }
}
