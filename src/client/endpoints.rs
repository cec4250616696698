//! Several servers of one archive behind one channel: what writes goes to the writer, what reads is
//! spread over the replicas, or goes to the writer while there is none.
//!
//! Each server is asked again and again what it is, so that a standby that took over is found, and a
//! replica that went away is asked no more. tonic's own balancing picks among the replicas.

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::join_all;
use http::{Request as HttpRequest, Response as HttpResponse};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tonic::body::Body;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, channel::Change};
use tonic::{Code, Status};
use tower::{Service, ServiceExt};

use super::{AdminCalls, CONNECT_TIMEOUT, Token};
use crate::error::{Error, Reason, Result};
use crate::rpc::proto::admin_service_client::AdminServiceClient;
use crate::rpc::proto::{GetServerInfoRequest, ServerRole};
use crate::rpc::{self, status_of};

/// How often each server is asked what it is, and how long it may take to say so.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// Changes of the list of replicas that wait to be taken.
const CHANGES_MAX: usize = 64;

/// The most servers that one client may name.
pub const SERVERS_MAX: usize = 32;

/// Sends each request to the server that it is for.
#[derive(Clone)]
pub struct Routes {
    reads: Channel,
    writer: Writer,
}

#[derive(Clone)]
enum Writer {
    /// The one server that there is.
    Fixed(Channel),
    /// The server that last said so. The task that looks ends with the last clone.
    Found(watch::Receiver<Option<Found>>, Arc<AbortOnDropHandle<()>>),
}

/// A server that says that it is the writer.
#[derive(Clone)]
struct Found {
    url: String,
    channel: Channel,
}

impl fmt::Debug for Routes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Routes").finish_non_exhaustive()
    }
}

/// A server on the list.
struct Known {
    url: String,
    endpoint: Endpoint,
    channel: Channel,
    calls: AdminCalls,
}

/// Asks the servers and tells the channels what it finds.
struct Lookout {
    all: Vec<Known>,
    writer: watch::Sender<Option<Found>>,
    reads: mpsc::Sender<Change<String, Endpoint>>,
    /// Those that reads go to at present.
    read_from: Vec<String>,
}

impl Routes {
    /// All requests go to one server.
    pub(super) fn one(channel: Channel) -> Self {
        Self {
            reads: channel.clone(),
            writer: Writer::Fixed(channel),
        }
    }

    /// Asks servers what they are and goes on doing so.
    ///
    /// # Errors
    /// `ServerUnreachable` if none of them answers; what one of them refuses with if none says what it
    /// is.
    pub(super) async fn many(endpoints: Vec<(String, Endpoint)>, token: &Token) -> Result<Self> {
        let all = endpoints.into_iter().map(|(url, endpoint)| {
            let channel = endpoint.connect_lazy();
            let signed = InterceptedService::new(Self::one(channel.clone()), token.clone());
            Known {
                url,
                endpoint,
                channel,
                calls: AdminServiceClient::new(signed),
            }
        });
        let (reads, changes) = Channel::balance_channel(CHANGES_MAX);
        let (sender, writer) = watch::channel(None);
        let mut lookout = Lookout {
            all: all.collect(),
            writer: sender,
            reads: changes,
            read_from: Vec::new(),
        };
        lookout.look(CONNECT_TIMEOUT).await?;
        let looking = AbortOnDropHandle::new(tokio::spawn(lookout.run()));
        Ok(Self {
            reads,
            writer: Writer::Found(writer, Arc::new(looking)),
        })
    }
}

