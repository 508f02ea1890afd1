//! Images coming and going, as containerd's event stream tells it.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_client::services::v1::SubscribeRequest;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::{ImageCreate, ImageDelete, ImageUpdate};
use containerd_client::types::Envelope;
use prost::Message;
use tokio::sync::mpsc::Sender;

use super::content_store::StoreError;
use super::manifest::Manifest;
use super::record::Time;
use super::{Images, Source, Wasm};

/// What happened to an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is on the node, or its name now means other content.
    Arrived {
        namespace: String,
        name: String,
    },
    Removed {
        namespace: String,
        name: String,
    },
}

const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How long it may take to hear events again after a long absence of containerd.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

impl Images {
    /// Sends every image change in all namespaces to `changes` until its receiver is gone; connects again whenever the
    /// stream ends. What happens while there is no connection is missed: a first start then compiles.
    pub async fn watch(&self, changes: Sender<Change>) {
        let mut pause = FIRST_PAUSE;
        while !changes.is_closed() {
            let followed = self.follow(&changes, &mut pause).await;
            self.store.sees_no_more();
            match followed {
                Ok(()) => tracing::debug!("containerd ended the stream of image events"),
                Err(error) => tracing::debug!(%error, "image events are not heard"),
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = changes.closed() => return,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn follow(&self, changes: &Sender<Change>, pause: &mut Duration) -> Result<(), StoreError> {
        let call_error = |status| StoreError::Call {
            what: "image events".to_owned(),
            status: Box::new(status),
        };
        let channel = self.store.channel().await?;
        let filters = ["create", "update", "delete"]
            .map(|kind| format!(r#"topic=="/images/{kind}""#))
            .to_vec();
        let stream = EventsClient::new(channel)
            .subscribe(SubscribeRequest { filters })
            .await
            .map_err(call_error)?;
        let mut stream = stream.into_inner();
        *pause = FIRST_PAUSE;
        // The images that are there already, while events are received.
        let mut seeing = pin!(self.store.see_all(now()));
        let mut seen = false;
        loop {
            tokio::select! {
                next = stream.message() => match next.map_err(call_error)? {
                    Some(envelope) => {
                        let Some(change) = change(&envelope) else { continue };
                        if let Change::Arrived { namespace, name } = &change
                            && let Err(error) = self.manifests_named(namespace, name).await
                        {
                            tracing::debug!(namespace, name, %error, "an image that arrived could not be read");
                        }
                        if changes.send(change).await.is_err() {
                            return Ok(());
                        }
                    }
                    None => return Ok(()),
                },
                result = &mut seeing, if !seen => {
                    seen = true;
                    if let Err(error) = result {
                        tracing::debug!(%error, "the images of the node could not be read");
                    }
                }
                () = changes.closed() => return Ok(()),
            }
        }
    }

    /// The manifests that an image's name means now, which stay known; none when the image is gone.
    async fn manifests_named(&self, namespace: &str, name: &str) -> Result<Arc<Vec<Manifest>>, StoreError> {
        match self.store.named(namespace, name).await? {
            Some(named) => self.store.manifests(namespace, name, &named.target).await,
            None => Ok(Arc::default()),
        }
    }

    /// The wasm layers of an image, as they would be compiled; empty when it has none.
    pub async fn wasm_of(&self, namespace: &str, name: &str) -> Result<Vec<Wasm>, StoreError> {
        let manifests = self.manifests_named(namespace, name).await?;
        let layers = manifests.iter().flat_map(|manifest| &manifest.wasm);
        let wasm = layers.map(|layer| Wasm {
            digest: layer.digest,
            source: Source::Content {
                namespace: namespace.to_owned(),
            },
            name: layer
                .title
                .clone()
                .unwrap_or_else(|| format!("{name} ({})", layer.digest)),
            export: None,
            image: None,
        });
        Ok(wasm.collect())
    }
}

/// By the clock that containerd uses too.
fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    (seconds, i32::try_from(since.subsec_nanos()).unwrap_or_default())
}

/// What an event says; `None` for one that is not of images or is not readable.
fn change(envelope: &Envelope) -> Option<Change> {
    let bytes = envelope.event.as_ref()?.value.as_slice();
    let namespace = envelope.namespace.clone();
    match envelope.topic.as_str() {
        "/images/create" => Some(Change::Arrived {
            namespace,
            name: ImageCreate::decode(bytes).ok()?.name,
        }),
        "/images/update" => Some(Change::Arrived {
            namespace,
            name: ImageUpdate::decode(bytes).ok()?.name,
        }),
        "/images/delete" => Some(Change::Removed {
            namespace,
            name: ImageDelete::decode(bytes).ok()?.name,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An envelope as containerd sends it: an image event is one string, its name.
    fn envelope(topic: &str, event: Vec<u8>) -> Envelope {
        let mut envelope = Envelope {
            topic: topic.to_owned(),
            namespace: "k8s.io".to_owned(),
            ..Default::default()
        };
        envelope.event.get_or_insert_default().value = event;
        envelope
    }

    #[test]
    fn image_events_say_which_image_came_or_went() {
        let name = || "example.com/app:1".to_owned();
        let created = ImageCreate {
            name: name(),
            ..Default::default()
        }
        .encode_to_vec();
        let deleted = ImageDelete { name: name() }.encode_to_vec();
        let namespace = || "k8s.io".to_owned();
        let arrived = Some(Change::Arrived {
            namespace: namespace(),
            name: name(),
        });
        assert_eq!(change(&envelope("/images/create", created.clone())), arrived);
        assert_eq!(change(&envelope("/images/update", created)), arrived);
        let removed = Some(Change::Removed {
            namespace: namespace(),
            name: name(),
        });
        assert_eq!(change(&envelope("/images/delete", deleted.clone())), removed);
        assert_eq!(change(&envelope("/tasks/start", deleted)), None);
        assert_eq!(change(&envelope("/images/create", vec![0xff])), None);
    }
}
