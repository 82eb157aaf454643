//! What a link asks of its socket.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::link::Link;
use crate::system::stream;
use crate::wire::dicom::pdu::{Pdv, write_data};

/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers at once make the kernel wait with acknowledgements for a next answer to carry them, and forget that it was told not to. Who
/// sends with Nagle's algorithm then stands still for 40 ms with the short end of each instance.
#[tokio::test]
async fn a_sender_is_acknowledged_at_once_after_any_number_of_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut device = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, peer) = listener.accept().await.unwrap();
    let accepted = accepted.into_std().unwrap();
    let socket = TcpStream::from_std(accepted.try_clone().unwrap()).unwrap();
    let stream = stream::accept(TcpStream::from_std(accepted).unwrap(), peer, None, PATIENCE).await.unwrap();
    let mut link = Link::new(stream, 16_384, PATIENCE);
    link.establish();
    let (mut pdu, mut answer) = (Vec::new(), Vec::new());
    write_data(&Pdv { context: 1, is_command: true, is_last: true, data: &[7; 100] }, &mut pdu);
    answer.resize(pdu.len(), 0);
    for _ in 0..50 {
        device.write_all(&pdu).await.unwrap();
        assert!(link.next().await.is_ok());
        link.send(&pdu).await.unwrap();
        device.read_exact(&mut answer).await.unwrap();
    }
    tokio::select! {
        biased;
        _ = link.next() => panic!("nothing was sent"),
        () = std::future::ready(()) => {}
    }
    assert!(socket.quickack().unwrap(), "what comes next is acknowledged late");
}
