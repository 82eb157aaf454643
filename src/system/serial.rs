//! A serial port: opened for one owner, raw, with the line settings of the device, read and written without blocking.
//!
//! It is opened only on the character device that its path leads to at that moment, and is good until it is unplugged: a read of
//! zero bytes is told as an error, since it would be repeated for ever. Nothing here waits for a port or opens it again.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::major;
use nix::sys::termios::{
    BaudRate, ControlFlags, FlushArg, InputFlags, SetArg, SpecialCharacterIndices, Termios, cfgetispeed, cfgetospeed,
    cfmakeraw, cfsetspeed, tcflush, tcgetattr, tcsetattr,
};
use serde::Deserialize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::values::Problems;

/// Character devices with these major numbers are pseudo-terminals (Linux, Documentation/admin-guide/devices.txt).
const PSEUDO_TERMINALS: std::ops::RangeInclusive<u64> = 136..=143;
/// Rates that every driver of the kernel knows by name.
const RATES: [(u32, BaudRate); 16] = [
    (300, BaudRate::B300),
    (600, BaudRate::B600),
    (1_200, BaudRate::B1200),
    (2_400, BaudRate::B2400),
    (4_800, BaudRate::B4800),
    (9_600, BaudRate::B9600),
    (19_200, BaudRate::B19200),
    (38_400, BaudRate::B38400),
    (57_600, BaudRate::B57600),
    (115_200, BaudRate::B115200),
    (230_400, BaudRate::B230400),
    (460_800, BaudRate::B460800),
    (500_000, BaudRate::B500000),
    (576_000, BaudRate::B576000),
    (921_600, BaudRate::B921600),
    (1_000_000, BaudRate::B1000000),
];

/// `serial = { port = "/dev/serial/by-path/...", baud = 9600 }`: a port and its line settings.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SerialConfig {
    /// The port, best by its physical place: `/dev/serial/by-path/...`.
    pub port: PathBuf,
    /// Bits a second.
    #[serde(default = "default_baud")]
    pub baud: u32,
    /// Bits of a character, 7 or 8.
    #[serde(default = "default_data_bits")]
    pub data_bits: u8,
    /// The bit that checks a character.
    #[serde(default)]
    pub parity: Parity,
    /// Bits after a character, 1 or 2.
    #[serde(default = "default_stop_bits")]
    pub stop_bits: u8,
    /// How a side that is overrun holds up the other.
    #[serde(default)]
    pub flow: Flow,
}

fn default_baud() -> u32 {
    9_600
}

fn default_data_bits() -> u8 {
    8
}

fn default_stop_bits() -> u8 {
    1
}

/// The bit that checks a character.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Parity {
    /// There is none.
    #[default]
    None,
    /// The number of ones is made even.
    Even,
    /// The number of ones is made odd.
    Odd,
    /// Always one: what some devices call the ninth data bit.
    Mark,
    /// Always zero.
    Space,
}

/// How a side that is overrun holds up the other.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flow {
    /// Not at all.
    #[default]
    None,
    /// By RTS and CTS.
    Hardware,
    /// By XON and XOFF in the data, which the driver takes out.
    Software,
}

/// Why a port can't be used now. Each text says what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PortError {
    /// The path leads nowhere.
    #[error("{0} is not plugged in")]
    Absent(PathBuf),
    /// The user of the service may not open it.
    #[error("{0} may not be opened by this user: add the service's user to the group that owns the port (dialout)")]
    Denied(PathBuf),
    /// Another program has it.
    #[error("{0} is in use by another program: end that program (fuser -v shows it), a port has one owner")]
    Busy(PathBuf),
    /// It is no serial port.
    #[error("{0} is no serial port: choose one of wardgate ports")]
    NoPort(PathBuf),
    /// The driver does not do what the settings ask for.
    #[error("{port} did not take the setting {settings}: this adapter can't do it; change the setting or the adapter")]
    Untaken {
        /// The port.
        port: PathBuf,
        /// Which settings.
        settings: String,
    },
    /// Anything else.
    #[error("{port} can't be opened: {cause}")]
    Failed {
        /// The port.
        port: PathBuf,
        /// In the system's words.
        cause: String,
    },
}

