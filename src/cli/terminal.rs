//! What is written to the person: standard output that may be closed at any time, a terminal's size, a screen that is drawn
//! over itself, a question that needs a "yes".
//!
//! Text that came from a peer or a disk passes through [`plain`] first: nobody upstream may move the cursor here.

use std::borrow::Cow;
use std::io::{self, BufRead, ErrorKind, IsTerminal, Write};

use nix::sys::termios::{self, LocalFlags, SetArg};

use super::exit::{Exit, Failure};
use super::table::cut;

/// Width where nobody says another.
const WIDTH_DEFAULT: usize = 100;
/// Rows of a terminal that does not tell its height.
const HEIGHT_DEFAULT: usize = 40;
/// Width of a table that is written to a file or a pipe: wide enough that nothing is cut.
const WIDTH_PIPE: usize = 240;

/// Writes a text and the end of its line to standard output.
///
/// # Errors
/// [`Exit::Closed`] when its reader has closed it, which ends the program quietly; [`Exit::Io`] when it can't be written.
pub fn say(text: &str) -> Result<(), Failure> {
    write_all(&format!("{text}\n"))
}

fn write_all(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Closed, "standard output was closed"))
        }
        Err(error) => Err(Failure::new(Exit::Io, format!("can't write to standard output: {error}"))),
    }
}

/// Writes a note beside the output, to standard error. Nothing to do when that is closed.
pub fn note(text: &str) {
    writeln!(io::stderr(), "{text}").ok();
}

/// Shows how far a job is, on a line of standard error that the next one is written over. Where that is no terminal nobody
/// watches: nothing is written, the line at the end of the job tells all.
pub fn progress(text: &str) {
    draw_progress(&plain(text));
}

/// Takes the line of [`progress`] away.
pub fn progress_over() {
    draw_progress("");
}

fn draw_progress(text: &str) {
    let mut out = io::stderr();
    if out.is_terminal() {
        write!(out, "\r{text}\x1b[K").and_then(|()| out.flush()).ok();
    }
}

/// Whether standard output is a terminal.
pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Columns and rows of the terminal; a generous width where standard output is none.
pub fn size() -> (usize, usize) {
    match terminal_size::terminal_size_of(io::stdout()) {
        Some((width, height)) => (width.0.max(20).into(), height.0.max(5).into()),
        None if is_terminal() => (WIDTH_DEFAULT, HEIGHT_DEFAULT),
        None => (WIDTH_PIPE, HEIGHT_DEFAULT),
    }
}

/// The text with everything that could steer a terminal replaced.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || is_invisible(c) { '\u{fffd}' } else { c }).collect()
}

/// Marks that turn the direction of what follows, and lines that are none.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The alternate screen, drawn over itself without flicker, put away when this is dropped.
pub struct Screen(());

impl Screen {
    /// Takes the screen.
    ///
    /// # Errors
    /// [`Exit::Io`].
    pub fn open() -> Result<Self, Failure> {
        write_all("\x1b[?1049h\x1b[?25l\x1b[2J").map(|()| Self(()))
    }

    /// Draws the lines from the top, as many as there are rows; what was there before is written over, line by line.
    ///
    /// # Errors
    /// [`Exit::Io`].
    pub fn draw(&mut self, text: &str) -> Result<(), Failure> {
        let (width, height) = size();
        let mut frame = String::from("\x1b[?2026h\x1b[H");
        for (row, line) in fitted(text, width, height).iter().enumerate() {
            frame.push_str(if row == 0 { "" } else { "\r\n" });
            frame.push_str(line);
            frame.push_str("\x1b[K");
        }
        frame.push_str("\x1b[J\x1b[?2026l");
        write_all(&frame)
    }
}

/// The lines that fit, the last of which says how many did not.
fn fitted(text: &str, width: usize, height: usize) -> Vec<Cow<'_, str>> {
    let mut lines: Vec<Cow<'_, str>> = text.lines().map(Cow::Borrowed).collect();
    if lines.len() > height {
        let hidden = lines.len() - height + 1;
        lines.truncate(height - 1);
        lines.push(cut(&format!("... {hidden} more lines: make the window taller, or use --once"), width).into());
    }
    lines
}

impl Drop for Screen {
    fn drop(&mut self) {
        // On the way out; there is no one left to tell.
        io::stdout().write_all(b"\x1b[?25h\x1b[?1049l").and_then(|()| io::stdout().flush()).ok();
    }
}

/// Asks before something that can't be undone. `yes` (the option) answers in advance; without a terminal there is nobody to
/// ask, so that the answer is no.
///
/// # Errors
/// [`Exit::Usage`] when the answer was not `word`.
pub fn confirm(question: &str, word: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::new(
            Exit::Usage,
            format!("{question}\n  nothing was done: add --yes to do it without being asked"),
        ));
    }
    write!(io::stderr(), "{question}\n  type {word} to go on: ").ok();
    let mut answer = String::new();
    io::stdin().lock().take_line(&mut answer);
    match answer.trim() == word {
        true => Ok(()),
        false => Err(Failure::new(Exit::Usage, "nothing was done")),
    }
}

/// Asks for something that must not be seen, as one line; `None` where standard input is no terminal and nobody can be asked.
///
/// # Errors
/// When the terminal can't be told to show nothing.
pub fn ask_hidden(question: &str) -> io::Result<Option<Vec<u8>>> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Ok(None);
    }
    let shown = termios::tcgetattr(&stdin)?;
    let mut hidden = shown.clone();
    hidden.local_flags.remove(LocalFlags::ECHO);
    write!(io::stderr(), "{question}").ok();
    termios::tcsetattr(&stdin, SetArg::TCSAFLUSH, &hidden)?;
    let mut answer = String::new();
    stdin.lock().take_line(&mut answer);
    termios::tcsetattr(&stdin, SetArg::TCSAFLUSH, &shown)?;
    writeln!(io::stderr()).ok();
    Ok(Some(answer.trim_end_matches(['\r', '\n']).as_bytes().to_vec()))
}

/// One line of an answer, of which nobody needs more.
trait TakeLine {
    fn take_line(&mut self, into: &mut String);
}

impl<R: BufRead> TakeLine for R {
    fn take_line(&mut self, into: &mut String) {
        const ANSWER_BYTES_MAX: u64 = 1_024;
        // What can't be read is not the word.
        io::Read::take(self, ANSWER_BYTES_MAX).read_line(into).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_a_small_terminal_is_said() {
        assert_eq!(fitted("a\nb\nc", 80, 3), ["a", "b", "c"]);
        assert_eq!(fitted("a\nb\nc\nd", 80, 3), ["a", "b", "... 2 more lines: make the window taller, or use --once"]);
    }

    #[test]
    fn a_peer_cannot_steer_the_terminal() {
        assert_eq!(plain("up\x1b[2J\r\nroot# \u{202e}txt"), "up\u{fffd}[2J\u{fffd}\u{fffd}root# \u{fffd}txt");
        assert_eq!(plain("Überlastet: 503"), "Überlastet: 503");
    }
}
