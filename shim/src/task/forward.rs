//! Carries events to containerd: bounded queues, each one event at a time, in order. A container's events are all in one
//! queue; that there are several keeps the time until containerd answers from bounding how many containers end a second.
//!
//! While containerd is away the first event waits and the others behind it; what containerd answers with an error, or
//! not at all three times, is dropped with a line in the log.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::ttrpc;
use futures_util::future::join_all;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use ttrpc::asynchronous::transport::Socket;

/// So many queues, each with a connection of its own.
const QUEUES: usize = 4;

/// The events of a queue: four a container, five hundred containers.
const QUEUE: usize = 2048;

/// How long containerd may take for one event.
const FORWARD: Duration = Duration::from_secs(5);

/// How often an unanswered event is sent.
const ATTEMPTS: u32 = 3;

/// The longest pause between two tries to reach containerd.
const PAUSE: Duration = Duration::from_secs(2);

enum Item {
    Event(Box<Envelope>),
    /// Answered when all before it is out.
    Flush(oneshot::Sender<()>),
}

/// The near end of the queues.
#[derive(Clone)]
pub struct Publisher {
    queues: [mpsc::Sender<Item>; QUEUES],
    dropped: Arc<AtomicU64>,
}

impl Publisher {
    /// Starts to forward to the ttrpc socket at `address`; needs a tokio runtime.
    pub fn start(address: &str) -> Publisher {
        let dropped = Arc::new(AtomicU64::new(0));
        let socket = PathBuf::from(address.strip_prefix("unix://").unwrap_or(address));
        let queues = [(); QUEUES].map(|()| {
            let (queue, items) = mpsc::channel(QUEUE);
            let forwarder = Forwarder {
                socket: socket.clone(),
                client: None,
                dropped: dropped.clone(),
            };
            tokio::spawn(forwarder.run(items));
            queue
        });
        Publisher { queues, dropped }
    }

    /// Queues an event of `container`; never waits.
    pub fn publish(&self, container: &str, envelope: Envelope) {
        let mut hasher = DefaultHasher::new();
        container.hash(&mut hasher);
        let queue = &self.queues[hasher.finish() as usize % QUEUES];
        if let Err(error) = queue.try_send(Item::Event(Box::new(envelope))) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            tracing::error!(%error, "an event is lost: containerd takes none, and the queue is full");
        }
    }

    /// Waits until all events queued so far are out, `limit` at most.
    pub async fn flush(&self, limit: Duration) {
        let flushed = join_all(self.queues.iter().map(async |queue| {
            let (out, done) = oneshot::channel();
            if queue.send(Item::Flush(out)).await.is_ok() {
                let _ = done.await;
            }
        }));
        if timeout(limit, flushed).await.is_err() {
            tracing::warn!("containerd did not take the last events in time");
        }
    }

    /// How many events containerd never got.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

struct Forwarder {
    socket: PathBuf,
    client: Option<EventsClient>,
    dropped: Arc<AtomicU64>,
}

/// What became of one try.
enum Outcome {
    Taken,
    /// containerd answered, and will answer the same again.
    Refused(String),
    Unanswered,
    /// containerd is not there.
    Away,
}

impl Forwarder {
    async fn run(mut self, mut items: mpsc::Receiver<Item>) {
        while let Some(item) = items.recv().await {
            match item {
                Item::Event(envelope) => self.deliver(*envelope).await,
                // Nobody waits any more when this fails.
                Item::Flush(out) => drop(out.send(())),
            }
        }
    }

