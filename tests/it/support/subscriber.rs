//! An MQTT 5 subscriber that is not ours (rumqttc): keeps what it was sent, and puts transfers together as our documents say.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use tokio::task::JoinHandle;

use super::wait::eventually_async;

/// Largest packet that it takes; rumqttc's own default is 10 KiB.
const PACKET_BYTES_MAX: u32 = 4 << 20;

/// A subscriber in the background; ends with the value.
pub struct Subscriber {
    /// For publishing as a collector would.
    pub client: AsyncClient,
    kept: Arc<Mutex<Vec<Publish>>>,
    subscribed: Arc<Mutex<u32>>,
    task: JoinHandle<()>,
}

/// A message as its parts gave it.
pub struct Whole {
    /// Its topic.
    pub topic: String,
    /// User properties of its last part.
    pub properties: BTreeMap<String, String>,
    /// Content type.
    pub content_type: Option<String>,
    /// All bytes.
    pub bytes: Vec<u8>,
}

impl Subscriber {
    /// Subscribes to `filter` with QoS 1, again after each reconnect, and waits until the broker has agreed.
    pub async fn start(port: u16, filter: &'static str, credentials: Option<(&str, &str)>) -> Self {
        Self::named("subscriber", port, filter, credentials).await
    }

    /// The same under another client id, for a second one at the same broker.
    pub async fn named(id: &str, port: u16, filter: &'static str, credentials: Option<(&str, &str)>) -> Self {
        let mut options = MqttOptions::new(id, "127.0.0.1", port);
        options.set_keep_alive(Duration::from_secs(5)).set_max_packet_size(Some(PACKET_BYTES_MAX));
        if let Some((user, password)) = credentials {
            options.set_credentials(user, password);
        }
        let (client, mut events) = AsyncClient::new(options, 10_000);
        let (kept, subscribed) = (Arc::<Mutex<Vec<Publish>>>::default(), Arc::<Mutex<u32>>::default());
        let (keep, count, again) = (Arc::clone(&kept), Arc::clone(&subscribed), client.clone());
        let task = tokio::spawn(async move {
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => again.try_subscribe(filter, QoS::AtLeastOnce).unwrap(),
                    Ok(Event::Incoming(Packet::SubAck(_))) => *count.lock().unwrap() += 1,
                    Ok(Event::Incoming(Packet::Publish(publish))) => keep.lock().unwrap().push(publish),
                    Ok(_) => {}
                    // Sleep: rumqttc connects again at once otherwise.
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
        let subscriber = Self { client, kept, subscribed, task };
        subscriber.subscribed(1).await;
        subscriber
    }

    /// Waits until the broker has agreed to a subscription `times` times.
    pub async fn subscribed(&self, times: u32) {
        eventually_async("the subscriber is subscribed", || async { *self.subscribed.lock().unwrap() >= times }).await;
    }

    /// All publishes so far.
    pub fn kept(&self) -> Vec<Publish> {
        self.kept.lock().unwrap().clone()
    }

    /// The messages that are complete, in the order of their last parts.
    pub fn wholes(&self) -> Vec<Whole> {
        let mut open: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut wholes = Vec::new();
        for publish in self.kept() {
            // What has no label is no message: the status of a gateway.
            let Some(properties) = publish.properties.clone() else { continue };
            let named: BTreeMap<String, String> = properties.user_properties.into_iter().collect();
            let transfer = named.get("transfer").cloned().unwrap_or_default();
            let mut bytes = open.remove(&transfer).unwrap_or_default();
            bytes.extend_from_slice(&publish.payload);
            if named.get("part") == named.get("parts") {
                let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
                wholes.push(Whole { topic, properties: named, content_type: properties.content_type, bytes });
            } else {
                open.insert(transfer, bytes);
            }
        }
        wholes
    }

    /// Waits until `count` messages are complete.
    pub async fn wait_for(&self, count: usize) -> Vec<Whole> {
        eventually_async("the messages arrived", || async { self.wholes().len() >= count }).await;
        self.wholes()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.task.abort();
    }
}
