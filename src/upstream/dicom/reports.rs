//! Where an archive reports its storage commitment on an association of its own (DICOM PS3.4 annex J.3.3): a small acceptor for
//! that one service and for C-ECHO, so that the archive's owner can test the line.
//!
//! It takes nothing else: no instance comes in here. The archive is the service's provider though it asks for the association, which role
//! selection says (PS3.7 annex D.3.3.4); some archives leave that out, and are taken all the same.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use super::archive::{Archive, AssociationError};
use super::association::Association;
use super::commitment::Reports;
use super::store::unexpected;
use crate::system::seldom::Seldom;
use crate::system::stream;
use crate::system::tls::ServerTls;
use crate::upstream::SendError;
use crate::upstream::link::lost;
use crate::values::{Listen, Problems, SecretRef, Section};
use crate::wire::dicom::dimse::{CommandField, Status};
use crate::wire::dicom::pdu::Reject;
use crate::wire::dicom::pdu_associate::{
    AnsweredContext, AssociateAccept, AssociateRequest, ContextResult, ProposedContext, Role, UserInformation,
};
use crate::wire::dicom::values::{IMPLEMENTATION_CLASS, IMPLEMENTATION_VERSION};
use crate::wire::dicom::values::{IMPLICIT_LITTLE_ENDIAN, STORAGE_COMMITMENT, VERIFICATION};

/// Associations of archives at a time.
const ASSOCIATIONS_MAX: usize = 8;
/// How long nothing is accepted after the process ran out of descriptors, as a rule: somebody must close one first.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// `commitment-listen`: where the archive may bring its reports.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ReportsConfig {
    /// Address and port, entered at the archive for our AE title.
    pub listen: Listen,
    /// From which networks; needed off loopback, unless the archive shows a certificate.
    #[serde(default)]
    pub allow: Vec<IpNet>,
    /// When the archive reports over TLS.
    #[serde(default)]
    pub tls: Option<ServerTls>,
}

impl Section for ReportsConfig {
    fn check(&self, problems: &mut Problems) {
        let known = !self.allow.is_empty() || self.tls.as_ref().is_some_and(ServerTls::is_mutual);
        if !self.listen.0.ip().is_loopback() && !known {
            problems.error(
                "listen",
                "anybody may connect to it: add allow = [\"10.20.0.5/32\"] with the archive's address",
            );
        }
        if let Some(tls) = &self.tls {
            problems.under("tls", |problems| tls.check(problems));
        }
    }

    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        if let Some(tls) = &mut self.tls {
            tls.files(visit);
        }
    }
}

/// The listener, bound.
pub struct ReportsListener {
    listener: TcpListener,
    door: Arc<Door>,
}

/// Who may come in, and how.
struct Door {
    acceptor: Option<TlsAcceptor>,
    allow: Vec<IpNet>,
}

impl ReportsListener {
    /// Binds.
    ///
    /// # Errors
    /// [`SendError::Disconnected`] with the cause in words.
    pub async fn open(config: &ReportsConfig) -> Result<Self, SendError> {
        let told = |error: &dyn std::fmt::Display| lost(format!("commitment-listen = \"{}\": {error}", config.listen));
        let acceptor = config.tls.as_ref().map(ServerTls::acceptor).transpose().map_err(|error| told(&error))?;
        let listener = TcpListener::bind(config.listen.0).await.map_err(|error| told(&stream::in_words(&error)))?;
        Ok(Self { listener, door: Arc::new(Door { acceptor, allow: config.allow.clone() }) })
    }

    /// Takes reports until it is dropped: then it listens no more and its associations end, so that a successor can listen there.
    pub async fn run(self, archive: Archive, reports: Arc<Reports>) {
        let Self { listener, door } = self;
        let (mut open, strangers) = (JoinSet::new(), Seldom::default());
        loop {
            tokio::select! {
                accepted = listener.accept(), if open.len() < ASSOCIATIONS_MAX => match accepted {
                    Ok((tcp, peer)) if door.admits(peer) => {
                        let (door, archive, reports) = (Arc::clone(&door), archive.clone(), Arc::clone(&reports));
                        open.spawn(async move {
                            if let Err(error) = door.serve(tcp, peer, &archive, &reports).await {
                                tracing::debug!(%peer, %error, "an association for reports of storage commitment ended");
                            }
                        });
                    }
                    Ok((_, peer)) => if let Some(unsaid) = strangers.speak() {
                        tracing::warn!(%peer, unsaid, "turned away: not in a network of commitment-listen's allow list");
                    },
                    Err(_) => sleep(EXHAUSTED_PAUSE).await,
                },
                Some(_ended) = open.join_next() => {}
            }
        }
    }
}

impl Door {
    fn admits(&self, peer: SocketAddr) -> bool {
        self.allow.is_empty() || self.allow.iter().any(|network| network.contains(&peer.ip().to_canonical()))
    }

    async fn serve(
        &self,
        tcp: TcpStream,
        peer: SocketAddr,
        archive: &Archive,
        reports: &Reports,
    ) -> Result<(), AssociationError> {
        let accepted = stream::accept(tcp, peer, self.acceptor.as_ref(), archive.connect_timeout).await;
        let stream = accepted.map_err(AssociationError::Closed)?;
        let mut association = Association::accept(stream, archive, |request| decide(request, archive)).await?;
        loop {
            let message = match association.receive().await {
                Ok(message) => message,
                Err(AssociationError::Released) => return Ok(()),
                Err(error) => return Err(error),
            };
            if message.command.field == CommandField::EchoRequest {
                let response = message.command.response(Status::SUCCESS);
                association.send(message.context, &response.bytes(), None).await?;
            } else {
                unexpected(&mut association, &message, reports).await?;
            }
        }
    }
}

/// Who calls must be the archive, and must call us.
fn decide(request: &AssociateRequest, archive: &Archive) -> Result<AssociateAccept, Reject> {
    if !request.speaks_version_1() {
        return Err(Reject::PROTOCOL_VERSION);
    }
    if request.called != archive.calling {
        return Err(Reject::CALLED_AE_TITLE);
    }
    if request.calling != archive.called {
        return Err(Reject::CALLING_AE_TITLE);
    }
    let roles = request.user.roles.iter().filter(|role| role.sop_class == STORAGE_COMMITMENT);
    let user = UserInformation {
        max_length: archive.max_pdu,
        implementation_class: Some(IMPLEMENTATION_CLASS),
        implementation_version: Some(IMPLEMENTATION_VERSION.to_owned()),
        roles: roles.map(|role| Role { scu: false, ..role.clone() }).collect(),
        ..UserInformation::default()
    };
    Ok(request.accept(request.contexts.iter().map(answered).collect(), user))
}

fn answered(context: &ProposedContext) -> AnsweredContext {
    let known = [STORAGE_COMMITMENT, VERIFICATION].contains(&context.abstract_syntax);
    let result = match context.transfer_syntaxes.contains(&IMPLICIT_LITTLE_ENDIAN) {
        _ if !known => ContextResult::AbstractSyntax,
        true => ContextResult::Accepted,
        false => ContextResult::TransferSyntaxes,
    };
    AnsweredContext { id: context.id, result, transfer_syntax: Some(IMPLICIT_LITTLE_ENDIAN) }
}
