//! Connections of the MQTT endpoint whose timing a test must hold in its hand.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::Stop;
use super::mqtt::MqttConfig;
use super::mqtt_clients::Clients;
use super::mqtt_connection::serve;
use super::mqtt_endpoint::Endpoint;
use super::plug_tests::Room;
use crate::system::stream;

const CONFIG: &str = "listen = '127.0.0.1:0'\n[[client]]\nid = 'a'\npublish = ['#']\n";
/// CONNECT of 3.1.1 with the client id `a`, without keep-alive.
const CONNECT: &[u8] = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a";
/// PUBLISH with QoS 1 to `t`, packet id 1.
const PUBLISH: &[u8] = b"\x32\x06\x00\x01t\x00\x01x";

/// A client of an endpoint whose packets must end within `packet_time`, let in.
async fn client(room: &Room, packet_time: Duration) -> TcpStream {
    let config: MqttConfig = toml::from_str(CONFIG).unwrap();
    let clients = Clients::new(&config.client, &room.intake);
    let endpoint = Endpoint::new(&config, clients, &Arc::from([]), room.intake.clone(), Stop::new());
    let endpoint = Arc::new(Endpoint { packet_time, ..endpoint });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (tcp, peer) = listener.accept().await.unwrap();
    let stream = stream::accept(tcp, peer, None, Duration::from_secs(30)).await.unwrap();
    tokio::spawn(serve(stream, endpoint));
    client.write_all(CONNECT).await.unwrap();
    let mut answer = [0; 4];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, [0x20, 2, 0, 0]);
    client
}

/// A busy client has half a packet at the end of nearly every read; it was cut off as slow half a minute after its first one.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_client_whose_reads_end_within_a_packet_is_not_slow() {
    let (room, limit) = (Room::new("mqtt"), Duration::from_millis(1500));
    let mut client = client(&room, limit).await;
    let (head, tail) = PUBLISH.split_at(5);
    client.write_all(head).await.unwrap();
    let began = Instant::now();
    while began.elapsed() < limit * 2 {
        client.write_all(&[tail, head].concat()).await.unwrap();
        let mut answer = [0; 4];
        client.read_exact(&mut answer).await.expect("it was cut off");
        assert_eq!(answer, [0x40, 2, 0, 1]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packet_that_does_not_end_ends_its_connection() {
    let room = Room::new("mqtt");
    let mut client = client(&room, Duration::from_millis(300)).await;
    client.write_all(&PUBLISH[..5]).await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(60), client.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert_eq!(rest, b"", "a client of 3.1.1 has no word for it");
}
