//! The demo's broker: clients that are not ours find what they expect of MQTT 5, and a cut loses nothing that had a receipt.

use std::sync::Arc;

use rumqttc::v5::mqttbytes::QoS;
use wardgate::cli::demo_broker::DemoBroker;
use wardgate::upstream::{SendError, Upstream};

use crate::collect::{BY_COLLECTOR, Collector, assert_collected, forward};
use crate::mqtt::{connect, long, message};
use crate::support::subscriber::Subscriber;
use crate::support::wait::eventually_async;

async fn broker() -> (DemoBroker, u16) {
    let broker = DemoBroker::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let port = broker.address().port();
    (broker, port)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_client_gets_wildcards_retained_messages_and_wills() {
    let (_broker, port) = broker().await;
    let all = Subscriber::start(port, "#", None).await;
    let mqtt = connect(port, "plain = true").await;
    mqtt.send(&message(1)).await.unwrap().receipt().await.unwrap();
    drop(mqtt);
    let topics =
        || all.kept().iter().map(|publish| String::from_utf8(publish.topic.to_vec()).unwrap()).collect::<Vec<_>>();
    let status = "wardgate/st-marys/icu-3/status";
    let expected = [status, "wardgate/st-marys/icu-3/monitors/clinical", status];
    eventually_async("online, message, will", || async { topics() == expected }).await;
    let late = Subscriber::named("late", port, "wardgate/+/+/status", None).await;
    eventually_async("the retained will", || async { late.kept().len() == 1 }).await;
    assert!(late.kept()[0].retain && late.kept()[0].payload.starts_with(b"{"));
    late.client.publish("x", QoS::AtLeastOnce, false, "from a foreign client").await.unwrap();
    eventually_async("it is passed on", || async { topics().last().unwrap() == "x" }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_is_told_in_words() {
    let (_broker, port) = broker().await;
    let first = connect(port, "plain = true").await;
    let _second = connect(port, "plain = true").await;
    let cause = first.closed().await;
    assert!(cause.contains("taken over") && cause.contains("client id"), "{cause}");
    assert!(matches!(first.send(&message(1)).await, Err(SendError::Disconnected { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn cutting_the_upstream_again_and_again_loses_nothing_that_had_a_receipt() {
    let (broker, port) = broker().await;
    let into = tempfile::tempdir().unwrap();
    let collector = Collector::start(port, into.path(), None).await;
    let sent: Arc<Vec<_>> =
        Arc::new((0..900).map(|n| if n % 300 == 5 { long(n, 600_000) } else { message(n) }).collect());
    let forwarder = tokio::spawn({
        let sent = Arc::clone(&sent);
        async move { forward(port, BY_COLLECTOR, &sent).await }
    });
    for round in 1..=3 {
        eventually_async("some arrived", || async { collector.progress.stored.value() > round * 150 }).await;
        broker.cut();
        eventually_async("the cut is seen", || async { collector.progress.trouble.lock().unwrap().is_some() }).await;
        broker.restore();
    }
    forwarder.await.unwrap();
    assert_collected(into.path(), &sent);
    collector.stop().await;
}