    async fn deliver(&mut self, envelope: Envelope) {
        let mut pause = Duration::from_millis(20);
        let mut unanswered = 0;
        loop {
            let lost = match self.forward(&envelope).await {
                Outcome::Taken => return,
                Outcome::Refused(error) => error,
                Outcome::Unanswered if unanswered + 1 == ATTEMPTS => {
                    format!("no answer in {ATTEMPTS} times {FORWARD:?}")
                }
                Outcome::Unanswered => {
                    unanswered += 1;
                    continue;
                }
                Outcome::Away => {
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE);
                    continue;
                }
            };
            self.dropped.fetch_add(1, Ordering::Relaxed);
            tracing::error!(topic = envelope.topic, cause = lost, "an event is lost");
            return;
        }
    }

    async fn forward(&mut self, envelope: &Envelope) -> Outcome {
        let client = match &self.client {
            Some(client) => client,
            None => match UnixStream::connect(&self.socket).await {
                Ok(stream) => self.client.insert(EventsClient::new(Client::new(Socket::from(stream)))),
                Err(_) => return Outcome::Away,
            },
        };
        let mut context = ttrpc::context::with_duration(FORWARD);
        context.set(
            "containerd-namespace-ttrpc".to_owned(),
            vec![envelope.namespace.clone()],
        );
        let mut request = ForwardRequest::new();
        request.set_envelope(envelope.clone());
        // The client's own limit is left a little later than ours, so that which of them ends it is certain.
        let outcome = match timeout(FORWARD, client.forward(context, &request)).await {
            Ok(Ok(_)) => return Outcome::Taken,
            Ok(Err(ttrpc::Error::RpcStatus(status))) => return Outcome::Refused(status.message().to_owned()),
            Ok(Err(_)) => Outcome::Away,
            Err(_) => Outcome::Unanswered,
        };
        self.client = None;
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use containerd_shim_protos::api::Empty;
    use containerd_shim_protos::shim_async::{Events, create_events};
    use tokio::net::UnixListener;
    use ttrpc::asynchronous::transport::Listener;
    use ttrpc::asynchronous::{Server, TtrpcContext};

    use super::*;

    #[derive(Clone, Default)]
    struct Containerd {
        topics: Arc<Mutex<Vec<String>>>,
    }

    #[async_trait]
    impl Events for Containerd {
        async fn forward(&self, context: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            assert_eq!(
                context.metadata["containerd-namespace-ttrpc"],
                *std::slice::from_ref(&request.envelope.namespace)
            );
            if request.envelope.topic == "/refused" {
                let status = ttrpc::get_status(ttrpc::Code::INVALID_ARGUMENT, "no such topic");
                return Err(ttrpc::Error::RpcStatus(status));
            }
            if request.envelope.topic == "/slow" {
                sleep(Duration::from_secs(1)).await;
            }
            self.topics.lock().unwrap().push(request.envelope.topic.clone());
            Ok(Empty::new())
        }
    }

    async fn listen(path: &std::path::Path, containerd: &Containerd) -> Server {
        let _ = std::fs::remove_file(path);
        let mut server = Server::new()
            .add_listener(Listener::from(UnixListener::bind(path).unwrap()))
            .register_service(create_events(Arc::new(containerd.clone())));
        server.start().await.unwrap();
        server
    }

    fn envelope(topic: &str) -> Envelope {
        Envelope {
            topic: topic.to_owned(),
            namespace: "k8s.io".to_owned(),
            ..Envelope::default()
        }
    }

    #[tokio::test]
    async fn events_arrive_in_order_also_when_containerd_comes_late_or_restarts() {
        let path = std::env::temp_dir().join(format!("kubewasi-forward-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let containerd = Containerd::default();
        let publisher = Publisher::start(&format!("unix://{}", path.display()));
        publisher.publish("a", envelope("/1"));
        publisher.publish("a", envelope("/refused"));
        publisher.publish("a", envelope("/2"));
        sleep(Duration::from_millis(50)).await;
        let mut server = listen(&path, &containerd).await;
        publisher.flush(Duration::from_secs(10)).await;
        server.shutdown().await.unwrap();
        drop(server);
        publisher.publish("a", envelope("/3"));
        sleep(Duration::from_millis(50)).await;
        let _server = listen(&path, &containerd).await;
        publisher.publish("a", envelope("/4"));
        publisher.flush(Duration::from_secs(10)).await;
        assert_eq!(*containerd.topics.lock().unwrap(), ["/1", "/2", "/3", "/4"]);
        assert_eq!(publisher.dropped(), 1);
    }

    #[tokio::test]
    async fn an_event_that_takes_its_time_holds_up_its_own_container_and_not_all_others() {
        let path = std::env::temp_dir().join(format!("kubewasi-slow-{}", std::process::id()));
        let containerd = Containerd::default();
        let _server = listen(&path, &containerd).await;
        let publisher = Publisher::start(&format!("unix://{}", path.display()));
        publisher.publish("a", envelope("/slow"));
        publisher.publish("a", envelope("/after"));
        for other in ["b", "c", "d", "e", "f", "g", "h", "i"] {
            publisher.publish(other, envelope("/other"));
        }
        publisher.flush(Duration::from_secs(10)).await;
        let topics = containerd.topics.lock().unwrap().clone();
        let at = |topic| topics.iter().position(|seen| seen == topic).unwrap();
        assert!(at("/other") < at("/slow") && at("/slow") < at("/after"), "{topics:?}");
        assert_eq!(topics.len(), 10);
    }

    #[tokio::test]
    async fn an_endpoint_that_hangs_up_on_every_event_for_a_while_gets_them_all_afterwards() {
        let path = std::env::temp_dir().join(format!("kubewasi-hangs-up-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let rude = UnixListener::bind(&path).unwrap();
        let publisher = Publisher::start(&format!("unix://{}", path.display()));
        (0..20).for_each(|number| publisher.publish("a", envelope(&format!("/{number}"))));
        let hang_up = async {
            loop {
                let (mut stream, _) = rude.accept().await.unwrap();
                let mut header = [0; 10];
                tokio::io::AsyncReadExt::read_exact(&mut stream, &mut header)
                    .await
                    .unwrap();
            }
        };
        assert!(timeout(Duration::from_secs(3), hang_up).await.is_err());
        drop(rude);
        let containerd = Containerd::default();
        let _server = listen(&path, &containerd).await;
        publisher.flush(Duration::from_secs(10)).await;
        let wanted: Vec<String> = (0..20).map(|number| format!("/{number}")).collect();
        assert_eq!(*containerd.topics.lock().unwrap(), wanted);
        assert_eq!(publisher.dropped(), 0);
    }
}