/// A port that is open, with its settings.
#[derive(Debug)]
pub struct SerialPort {
    file: AsyncFd<File>,
    device: u64,
    tolerated: Vec<String>,
}

impl SerialConfig {
    /// Notes what no port can do.
    pub fn check(&self, problems: &mut Problems) {
        if !self.port.is_absolute() {
            problems.error("port", "write the whole path, best one of /dev/serial/by-path (wardgate ports lists them)");
        } else if numbered(&self.port) {
            let text = "this name goes to another device when the order of plugging in changes: use the path under \
                        /dev/serial/by-path (wardgate ports lists them)";
            problems.warn("port", text);
        }
        if rate(self.baud).is_none() {
            let known: Vec<String> = RATES.iter().map(|(rate, _)| rate.to_string()).collect();
            problems.error("baud", format!("is none of {}", known.join(", ")));
        }
        if !matches!(self.data_bits, 7 | 8) {
            problems.error("data-bits", "must be 7 or 8");
        }
        if !matches!(self.stop_bits, 1 | 2) {
            problems.error("stop-bits", "must be 1 or 2");
        }
    }

    /// The settings as people write them: `9600 8N1`.
    pub fn settings(&self) -> String {
        let parity = match self.parity {
            Parity::None => 'N',
            Parity::Even => 'E',
            Parity::Odd => 'O',
            Parity::Mark => 'M',
            Parity::Space => 'S',
        };
        let flow = match self.flow {
            Flow::None => "",
            Flow::Hardware => " RTS/CTS",
            Flow::Software => " XON/XOFF",
        };
        format!("{} {}{parity}{}{flow}", self.baud, self.data_bits, self.stop_bits)
    }
}

/// Names that the kernel gives in the order of plugging in.
fn numbered(port: &Path) -> bool {
    let name = port.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    port.parent() == Some(Path::new("/dev")) && (name.starts_with("ttyUSB") || name.starts_with("ttyACM"))
}

fn rate(baud: u32) -> Option<BaudRate> {
    RATES.iter().find(|(rate, _)| *rate == baud).map(|(_, known)| *known)
}

/// The number of the character device that a path leads to; `None` when it leads to none.
pub fn device(port: &Path) -> Option<u64> {
    let found = std::fs::metadata(port).ok()?;
    found.file_type().is_char_device().then(|| found.rdev())
}

impl SerialPort {
    /// Opens the port for this process alone and sets the line.
    ///
    /// # Errors
    /// [`PortError`]; the port is then closed again.
    pub fn open(config: &SerialConfig) -> Result<Self, PortError> {
        let port = &config.port;
        let explain = |error: io::Error| explain(port, &error);
        let number = match device(port) {
            Some(number) => number,
            None if port.exists() => return Err(PortError::NoPort(port.clone())),
            None => return Err(PortError::Absent(port.clone())),
        };
        let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(port).map_err(explain)?;
        // The name may have moved on between the two looks: what is open counts.
        let device = file.metadata().map_or(number, |found| found.rdev());
        take_alone(&file).map_err(explain)?;
        let tolerant = PSEUDO_TERMINALS.contains(&major(device));
        let untaken = set_line(&file, config, tolerant).map_err(|errno| explain(errno.into()))?;
        if !untaken.is_empty() && !tolerant {
            return Err(PortError::Untaken { port: port.clone(), settings: untaken.join(", ") });
        }
        let file = registered(file).map_err(explain)?;
        Ok(Self { file, device, tolerated: untaken })
    }

    /// The number of the device that is open.
    pub fn device(&self) -> u64 {
        self.device
    }

    /// Settings that a pseudo-terminal did not take: it carries bytes and no line.
    pub fn tolerated(&self) -> &[String] {
        &self.tolerated
    }
}

#[allow(unsafe_code)] // tokio leaves it to the caller to keep the descriptor open
fn registered(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: the file owns its descriptor and neither closes nor replaces it while it lives.
    Ok(unsafe { AsyncFd::register(file) }?)
}