impl Writer {
    /// The channel to the writer; waits a while for one while there is none.
    async fn channel(self) -> Result<Channel> {
        let (mut found, _lookout) = match self {
            Self::Fixed(channel) => return Ok(channel),
            Self::Found(found, lookout) => (found, lookout),
        };
        let channel = async {
            let found = found.wait_for(Option::is_some).await.ok()?;
            found.as_ref().map(|found| found.channel.clone())
        };
        timeout(CONNECT_TIMEOUT, channel)
            .await
            .ok()
            .flatten()
            .ok_or_else(|| {
                let what = format!(
                    "none of the servers has said for {} s that it is the writer; the others cannot \
                     store anything",
                    CONNECT_TIMEOUT.as_secs()
                );
                Error::new(Reason::ServerUnreachable, what)
            })
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<HttpResponse<Body>, Status>> + Send>>;

impl Service<HttpRequest<Body>> for Routes {
    type Response = HttpResponse<Body>;
    type Error = Status;
    type Future = Answer;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        // The channel is asked once it is known which one it is.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Answer {
        let is_read = rpc::is_read(request.uri().path());
        let reads = is_read.then(|| self.reads.clone());
        let writer = self.writer.clone();
        Box::pin(async move {
            let channel = match reads {
                Some(reads) => reads,
                None => writer.channel().await.map_err(|error| status_of(&error))?,
            };
            let answer = channel.oneshot(request).await;
            answer.map_err(|error| Status::from_error(error.into()))
        })
    }
}

impl Lookout {
    async fn run(mut self) {
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            // Whoever needs a server hears of it when there is none.
            let _ = self.look(LOOK_TIMEOUT).await;
        }
    }

    /// Asks all servers and tells what has changed.
    async fn look(&mut self, patience: Duration) -> Result<()> {
        let looks = self.all.iter().map(|known| role_of(known, patience));
        let roles = join_all(looks).await;
        let mut first_error = None;
        let mut writers = Vec::new();
        let mut replicas = Vec::new();
        for (known, role) in self.all.iter().zip(roles) {
            match role {
                Ok(ServerRole::Writer) => writers.push(known),
                Ok(_) => replicas.push(known.url.clone()),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        // One that was replaced may say for a moment longer that it is the writer: whoever is known
        // stays until it is gone.
        let now = self.writer.borrow().as_ref().map(|found| found.url.clone());
        let stays = writers
            .iter()
            .find(|known| Some(&known.url) == now.as_ref());
        let writer = stays.or(writers.first()).map(|known| Found {
            url: known.url.clone(),
            channel: known.channel.clone(),
        });
        let new = writer.as_ref().map(|found| found.url.clone());
        if replicas.is_empty() {
            replicas.extend(new.clone());
        }
        let nobody = replicas.is_empty();
        if new != now {
            tracing::info!(writer = new, "found the writer among the servers");
            self.writer.send_replace(writer);
        }
        self.read_from(replicas).await;
        match first_error {
            Some(error) if nobody => Err(error),
            _ => Ok(()),
        }
    }

    /// Reads go to these servers from now on. The last ones stay when there are no others.
    async fn read_from(&mut self, urls: Vec<String>) {
        if urls.is_empty() || urls == self.read_from {
            return;
        }
        let endpoints: HashMap<&String, &Endpoint> = self
            .all
            .iter()
            .map(|known| (&known.url, &known.endpoint))
            .collect();
        let added = urls.iter().filter(|url| !self.read_from.contains(url));
        let added = added.filter_map(|url| {
            let endpoint = endpoints.get(url).copied().cloned()?;
            Some(Change::Insert(url.clone(), endpoint))
        });
        let removed = self.read_from.iter().filter(|url| !urls.contains(url));
        let removed = removed.map(|url| Change::Remove(url.clone()));
        let changes: Vec<_> = added.chain(removed).collect();
        for change in changes {
            // Nobody reads any more if nobody takes it.
            let _ = self.reads.send(change).await;
        }
        self.read_from = urls;
    }
}

/// What a server says that it is.
async fn role_of(known: &Known, patience: Duration) -> Result<ServerRole> {
    let mut calls = known.calls.clone();
    let answer = timeout(patience, calls.get_server_info(GetServerInfoRequest {})).await;
    match answer {
        Ok(Ok(info)) => Ok(info.into_inner().role()),
        Ok(Err(status)) if status.code() != Code::Unavailable => Err(rpc::error_of(&status)),
        Ok(Err(_)) | Err(_) => Err(super::unreachable(&known.url)),
    }
}
