//! What an association asks of its socket, and who looks whether an archive is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::Convert;
use super::archive::Archive;
use super::association::{Association, Message};
use super::pool::{Nothing, Pool, Rules, Unasked};
use crate::system::stream;
use crate::wire::dicom::dimse::{Command, Status};
use crate::wire::dicom::pdu::{HEADER_BYTES, Header, Pdv, Reject, write_message};
use crate::wire::dicom::pdu_associate::{
    AnsweredContext, AssociateRequest, ContextResult, ProposedContext, UserInformation,
};
use crate::wire::dicom::values::{APPLICATION_CONTEXT, AeTitle, IMPLICIT_LITTLE_ENDIAN, VERIFICATION};

/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(20);

fn archive() -> Archive {
    Archive {
        address: "127.0.0.1:104".parse().unwrap(),
        tls: None,
        called: AeTitle::read(b"ARCHIVE"),
        calling: AeTitle::read(b"WARDGATE"),
        max_pdu: 16_384,
        connect_timeout: PATIENCE,
        write_timeout: PATIENCE,
        response_timeout: PATIENCE,
    }
}

fn request() -> AssociateRequest {
    let transfer_syntaxes = vec![IMPLICIT_LITTLE_ENDIAN];
    AssociateRequest {
        protocol_version: 1,
        called: AeTitle::read(b"WARDGATE"),
        calling: AeTitle::read(b"ARCHIVE"),
        application_context: APPLICATION_CONTEXT,
        contexts: vec![ProposedContext { id: 1, abstract_syntax: VERIFICATION, transfer_syntaxes }],
        user: UserInformation { max_length: 16_384, ..UserInformation::default() },
    }
}

async fn hear(archive: &mut TcpStream) {
    let mut head = [0; HEADER_BYTES];
    archive.read_exact(&mut head).await.unwrap();
    let length = Header::read(head, 16_384).unwrap().length;
    archive.read_exact(&mut vec![0; usize::try_from(length).unwrap()]).await.unwrap();
}

/// As at the source: an archive with Nagle's algorithm would stand still for 40 ms with the short end of what it says.
#[tokio::test]
async fn an_archive_is_acknowledged_at_once_after_any_number_of_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut other = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, peer) = listener.accept().await.unwrap();
    let accepted = accepted.into_std().unwrap();
    let socket = TcpStream::from_std(accepted.try_clone().unwrap()).unwrap();
    let stream = stream::accept(TcpStream::from_std(accepted).unwrap(), peer, None, PATIENCE).await.unwrap();
    other.write_all(&request().bytes()).await.unwrap();
    let accept = |request: &AssociateRequest| {
        let transfer_syntax = Some(IMPLICIT_LITTLE_ENDIAN);
        let context = AnsweredContext { id: 1, result: ContextResult::Accepted, transfer_syntax };
        Ok(request.accept(vec![context], UserInformation { max_length: 16_384, ..UserInformation::default() }))
    };
    let mut association = Association::accept(stream, &archive(), accept).await.unwrap();
    hear(&mut other).await;
    for number in 1..=50 {
        let mut echo = Vec::new();
        let command = Command::echo_request(number).bytes();
        write_message(&Pdv { context: 1, is_command: true, is_last: true, data: &command }, 16_000, &mut echo);
        other.write_all(&echo).await.unwrap();
        let asked = association.receive().await.unwrap();
        association.send(1, &asked.command.response(Status::SUCCESS).bytes(), None).await.unwrap();
        hear(&mut other).await;
    }
    tokio::select! {
        biased;
        _ = association.receive() => panic!("nothing was sent"),
        () = std::future::ready(()) => {}
    }
    assert!(socket.quickack().unwrap(), "what comes next is acknowledged late");
}

/// An archive that answers each request for an association with this, and how often it was asked.
async fn rejecting(reject: Reject) -> (Archive, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string().parse().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            hear(&mut stream).await;
            counted.fetch_add(1, Ordering::SeqCst);
            stream.write_all(&reject.bytes()).await.unwrap();
        }
    });
    (Archive { address, ..archive() }, asked)
}

/// Reports on instances that are expected on associations which the archive opens.
struct Expected;

impl Unasked for Expected {
    fn take(&self, _message: &Message) -> Option<Command> {
        None
    }

    fn awaits(&self) -> bool {
        false
    }

    fn is_waited_for(&self) -> bool {
        true
    }
}

fn pool(archive: Archive, unasked: Arc<dyn Unasked>) -> Pool {
    let rules = Rules { associations: 1, quiet: PATIENCE, standing: Vec::new(), convert: Convert::default() };
    Pool::new(archive, rules, unasked)
}

#[tokio::test]
async fn an_archive_that_is_busy_is_there_and_one_that_does_not_know_us_is_not() {
    for (reject, is_there) in [(Reject::LOCAL_LIMIT, true), (Reject::CALLING_AE_TITLE, false)] {
        let (archive, asked) = rejecting(reject).await;
        assert_eq!(pool(archive, Arc::new(Nothing)).look().await.is_ok(), is_there, "{reject}");
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }
}

/// All that waits would be sent and asked for once more.
#[tokio::test]
async fn while_reports_of_commitment_are_waited_for_an_archive_that_is_away_for_a_moment_is_not_given_up() {
    let (archive, asked) = rejecting(Reject::CALLING_AE_TITLE).await;
    assert!(pool(archive, Arc::new(Expected)).look().await.is_ok());
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}