/// Two readers of one port each get a part of the bytes: so nobody else may open it. TIOCEXCL holds off all but root, the lock those
/// that ask for it (pyserial, minicom, and another wardgate).
fn take_alone(file: &File) -> io::Result<()> {
    match file.try_lock() {
        Ok(()) => exclusive(file.as_raw_fd()).map_err(io::Error::from),
        Err(TryLockError::WouldBlock) => Err(Errno::EBUSY.into()),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[allow(unsafe_code)] // nix has no name for this call
fn exclusive(fd: RawFd) -> Result<(), Errno> {
    // SAFETY: TIOCEXCL takes no argument, and the descriptor is open while this runs.
    Errno::result(unsafe { libc::ioctl(fd, libc::TIOCEXCL) }).map(drop)
}

/// Sets the line and reads it back: drivers take what they can do and say nothing of the rest. Returns what was not taken.
fn set_line(file: &File, config: &SerialConfig, pseudo: bool) -> Result<Vec<String>, Errno> {
    let mut termios = tcgetattr(file)?;
    prepare(&mut termios, config)?;
    // EINVAL is said by drivers that take nothing of it; the rest tell it by what is read back.
    match tcsetattr(file, SetArg::TCSANOW, &termios) {
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(errno) => return Err(errno),
    }
    if !pseudo {
        // What came while the line was set otherwise is noise.
        tcflush(file, FlushArg::TCIFLUSH)?;
    }
    Ok(untaken(&tcgetattr(file)?, config))
}

/// The settings of the line on top of a raw terminal.
fn prepare(termios: &mut Termios, config: &SerialConfig) -> Result<(), Errno> {
    cfmakeraw(termios);
    cfsetspeed(termios, rate(config.baud).ok_or(Errno::EINVAL)?)?;
    termios.control_flags &= !line_flags();
    termios.control_flags |= control_flags(config) | ControlFlags::CLOCAL | ControlFlags::CREAD;
    // A device that is switched on or off holds the line low: that is no byte.
    termios.input_flags |= InputFlags::IGNBRK;
    termios.input_flags &= !(InputFlags::INPCK | InputFlags::IXON | InputFlags::IXOFF | InputFlags::IXANY);
    if config.parity != Parity::None {
        // A character that fails the check reads as zero, so that the frame around it is seen to be broken.
        termios.input_flags |= InputFlags::INPCK;
    }
    if config.flow == Flow::Software {
        termios.input_flags |= InputFlags::IXON | InputFlags::IXOFF;
    }
    termios.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
    termios.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
    Ok(())
}

fn line_flags() -> ControlFlags {
    use ControlFlags as C;
    C::CSIZE | C::PARENB | C::PARODD | C::CMSPAR | C::CSTOPB | C::CRTSCTS
}

fn control_flags(config: &SerialConfig) -> ControlFlags {
    use ControlFlags as C;
    let size = if config.data_bits == 7 { C::CS7 } else { C::CS8 };
    let parity = match config.parity {
        Parity::None => C::empty(),
        Parity::Even => C::PARENB,
        Parity::Odd => C::PARENB | C::PARODD,
        Parity::Mark => C::PARENB | C::PARODD | C::CMSPAR,
        Parity::Space => C::PARENB | C::CMSPAR,
    };
    let stop = if config.stop_bits == 2 { C::CSTOPB } else { C::empty() };
    let flow = if config.flow == Flow::Hardware { C::CRTSCTS } else { C::empty() };
    size | parity | stop | flow
}

/// The settings that a port does not have, in the words of the configuration.
fn untaken(found: &Termios, config: &SerialConfig) -> Vec<String> {
    use ControlFlags as C;
    let wanted = control_flags(config);
    let differs = |mask: C| found.control_flags & mask != wanted & mask;
    let software = found.input_flags.contains(InputFlags::IXON | InputFlags::IXOFF);
    let rate = rate(config.baud);
    let parity = format!("parity = \"{}\"", format!("{:?}", config.parity).to_lowercase());
    let flow = format!("flow = \"{}\"", format!("{:?}", config.flow).to_lowercase());
    let speeds = [Some(cfgetispeed(found)), Some(cfgetospeed(found))];
    [
        (speeds.iter().any(|speed| *speed != rate), format!("baud = {}", config.baud)),
        (differs(C::CSIZE), format!("data-bits = {}", config.data_bits)),
        (differs(C::PARENB | C::PARODD | C::CMSPAR), parity),
        (differs(C::CSTOPB), format!("stop-bits = {}", config.stop_bits)),
        (differs(C::CRTSCTS) || software != (config.flow == Flow::Software), flow),
    ]
    .into_iter()
    .filter_map(|(differs, name)| differs.then_some(name))
    .collect()
}

fn explain(port: &Path, error: &io::Error) -> PortError {
    let port = port.to_owned();
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ENXIO | Errno::EIO | Errno::ENODEV) => PortError::Absent(port),
        Some(Errno::EACCES | Errno::EPERM) => PortError::Denied(port),
        Some(Errno::EBUSY) => PortError::Busy(port),
        Some(Errno::ENOTTY | Errno::EISDIR) => PortError::NoPort(port),
        _ => PortError::Failed { port, cause: error.to_string() },
    }
}

