//! The rows about MQTT sensors: QoS 1 in, beside a broker and beside the floor; memory of clients that only stay connected.
//!
//! The broker is mosquitto with persistence and a subscriber that is away: it queues in memory, writes its file now and then, and syncs nothing
//! before it acknowledges. The floor reads packets, appends and syncs in groups, and acknowledges.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::broker::Broker;
use crate::mqtt_load::{PAYLOAD, Sensors, idle, subscribe_and_leave};
use crate::rows::{Row, median, row, spread};
use crate::subject::{IDLE_PASSWORD, Subject, Upstream};
use crate::{Plan, free_address, proc};

/// As the figures are defined.
const CLIENTS: usize = 8;
const IN_FLIGHT: usize = 16;
/// Connections that say nothing: within the files that a process may open by default, on both sides.
const IDLE: usize = 800;
/// Before the measurement, on each fresh process.
const WARM_UP: Duration = Duration::from_millis(500);
const SETTLES_WITHIN: Duration = Duration::from_secs(3);

/// All of them.
pub fn rows(plan: &Plan) -> Vec<Row> {
    let folder = plan.folder.join("mqtt");
    let (mut ours, mut floor, mut broker, mut cpu_us) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.runs {
        floor.push(rate(plan, &Subject::floor(&folder, "mqtt", None)));
        broker.push(rate_of_broker(plan, &folder));
        let subject = Subject::wardgate(&folder, Upstream::Away);
        let before = proc::cpu_seconds(subject.pid());
        let each_second = rate(plan, &subject);
        let seconds = (WARM_UP + Duration::from_secs(plan.seconds)).as_secs_f64();
        cpu_us.push((proc::cpu_seconds(subject.pid()) - before) * 1e6 / (each_second * seconds));
        ours.push(each_second);
    }
    let figure =
        format!("MQTT QoS 1 in, {PAYLOAD}-byte payloads, {CLIENTS} clients with {IN_FLIGHT} in flight: PUBACK/s over");
    let beside = |target, name: &str, other: &[f64]| {
        let details = format!("ours {}; {name} {}", spread(&ours), spread(other));
        row(&format!("{figure} {name}"), target, format!("{:.2}", median(&ours) / median(other)), details)
    };
    vec![
        beside(">= 0.5", "mosquitto with persistence, which syncs nothing", &broker),
        beside(">= 0.7", "the append-and-sync group floor", &floor),
        row("CPU for each such message in us", "", format!("{:.1}", median(&cpu_us)), String::new()),
        idle_memory(&folder),
    ]
}

fn sensors(limit: Duration) -> Sensors {
    Sensors { clients: CLIENTS, in_flight: IN_FLIGHT, limit }
}

fn rate(plan: &Plan, subject: &Subject) -> f64 {
    sensors(WARM_UP).run(subject.address);
    sensors(Duration::from_secs(plan.seconds)).run(subject.address)
}

fn rate_of_broker(plan: &Plan, folder: &Path) -> f64 {
    let _absent = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).unwrap();
    let address = free_address();
    let _broker = Broker::start_persistent(folder, address);
    subscribe_and_leave(address);
    sensors(WARM_UP).run(address);
    sensors(Duration::from_secs(plan.seconds)).run(address)
}

fn idle_memory(folder: &Path) -> Row {
    let subject = Subject::wardgate(folder, Upstream::Away);
    // What the first password and the first connections cost once is not each client's.
    drop(idle(subject.address, 20, IDLE_PASSWORD));
    std::thread::sleep(SETTLES_WITHIN);
    let before = proc::resident_kib(subject.pid());
    let _clients = idle(subject.address, IDLE, IDLE_PASSWORD);
    std::thread::sleep(SETTLES_WITHIN);
    let each = proc::resident_kib(subject.pid()).saturating_sub(before) as f64 / IDLE as f64;
    row("KiB resident for each idle MQTT client", "< 16", format!("{each:.1}"), format!("{IDLE} clients, without TLS"))
}
