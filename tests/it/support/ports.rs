//! Ports that nobody else uses. Best is to let the program bind port 0 and read which one it got; this is for peers that can't.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use super::process::Process;
use super::wait::holds_within;
use std::time::Duration;

/// Starts of a peer on fresh ports before the test gives up: a port may be taken between our look and its bind.
const TRIES: u32 = 5;
const LISTENS_WITHIN: Duration = Duration::from_secs(10);

/// A port on 127.0.0.1 that was free a moment ago. For an address that must refuse connections, and for [`start_on_port`].
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// An address on loopback that was free a moment ago.
pub fn free_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, free_port()).into()
}

/// Whether somebody accepts connections there.
pub fn listens(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Starts a peer that can't choose its port itself: on a free one, again on another if it ends before it listens.
pub fn start_on_port(mut start: impl FnMut(u16) -> Process) -> (Process, u16) {
    let mut said = String::new();
    for _ in 0..TRIES {
        let port = free_port();
        let mut peer = start(port);
        let mut gone = false;
        let up = holds_within(LISTENS_WITHIN, || {
            gone = peer.has_ended();
            gone || listens(port)
        });
        if up && !gone {
            return (peer, port);
        }
        said = peer.said();
    }
    panic!("the peer did not listen on any of {TRIES} ports; it said:\n{said}");
}

#[test]
fn a_free_port_can_be_bound() {
    let port = free_port();
    assert!(!listens(port));
    let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    assert!(listens(port));
}