/// What a port says when it is gone: zero bytes, or one of these.
fn unplugged(error: io::Error) -> io::Error {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EIO | Errno::ENXIO | Errno::ENODEV | Errno::EBADF) => gone(),
        _ => error,
    }
}

/// The error of a line that is not there any more.
pub fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "unplugged")
}

impl AsyncRead for SerialPort {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let mut ready = ready!(self.file.poll_read_ready(cx))?;
            let Ok(read) = ready.try_io(|file| file.get_ref().read(buf.initialize_unfilled())) else { continue };
            return Poll::Ready(match read {
                Ok(0) => Err(gone()),
                Ok(count) => {
                    // That was all: what comes now wakes us, and to ask once more would only tell that there is nothing.
                    if count < buf.remaining() {
                        ready.clear_ready();
                    }
                    buf.advance(count);
                    Ok(())
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(unplugged(error)),
            });
        }
    }
}

impl AsyncWrite for SerialPort {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.file.poll_write_ready(cx))?;
            let Ok(written) = ready.try_io(|file| file.get_ref().write(bytes)) else { continue };
            match written {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                outcome => return Poll::Ready(outcome.map_err(unplugged)),
            }
        }
    }

    /// What the kernel has taken, it sends: to wait for the last bit would block.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use nix::pty::openpty;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn config(text: &str) -> SerialConfig {
        toml::from_str(text).unwrap()
    }

    fn problems(text: &str) -> Vec<String> {
        let mut problems = Problems::default();
        config(text).check(&mut problems);
        problems.into_found().into_iter().map(|problem| problem.path.join(".")).collect()
    }

    /// A terminal as the kernel opens it, which is far from raw.
    fn termios() -> Termios {
        tcgetattr(openpty(None, None).unwrap().slave).unwrap()
    }

    #[test]
    fn a_port_is_enough_and_the_line_is_then_9600_8n1() {
        let config = config("port = '/dev/serial/by-path/usb-1'");
        assert_eq!((config.settings(), config.flow), ("9600 8N1".to_owned(), Flow::None));
        assert_eq!(problems("port = '/dev/serial/by-path/usb-1'"), Vec::<String>::new());
        let all = problems("port = 'ttyUSB0'\nbaud = 9601\ndata-bits = 9\nstop-bits = 0");
        assert_eq!(all, ["port", "baud", "data-bits", "stop-bits"]);
        assert_eq!(problems("port = '/dev/ttyUSB0'"), ["port"]);
        assert!(toml::from_str::<SerialConfig>("port = '/dev/ttyS0'\nspeed = 1").is_err());
    }

    /// Pseudo-terminals drop parity and seven bits: here the flags that a real port is given are held.
    #[test]
    fn the_settings_of_a_device_are_the_flags_of_the_line() {
        use ControlFlags as C;
        let flags = |text: &str| {
            let (mut termios, config) = (termios(), config(&format!("port = '/dev/ttyS0'\n{text}")));
            prepare(&mut termios, &config).unwrap();
            assert_eq!(untaken(&termios, &config), Vec::<String>::new(), "{text}");
            assert!(termios.local_flags.bits() & (libc::ICANON | libc::ECHO | libc::ISIG) == 0);
            assert!(termios.control_flags.contains(C::CLOCAL | C::CREAD));
            termios
        };
        let line = |text: &str| flags(text).control_flags & line_flags();
        assert_eq!(line(""), C::CS8);
        assert_eq!(line("parity = 'even'"), C::CS8 | C::PARENB);
        assert_eq!(line("data-bits = 7\nparity = 'odd'"), C::CS7 | C::PARENB | C::PARODD);
        assert_eq!(line("parity = 'mark'"), C::CS8 | C::PARENB | C::PARODD | C::CMSPAR);
        assert_eq!(line("parity = 'space'"), C::CS8 | C::PARENB | C::CMSPAR);
        assert_eq!(line("stop-bits = 2\nflow = 'hardware'"), C::CS8 | C::CSTOPB | C::CRTSCTS);
        let soft = flags("flow = 'software'\nbaud = 19200");
        assert!(soft.input_flags.contains(InputFlags::IXON | InputFlags::IXOFF));
        assert_eq!(cfgetospeed(&soft), BaudRate::B19200);
        assert!(flags("parity = 'even'").input_flags.contains(InputFlags::INPCK));
        assert!(!flags("").input_flags.intersects(InputFlags::INPCK | InputFlags::IXON | InputFlags::ICRNL));
    }

    #[test]
    fn what_a_line_does_not_take_is_named_as_in_the_configuration() {
        let asked = config("port = '/dev/ttyS0'\nbaud = 19200\ndata-bits = 7\nparity = 'even'\nflow = 'hardware'");
        let mut termios = termios();
        prepare(&mut termios, &config("port = '/dev/ttyS0'")).unwrap();
        let found = untaken(&termios, &asked).join(", ");
        assert_eq!(found, "baud = 19200, data-bits = 7, parity = \"even\", flow = \"hardware\"");
    }

    #[tokio::test]
    async fn a_port_carries_bytes_has_one_owner_and_tells_that_it_was_unplugged() {
        let pair = openpty(None, None).unwrap();
        let path = nix::unistd::ttyname(&pair.slave).unwrap();
        drop(pair.slave);
        let config = SerialConfig { port: path, parity: Parity::Even, ..config("port = '/x'") };
        let mut port = SerialPort::open(&config).unwrap();
        assert_eq!(port.tolerated(), ["parity = \"even\""]);
        assert_eq!(SerialPort::open(&config).unwrap_err(), PortError::Busy(config.port.clone()));
        let mut device = File::from(pair.master);
        device.write_all(b"\x00\x11\r\n\xff").unwrap();
        let mut bytes = [0; 5];
        port.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"\x00\x11\r\n\xff");
        port.write_all(b"\x1b?\r\n").await.unwrap();
        let mut asked = [0; 4];
        device.read_exact(&mut asked).unwrap();
        assert_eq!(&asked, b"\x1b?\r\n");
        drop(device);
        assert_eq!(port.read(&mut bytes).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        drop(port);
        assert_eq!(SerialPort::open(&config).unwrap_err(), PortError::Absent(config.port.clone()));
    }

    #[test]
    fn a_path_that_is_no_port_is_told_from_one_that_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let of = |path: PathBuf| SerialPort::open(&SerialConfig { port: path, ..config("port = '/x'") }).unwrap_err();
        let missing = folder.path().join("usb-1");
        assert_eq!(of(missing.clone()), PortError::Absent(missing));
        assert_eq!(of(folder.path().into()), PortError::NoPort(folder.path().into()));
        assert_eq!(of("/dev/null".into()), PortError::NoPort("/dev/null".into()));
    }
}
